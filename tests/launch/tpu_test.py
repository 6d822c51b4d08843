"""Cloud TPU: which commands are run, in which order, told by a gcloud that only records them."""

import shlex
import time

import pytest

VM = ["gcloud", "compute", "tpus", "tpu-vm"]
QUEUE = ["gcloud", "compute", "tpus", "queued-resources"]
PLACE = ["--zone=us-central2-b"]
NAME = ("--name=slice", "--zone", "us-central2-b")
KIND = ("--type=v4-16", "--version", "tpu-ubuntu2204-base")
PROGRAM = ("--config=configs/derived44_g5.py:90", "--workdir", "gs://bucket/a run")
OVERRIDES = ("--config.model.blocks=(2,2)", "--config.dataset=it's", "--json")

ASK = [*VM, "describe", "slice", *PLACE, "--format=value(state)"]
ASK_QUEUE = [*QUEUE, "describe", "slice", *PLACE, "--format=value(state.state)"]
CREATE = [*VM, "create", "slice", *PLACE, "--accelerator-type=v4-16", "--version=tpu-ubuntu2204-base"]
CREATE_QUEUED = [*QUEUE, "create", "slice", "--node-id=slice", *PLACE]
CREATE_QUEUED += ["--accelerator-type=v4-16", "--runtime-version=tpu-ubuntu2204-base"]
DELETE = [*VM, "delete", "slice", *PLACE, "--quiet"]
DELETE_QUEUED = [*QUEUE, "delete", "slice", *PLACE, "--force", "--quiet"]
ARCHIVE = "build/ftbnn_jax.tar.gz"
ON_ALL = [*VM, "ssh", "slice", *PLACE, "--worker=all"]
UNPACK = "flock --nonblock --verbose ftbnn_jax.lock tar -xzf ftbnn_jax.tar.gz"
WORKER = "bash ftbnn_jax/launch/tpu_worker.sh"
SETUP = [
    ["git", "archive", "--prefix=ftbnn_jax/", f"--output={ARCHIVE}", "HEAD"],
    [*VM, "scp", ARCHIVE, "slice:", *PLACE, "--worker=all"],
    [*ON_ALL, f"--command={UNPACK} && {WORKER} setup"],
]
RUN = [
    *ON_ALL,
    f"--command={WORKER} run --config=configs/derived44_g5.py:90 "
    r"--workdir=gs://bucket/a\ run --config.model.blocks=\(2\,2\) --config.dataset=it\'s --json",
]
# What `describe` answers, one word a call; the last one stays.
ANSWER = """
if [[ " $* " == *" describe "* ]]; then
  read -r first rest <"$RECORD.states"
  echo "${rest:-$first}" >"$RECORD.states"
  [[ $first != NOT_FOUND ]] || { echo "ERROR: NOT_FOUND: Resource was not found" >&2; exit 1; }
  [[ $first != DENIED ]] || { echo "ERROR: PERMISSION_DENIED" >&2; exit 1; }
  echo "$first"
fi
"""


