"""Runs of two processes, on one machine: the same as one process, and never a hang."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from ftbnn_jax.command import UNFINISHED
from ftbnn_jax.errors import UserError
from ftbnn_jax.host import distributed
from ftbnn_jax.train import checkpoint

_STEPS = 12


def options(repository, workdir, **overrides) -> list[str]:
    fields = {
        "num_steps": _STEPS,
        "eval_every": 6,
        "checkpoint_every": 5,
        "log_every": 1,
        # 450 test images are 14 batches of 32 and a rest of 2, all of it the first process's.
        "batch_size": 32,
        "model.blocks": "(1,1)",
        "model.width": 8,
        "model.stem_features": 8,
        "model.groups": 2,
        **overrides,
    }
    config = repository / "configs" / "quickstart.py"
    return [
        *(sys.executable, "-m", "ftbnn_jax.main", f"--config={config}", f"--workdir={workdir}"),
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


def environment(devices: int) -> dict[str, str]:
    return {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}


@contextlib.contextmanager
def two_processes(command: list[str]):
    """Starts both; whatever happens, none is left behind."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    joined = [*command, f"--distributed={address}", "--num_processes=2"]
    processes = [
        subprocess.Popen(
            [*joined, f"--process_id={i}"],
            env=environment(2),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()


def records(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, repository):
    workdir = tmp_path_factory.mktemp("one")
    command = options(repository, workdir)
    subprocess.run(command, env=environment(4), check=True, capture_output=True, timeout=300)
    return workdir


def test_two_processes_compute_what_one_does(one_process, tmp_path, repository):
    """In two halves, the second one resumed; so the same images come in the same order."""
    for steps in (4, _STEPS):
        # The schedule's length stays, or the learning rates would differ.
        command = options(repository, tmp_path, num_steps=_STEPS)
        with two_processes(command) as processes:
            if steps < _STEPS:
                wait_for_step(tmp_path, steps, processes)
                processes[1].send_signal(signal.SIGTERM)
            outputs = [process.communicate(timeout=300) for process in processes]
        if processes[0].returncode == 0:
            break
        assert [p.returncode for p in processes] == [UNFINISHED] * 2, outputs
        assert "state saved" in outputs[0][1]
    assert [p.returncode for p in processes] == [0, 0], outputs
    assert "Trained" in outputs[0][0]
    assert "Trained" not in outputs[1][0]
    ours, expected = records(tmp_path), records(one_process)
    assert [(r["step"], r["kind"]) for r in ours] == [(r["step"], r["kind"]) for r in expected]
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-5, err_msg=str(one["step"]))
        # Of whole images: the same ones, each counted once.
        assert one["accuracy"] == other["accuracy"]
    evaluations = [r for r in ours if r["kind"] == "eval"]
    assert all(r["accuracy"] == round(r["accuracy"] * 450) / 450 for r in evaluations)
    variables = [checkpoint.load_variables(str(w))[0]["params"] for w in (tmp_path, one_process)]
    np.testing.assert_allclose(*(v["head"]["kernel"] for v in variables), atol=1e-3)


def wait_for_step(workdir, step, processes) -> None:
    deadline = time.monotonic() + 240
    while all(p.poll() is None for p in processes) and time.monotonic() < deadline:
        if (workdir / "metrics.jsonl").exists() and any(r["step"] >= step for r in records(workdir)):
            return
        time.sleep(0.02)
    raise AssertionError([p.communicate() if p.poll() is not None else "running" for p in processes])


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_other(tmp_path, repository, lost):
    command = options(repository, tmp_path, num_steps=1_000_000, eval_every=1_000_000)
    with two_processes(command) as processes:
        wait_for_step(tmp_path, 3, processes)
        processes[lost].kill()
        killed = time.monotonic()
        _, errors = processes[1 - lost].communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert processes[1 - lost].returncode not in (0, None)
    # Of ours where the computation notices first, of JAX's where its coordination service does.
    assert "one of them was lost" in errors or "distributed service detected fatal errors" in errors


@pytest.mark.parametrize("main", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_what_process_0_cannot_do_ends_all(monkeypatch, main, fails):
    monkeypatch.setattr(distributed, "is_main", lambda: main)
    monkeypatch.setattr(distributed, "from_main", lambda _: fails)

    def action():
        if fails:
            raise UserError("in use")
        return "held"

    if fails:
        with pytest.raises(UserError, match="in use" if main else "process 0 cannot go on"):
            distributed.on_main(action)
    else:
        assert distributed.on_main(action) == ("held" if main else None)


@pytest.mark.parametrize(
    ("how", "numbers", "message"),
    [
        (
            "cluster",
            (None, None),
            "--distributed=cluster: must be auto, off, tpu, slurm, or process 0's",
        ),
        ("host:12", (None, 0), "--num_processes: must be given"),
        ("host:12", (2, None), "--process_id: must be given"),
        ("host:12", (2, 2), "--process_id=2: must be in 0 to 1"),
        ("off", (2, None), "--num_processes=2: goes with --distributed=HOST:PORT only"),
    ],
)
def test_mistakes_are_told(how, numbers, message):
    with pytest.raises(UserError) as error:
        distributed.initialize(how, *numbers)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("how", "tasks", "expected"),
    [
        ("auto", "4", {"cluster_detection_method": "slurm"}),
        ("auto", "1", None),
        ("off", "4", None),
        ("tpu", "1", {"cluster_detection_method": None}),
        (
            "host:12",
            "1",
            {"coordinator_address": "host:12", "num_processes": 3, "process_id": 1},
        ),
    ],
)
def test_what_jax_is_asked_for(monkeypatch, how, tasks, expected):
    asked = []
    monkeypatch.setattr(distributed.jax.distributed, "initialize", lambda **kwargs: asked.append(kwargs))
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", tasks)
    distributed.initialize(how, *((3, 1) if ":" in how else (None, None)))
    if expected is None:
        assert not asked
    else:
        assert expected.items() <= asked[0].items()
