"""One process at a time in a work directory, on a disk and in a bucket."""

import json
import os
import subprocess
import sys
import time

import pytest

from ftbnn_jax.errors import UserError
from ftbnn_jax.host import lock, paths

_HOLD = """
import sys, time
from ftbnn_jax.host import lock
with lock.held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def bucket(monkeypatch):
    """Has a directory held as one in a bucket is, where an object appears as a whole."""
    monkeypatch.setattr(lock, "_locked", lock._leased)
    monkeypatch.setattr(lock, "_SETTLED_AFTER_S", 0.01)
    monkeypatch.setattr(lock, "_RENEWED_EVERY_S", 0.02)


def test_a_second_process_is_told_of_the_first_which_may_be_killed(tmp_path):
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        since = json.loads((tmp_path / "running.json").read_text())["since"]
        with pytest.raises(UserError) as error, lock.held(str(tmp_path)):
            pytest.fail("entered")
        first.kill()
    host = os.uname().nodename
    assert str(error.value) == (
        f"--workdir={tmp_path}: is in use by process {first.pid} on {host}, since {since}; wait for it, "
        "or take another --workdir"
    )
    with lock.held(str(tmp_path)) as mine:
        mine.check()
        assert json.loads((tmp_path / "running.json").read_text())["pid"] == os.getpid()
        # What excludes others is the lock, not the file that says who it is.
        (tmp_path / "running.json").unlink()
        with pytest.raises(UserError, match="in use by another process"), lock.held(str(tmp_path)):
            pytest.fail("entered")
        with lock.held(str(tmp_path), "sweep"):
            pass
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == []


def test_a_lease_is_renewed_and_given_back(tmp_path, bucket):
    path = tmp_path / "running.json"
    with lock.held(str(tmp_path)) as mine:
        until = json.loads(path.read_text())["until"]
        deadline = time.monotonic() + 10
        while lock._read(path).get("until", 0.0) <= until and time.monotonic() < deadline:
            time.sleep(0.02)
        assert lock._read(path)["until"] > until
        message = rf"in use by process {os.getpid()} on .*\(if it is gone, its lease ends in \d+ s\)"
        with pytest.raises(UserError, match=message), lock.held(str(tmp_path)):
            pytest.fail("entered")
        mine.check()
    assert not path.exists()


def test_a_lease_that_has_ended_is_taken_over_and_its_holder_stops(tmp_path, bucket):
    path = tmp_path / "running.json"
    gone = {"host": "a", "pid": 1, "since": "yesterday", "id": "x", "until": time.time() - 1}
    path.write_text(json.dumps(gone))
    with lock.held(str(tmp_path)) as mine:
        path.write_text(json.dumps({**gone, "until": time.time() + 60}))
        deadline = time.monotonic() + 10
        with pytest.raises(UserError, match=r"was taken over by process 1 on a, since yesterday"):
            while time.monotonic() < deadline:
                mine.check()
                time.sleep(0.01)
    # It is the other one's.
    assert json.loads(path.read_text())["id"] == "x"


def test_the_lease_of_a_process_that_was_killed_here_is_not_waited_for(tmp_path, bucket):
    path = tmp_path / "running.json"
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with lock.held(str(tmp_path)):
        mine = json.loads(path.read_text())
    path.write_text(json.dumps({**mine, "id": "x", "pid": process.pid}))
    with lock.held(str(tmp_path)):
        pass
    # Elsewhere the same number says nothing.
    path.write_text(json.dumps({**mine, "id": "x", "pid": process.pid, "machine": "another"}))
    with pytest.raises(UserError, match=f"in use by process {process.pid}"), lock.held(str(tmp_path)):
        pytest.fail("entered")


def test_of_two_that_come_at_the_same_time_the_later_one_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "is_remote", lambda path: True)
    path = tmp_path / "running.json"
    other = {"host": "a", "pid": 1, "since": "now", "id": "x", "until": time.time() + 60}
    monkeypatch.setattr(lock.time, "sleep", lambda _: path.write_text(json.dumps(other)))
    with pytest.raises(UserError, match="in use by process 1 on a"), lock.held(str(tmp_path)):
        pytest.fail("entered")
    assert json.loads(path.read_text()) == other


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"until": "soon"}'])
def test_what_is_no_lease_excludes_nobody(tmp_path, bucket, content):
    (tmp_path / "running.json").write_text(content)
    with lock.held(str(tmp_path)):
        pass


def test_a_directory_that_cannot_be_locked(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"file/run: cannot be written"),
        lock.held(f"{tmp_path}/file/run"),
    ):
        pytest.fail("entered")
    (tmp_path / ".running.lock").mkdir()
    with pytest.raises(UserError, match=r"\.running\.lock: cannot be locked"), lock.held(str(tmp_path)):
        pytest.fail("entered")
