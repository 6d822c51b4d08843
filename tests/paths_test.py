"""Where the files of a run lie."""

import pytest

from ftbnn_jax import paths


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
