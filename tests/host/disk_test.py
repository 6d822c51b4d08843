"""A full disk: told in one line, with the checkpoints that are there intact."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from ftbnn_jax.train import checkpoint


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB, of which some checkpoints of these runs fit, but not all."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs privileges")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


def start(repository, workdir, **overrides) -> subprocess.Popen:
    fields = {
        "num_steps": 100_000,
        "eval_every": 100_000,
        "checkpoint_every": 2,
        "keep_checkpoints": 1000,
        "log_every": 1,
        "model.blocks": "(1,1)",
        "model.width": 8,
        "model.stem_features": 8,
        **overrides,
    }
    config = repository / "configs" / "quickstart.py"
    command = [
        *(sys.executable, "-m", "ftbnn_jax.main", f"--config={config}", f"--workdir={workdir}"),
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def error_of(process: subprocess.Popen) -> str:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert "Traceback" not in errors
    assert errors.count("error: ") == 1, errors
    return errors[errors.index("error: ") :]


def test_checkpoints_that_do_not_fit_leave_the_earlier_ones(small_disk, repository):
    error = error_of(start(repository, small_disk))
    assert "no space left" in error
    assert "intact" in error
    steps = sorted(int(p.name) for p in (small_disk / "checkpoints").iterdir() if p.name.isdigit())
    assert len(steps) > 2
    assert checkpoint.load_variables(str(small_disk))[2] == steps[-1]
    # With some removed there is room for the same command to go on.
    for step in steps[:2]:
        shutil.rmtree(small_disk / "checkpoints" / str(step))
    error_of(start(repository, small_disk))
    assert checkpoint.load_variables(str(small_disk))[2] > steps[-1]


def test_metrics_that_do_not_fit(small_disk, repository):
    """No checkpoint is due: it is a line of metrics that finds the disk full."""
    process = start(repository, small_disk, checkpoint_every=0)
    deadline = time.monotonic() + 120
    metrics = small_disk / "metrics.jsonl"
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.stat().st_size:
            break
        time.sleep(0.02)
    fill(small_disk / "other")
    assert "no space left" in error_of(process)
    lines = metrics.read_bytes().splitlines(keepends=True)
    assert len(lines) > 1


def fill(path: pathlib.Path) -> None:
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while os.write(file.fileno(), b"0" * 4096):
            pass