@pytest.fixture
def tpu(shell, tmp_path):
    """Runs launch/tpu.sh; returns status, output, errors and the commands it called."""

    def run(*arguments, states=("READY",), stub=ANSWER):
        (tmp_path / "record.states").write_text(" ".join(states) + "\n")
        return *shell.run("tpu.sh", *arguments, STUB_gcloud=stub), shell.recorded()

    return run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("create", *NAME, *KIND), [CREATE]),
        (("create", *NAME, *KIND, "--spot"), [[*CREATE, "--spot"]]),
        (("create", *NAME, *KIND, "--queued"), [CREATE_QUEUED]),
        (("create", *NAME, *KIND, "--queued", "--spot"), [[*CREATE_QUEUED, "--spot"]]),
        (("delete", *NAME), [DELETE]),
        (("delete", *NAME, "--queued"), [DELETE_QUEUED]),
        (("delete", *NAME, "--project=my"), [[*DELETE[:-1], "--project=my", "--quiet"]]),
        (("wait", *NAME), [ASK]),
        (("status", *NAME), [ASK]),
        (("setup", *NAME), SETUP),
        (("run", *NAME, *PROGRAM, "--", *OVERRIDES), [RUN]),
        (
            ("run", *NAME, "--config=baseline", "--workdir=/mnt/run", "--data_dir=/mnt/d"),
            [
                [
                    *ON_ALL,
                    f"--command={WORKER} run --config=baseline --workdir=/mnt/run "
                    "--config.data_dir=/mnt/d",
                ]
            ],
        ),
        (
            ("logs", *NAME),
            [[*ON_ALL, "--command=tail -n 20 ftbnn_jax.log"]],
        ),
        (
            ("attach", *NAME),
            [[*VM, "ssh", "slice", *PLACE, "--worker=0", "--command=tail -n 20 -F ftbnn_jax.log"]],
        ),
    ],
)
def test_commands_and_the_same_ones_on_a_dry_run(tpu, arguments, expected):
    status, output, errors, called = tpu("--dry_run", *arguments)
    assert (status, errors, called) == (0, "", [])
    printed = [shlex.split(line) for line in output.splitlines()]
    assert [words for words in printed if words[0] != "mkdir"] == expected
    status, _, errors, called = tpu(*arguments)
    assert (status, errors, called) == (0, "", expected)


@pytest.mark.parametrize(
    ("states", "flags", "expected"),
    [
        (["PREEMPTED", "CREATING", "READY"], (), [ASK, DELETE, CREATE, ASK, ASK, *SETUP, RUN]),
        (["NOT_FOUND", "READY"], (), [ASK, CREATE, ASK, *SETUP, RUN]),
        (["READY"], (), [ASK, ASK, RUN]),
        (["REPAIRING", "READY"], (), [ASK, ASK, RUN]),
        (
            ["ACTIVE", "PREEMPTED", "ACCEPTED", "WAITING_FOR_RESOURCES", "ACTIVE", "READY"],
            ("--queued",),
            [ASK_QUEUE, ASK, DELETE_QUEUED, CREATE_QUEUED, *[ASK_QUEUE] * 3, ASK, *SETUP, RUN],
        ),
        (
            ["SUSPENDED", "ACTIVE", "READY"],
            ("--queued", "--spot"),
            [ASK_QUEUE, DELETE_QUEUED, [*CREATE_QUEUED, "--spot"], ASK_QUEUE, ASK, *SETUP, RUN],
        ),
    ],
)
def test_resume_does_what_is_needed(tpu, states, flags, expected):
    status, _, errors, called = tpu(
        "resume", *NAME, *KIND, *PROGRAM, *flags, "--", *OVERRIDES, states=states
    )
    assert (status, errors) == (0, "")
    assert called == expected


@pytest.mark.parametrize("flags", [(), ("--queued",), ("--spot",)])
def test_resume_prints_what_it_does_after_a_preemption(tpu, flags):
    arguments = ("resume", *NAME, *KIND, *PROGRAM, *flags, "--", *OVERRIDES)
    status, output, errors, called = tpu("--dry_run", *arguments)
    assert (status, errors, called) == (0, "", [])
    printed = [shlex.split(line, comments=True) for line in output.splitlines()]
    active = ["ACTIVE"] if "--queued" in flags else []
    states = [*active, "PREEMPTED", *active, "READY"]
    status, _, errors, called = tpu(*arguments, states=states)
    assert (status, errors) == (0, "")
    assert [words for words in printed if words and words[0] != "mkdir"] == called


def test_resume_sets_up_workers_that_were_not(tpu):
    fails_once = '[[ $* != *"worker.sh run"* ]] || ! mkdir "$RECORD.failed" 2>/dev/null || exit 1'
    status, _, _, called = tpu(
        "resume", *NAME, *KIND, *PROGRAM, "--", *OVERRIDES, stub=ANSWER + fails_once
    )
    assert status == 0
    assert called == [ASK, ASK, RUN, *SETUP, RUN]


