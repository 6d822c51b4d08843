"""SLURM: what is submitted, and what the job does when the training ends."""

import shlex

import pytest

PROGRAM = ("--config=configs/baseline.py", "--workdir=/shared/a run", "--config.model.blocks=(2,2)")


def _sbatch(root, nodes, gpus, cpus, time, *partition):
    return [
        "sbatch",
        "--job-name=ftbnn_jax",
        f"--chdir={root}",
        "--output=slurm-%j.log",
        "--open-mode=append",
        "--requeue",
        f"--nodes={nodes}",
        f"--ntasks-per-node={gpus}",
        f"--gpus-per-node={gpus}",
        f"--cpus-per-task={cpus}",
        f"--time={time}",
        *partition,
        "--signal=TERM@120",
        "launch/slurm_job.sh",
        *PROGRAM,
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), (1, 1, 8, "24:00:00")),
        (
            ("--nodes=2", "--gpus_per_node", "4", "--time=90", "--partition", "a b"),
            (2, 4, 8, "90", "--partition=a b"),
        ),
        (("--cpus_per_gpu=12",), (1, 1, 12, "24:00:00")),
    ],
)
def test_submits_and_prints_the_same_on_a_dry_run(shell, arguments, expected):
    expected = _sbatch(shell.root, *expected)
    status, output, errors = shell.run("slurm.sh", *arguments, "--dry_run", "--", *PROGRAM)
    assert (status, errors, shell.recorded()) == (0, "", [])
    assert shlex.split(output) == expected
    assert shell.run("slurm.sh", *arguments, "--", *PROGRAM) == (0, "", "")
    assert shell.recorded() == [expected]


def test_options_of_the_program_may_be_written_without_an_equals_sign(shell):
    program = ("--config", "baseline", "--workdir", "/shared/a run")
    status, output, _ = shell.run("slurm.sh", "--dry_run", "--", *program)
    assert (status, shlex.split(output)[-4:]) == (0, list(program))


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (75, True), (143, False)])
def test_job_goes_back_into_the_queue_only_if_it_was_stopped(shell, status, requeued):
    job = {"SLURM_JOB_ID": "17", "SLURM_CPUS_PER_TASK": "8", "STUB_srun": f"exit {status}"}
    assert shell.run("slurm_job.sh", *PROGRAM, **job)[0] == status
    program = ["python", "-m", "ftbnn_jax.main", "--distributed=slurm", *PROGRAM]
    srun = ["srun", "--cpus-per-task=8", "--gpu-bind=none", "--kill-on-bad-exit=0", *program]
    assert shell.recorded() == [srun] + [["scontrol", "requeue", "17"]] * requeued


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (PROGRAM, "--config: no such option; there are --nodes"),
        (("--nodes=0", "--", *PROGRAM), "--nodes=0: must be 1 or more"),
        (("--gpus_per_node=all", "--", *PROGRAM), "--gpus_per_node=all: must be 1 or more"),
        (("--time", "--", *PROGRAM), "--time: needs a value"),
        (("configs/baseline.py",), "configs/baseline.py: unexpected"),
        (("--", PROGRAM[0]), "--workdir=...: must be given, after --"),
        ((), "--config=...: must be given, after --"),
    ],
)
def test_mistake_is_one_line(shell, arguments, words):
    status, output, errors = shell.run("slurm.sh", *arguments)
    assert (status, output, shell.recorded()) == (2, "", [])
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert words in errors
