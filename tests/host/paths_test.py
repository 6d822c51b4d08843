"""Where the files of a run lie."""

import argparse
import pwd

import pytest

from ftbnn_jax.errors import UserError
from ftbnn_jax.host import paths


@pytest.mark.parametrize(("path", "remote"), [("gs://bucket/run", True), ("runs/one", False)])
def test_what_is_remote(path, remote):
    assert paths.is_remote(path) == remote
    assert paths.is_remote(paths.absolute(path) / "metrics.jsonl") == remote


def test_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(paths.absolute("run")) == str(tmp_path / "run")
    assert str(paths.absolute("gs://bucket/run")) == "gs://bucket/run"


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    """And a user's files of whatever name."""
    path = paths.absolute(str(tmp_path)) / "config.json"
    (tmp_path / "config.json.tmp").write_text("mine")
    paths.write_whole(path, b"before")
    paths.write_whole(str(path), "old")
    monkeypatch.setattr(paths.os, "replace", lambda *_: (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):
        paths.write_whole(path, "new")
    assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "config.json.tmp"]
    assert (tmp_path / "config.json.tmp").read_text() == "mine"
    # As any file that the user makes.
    (tmp_path / "another").touch()
    assert path.stat().mode & 0o777 == (tmp_path / "another").stat().st_mode & 0o777


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("run", "run"),
        ("a[1]/x:y", "a[1]/x:y"),
        ("~", "/home/me"),
        ("~/run", "/home/me/run"),
        ("./~/run", "./~/run"),
        ("run~", "run~"),
        ("file:///a%20b/c", "/a b/c"),
        ("gs://bucket/~", "gs://bucket/~"),
    ],
)
def test_what_a_path_stands_for(monkeypatch, path, expected):
    monkeypatch.setenv("HOME", "/home/me")
    assert paths.expand(path) == paths.argument(path) == expected


@pytest.mark.parametrize(
    "path",
    ["~nobody123/run", "foo://x/run", "gs://", "gs:///x", "gs:/x", "file://host/x", "file:/x", "a\0b"],
)
def test_a_path_that_stands_for_nothing_is_refused(path):
    with pytest.raises(UserError) as error:
        paths.absolute(path)
    assert path.partition("\0")[0] in str(error.value)
    with pytest.raises(argparse.ArgumentTypeError):
        paths.local_argument(path)


def test_no_home_at_all(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda _: (_ for _ in ()).throw(KeyError))
    with pytest.raises(UserError, match=r"^~/run: there is no home directory ~"):
        paths.expand("~/run")


@pytest.mark.parametrize("path", ["", "gs://bucket/run"])
def test_what_is_not_on_this_machine_is_no_local_argument(path):
    with pytest.raises(argparse.ArgumentTypeError, match="must"):
        paths.local_argument(path)