@pytest.mark.parametrize(
    ("action", "states", "words", "expected"),
    [
        ("wait", ["CREATING", "PREEMPTED"], "slice: PREEMPTED instead of READY", [ASK, ASK]),
        ("wait", ["DENIED"], "PERMISSION_DENIED", [ASK]),
        ("resume", ["DENIED"], "PERMISSION_DENIED", [ASK]),
        ("resume", ["DELETING"], "slice: DELETING instead of READY", [ASK, ASK]),
    ],
)
def test_stops_where_it_can_not_go_on(tpu, action, states, words, expected):
    options = (*KIND, *PROGRAM) if action == "resume" else ()
    status, _, errors, called = tpu(action, *NAME, *options, states=states)
    assert status == 1
    assert words in errors
    assert called == expected


def test_a_failed_command_ends_resume(tpu):
    stub = ANSWER + '[[ " $* " != *" create "* ]] || exit 3'
    status, _, _, called = tpu("resume", *NAME, *KIND, *PROGRAM, states=["NOT_FOUND"], stub=stub)
    assert status == 3
    assert called == [ASK, CREATE]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "action '': must be one of create"),
        (("start", *NAME), "action 'start': must be one of create"),
        (("delete", "now", *NAME), "now: unexpected"),
        (("delete", "--nmae=x"), "--nmae: no such option; there are --name"),
        (("delete", "-n", "x"), "-n: no such option"),
        (("delete", "--zone=z"), "--name: must be given"),
        (("delete", "--name=x"), "--zone: must be given"),
        (("delete", "--name", "--zone=z"), "--name: needs a value"),
        (("delete", "--zone=z", "--name"), "--name: needs a value"),
        (("delete", "--zone=z", "--name="), "--name: needs a value"),
        (("delete", *NAME, "--queued=yes"), "--queued takes no value"),
        (("delete", *NAME, "--", "--json"), "delete takes no arguments"),
        (("create", *NAME), "--type: must be given for create"),
        (("run", *NAME), "--config: must be given for run"),
        (("run", *NAME, "--config=configs/base.py", "--workdir=gs://b"), "--config=configs/base.py"),
        (("run", *NAME, "--config=configs/baseline.py", "--workdir=runs/x"), "--workdir=runs/x: must"),
    ],
)
def test_mistake_is_one_line(tpu, arguments, words):
    status, output, errors, called = tpu(*arguments)
    assert (status, output, called) == (2, "", [])
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert words in errors


def test_arguments_reach_the_program_on_a_worker_as_they_were(tpu, shell, tmp_path):
    """The stub runs what would be run on a worker; a stub there stands in for Python."""
    home = tmp_path / "home"
    (home / "ftbnn_jax").symlink_to(shell.root)
    python = shell.root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/usr/bin/env bash\nprintf "%s|" "$@"\nsleep "$PYTHON_SECONDS"\nexit 75\n')
    python.chmod(0o755)
    on_worker = 'for last; do :; done; cd; bash -c "${last#--command=}"'
    arguments = ("run", *NAME, *PROGRAM, "--", *OVERRIDES)

    status, _, errors, _ = tpu(*arguments, stub=on_worker)
    assert status != 0
    assert "not set up" in errors

    (shell.root / ".venv" / "installed").touch()
    shell.environment["PYTHON_SECONDS"] = "2"
    status, output, _, _ = tpu(*arguments, stub=on_worker)
    assert status == 0
    assert "started" in output
    status, output, _, _ = tpu(*arguments, stub=on_worker)
    assert status == 0
    assert "running already" in output

    log = home / "ftbnn_jax.log"
    deadline = time.monotonic() + 30
    while "exit status" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    expected = ["-m", "ftbnn_jax.main", "--distributed=tpu", PROGRAM[0], f"--workdir={PROGRAM[2]}"]
    assert log.read_text() == "|".join([*expected, *OVERRIDES]) + "|exit status 75\n"
