import json
import os
import signal
import sys
import threading
import time

import pytest
import runs

from ftbnn_jax import command
from ftbnn_jax.errors import UserError
from ftbnn_jax.experiments import members, sweep, table3
from ftbnn_jax.host import lock

# In the place of a training: writes down that it was started and on how many cores, then does what the
# config's argument says.
_STUB = """
import json, os, pathlib, signal, sys, time
options = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
folder = pathlib.Path(options["workdir"])
with open(folder / "started", "a") as stream:
    print(len(os.sched_getaffinity(0)), file=stream)
action = options["config"].partition(":")[2]
if action == "fail":
    sys.exit("error: no luck")
if action == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (folder / "ready").touch()
    time.sleep(60)
(folder / "config.json").write_text("{}")
result = {"step": 1, "kind": "eval", "accuracy": 0.5 + int(options["config.seed"]) / 10}
(folder / "metrics.jsonl").write_text(json.dumps(result) + chr(10))
"""


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(members, "_MAIN", [sys.executable, "-c", _STUB])


def _members(*actions, seeds=(0,)):
    return [members.Member(a, f"x.py:{a}", seed) for seed in seeds for a in actions]


def _starts(workdir):
    return sum(len(p.read_text().splitlines()) for p in workdir.rglob("started"))


def test_every_run_is_made_once_and_kept(tmp_path, stub):
    wanted = _members("a", "b", seeds=(0, 1))
    assert sweep.run(wanted, str(tmp_path)) == 0
    assert _starts(tmp_path) == 4
    assert sweep.run(wanted, str(tmp_path)) == 0
    assert _starts(tmp_path) == 4
    assert sweep.accuracies(wanted, str(tmp_path)) == {"a": [0.5, 0.6], "b": [0.5, 0.6]}


def test_shards_divide_the_runs(tmp_path, stub):
    wanted = _members("a", "b", "c", seeds=(0, 1))
    found = []
    for part in (1, 2):
        sweep.run(wanted, str(tmp_path), shard=(part, 2))
        found.append(_starts(tmp_path))
    assert found == [3, 6]


def test_of_two_sweeps_each_makes_what_the_other_does_not(tmp_path, stub, capsys):
    wanted = _members("a", "b", "c")
    with lock.held(wanted[0].directory(str(tmp_path)), "sweep"):
        # The other one has finished this since the first look.
        started = sweep._start

        def meanwhile(member, workdir, cores):
            if member.name == "b":
                wanted[1].finish(workdir)
            return started(member, workdir, cores)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sweep, "_start", meanwhile)
            os.makedirs(wanted[1].directory(str(tmp_path)))
            assert sweep.run(wanted, str(tmp_path)) == 0
    output, errors = capsys.readouterr()
    assert errors.startswith(f"warning: a seed 0: left out; --workdir={tmp_path}/a/seed0: is in use by ")
    assert errors.count("\n") == 1
    assert output.startswith("1/1  c seed 0  50.00%")
    assert [p.parent.parent.name for p in tmp_path.rglob("started")] == ["c"]
    # A user's file of the name that the mark had before it was whole.
    (tmp_path / "a" / "seed0" / "finished.json.new").write_text("mine")
    assert sweep.run(_members("a"), str(tmp_path)) == 0
    assert (tmp_path / "a" / "seed0" / "finished.json.new").read_text() == "mine"
    assert sweep.run(_members("a"), str(tmp_path)) == 0
    assert _starts(tmp_path) == 2


def test_jobs_share_the_cores(tmp_path, stub):
    cores = len(os.sched_getaffinity(0))
    assert sweep.run(_members("a", "b"), str(tmp_path), jobs=2) == 0
    starts = [int(path.read_text()) for path in tmp_path.rglob("started")]
    assert sum(starts) == max(cores, 2)
    assert len(os.sched_getaffinity(0)) == cores


def test_a_failure_is_told_and_the_others_go_on(tmp_path, stub, capsys):
    wanted = _members("fail", "a")
    assert sweep.run(wanted, str(tmp_path)) == 1
    assert "fail seed 0: exit status 1; error: no luck" in capsys.readouterr().err
    assert sweep.accuracies(wanted, str(tmp_path)) == {"fail": [], "a": [0.5]}
    # A failed run is tried again.
    assert sweep.run(wanted, str(tmp_path)) == 1
    assert _starts(tmp_path) == 3


def test_an_interrupt_is_handed_to_the_runs(tmp_path, stub, capsys):
    def interrupt():
        while not (tmp_path / "wait" / "seed0" / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    started = time.monotonic()
    assert sweep.run(_members("wait", "a"), str(tmp_path)) == command.UNFINISHED
    assert time.monotonic() - started < 30
    assert "the same command goes on" in capsys.readouterr().err
    # Nothing new was begun.
    assert _starts(tmp_path) == 1


def test_a_finished_run_of_other_options_is_not_taken_for_this_one(tmp_path, stub):
    sweep.run(_members("a"), str(tmp_path))
    other = members.Member("a", "x.py:a", 0, ("--config.num_epochs=2",))
    with pytest.raises(UserError, match=r"finished\.json.*take another --workdir"):
        sweep.run([other], str(tmp_path))


def test_a_config_that_does_not_load_ends_a_sweep_before_it_begins(tmp_path):
    with pytest.raises(UserError, match="nope"):
        sweep.main([str(runs.CONFIGS / "ablation.py:nope"), f"--workdir={tmp_path}"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x"], "-- x: must be --config.KEY=VALUE"),
        (["--workdir=x"], "-- --workdir=x: must be --config.KEY=VALUE"),
        (["--config.seed=1"], "-- --config.seed=1: must be --config.KEY=VALUE, and no seed"),
        (["--config.no=1"], r"config\.no: no such key"),
        (["--config.batch_size=x"], "config.batch_size='x'"),
    ],
)
def test_what_is_handed_to_all_runs_is_looked_at_before_the_first(tmp_path, arguments, message):
    command = [str(runs.CONFIGS / "quickstart.py"), f"--workdir={tmp_path}/sweep", "--", *arguments]
    with pytest.raises(UserError, match=message):
        sweep.main(command)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds=1,x"], "1,x"),
        (["--jobs=0"], "'0' is not a whole number of at least 1"),
        (["--shard=3/2"], "'3/2': I/N expected"),
        (["--rows=prelu,bogus"], "there is no 'bogus'; there are bireal_published, bireal"),
        (["--dataset=mnist"], "mnist"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        table3.main([f"--workdir={tmp_path}", "--report", *arguments])


def test_table_3_shows_finished_runs_beside_the_published_numbers(tmp_path, capsys):
    for seed, accuracy in ((0, 0.61), (1, 0.63)):
        member = members.Member("prelu", "ablation:prelu,cifar10", seed)
        runs.write(tmp_path / "prelu" / f"seed{seed}", [accuracy])
        member.finish(str(tmp_path))
    options = ["--dataset=cifar10", "--rows=prelu,none", "--seeds=0,1,2", "--report"]
    assert table3.main([f"--workdir={tmp_path}/other", *options, "--grid=batch_size=50"]) == 0
    assert "prelu-batch_size=50" in (output := capsys.readouterr().out) and "58.9 / 81.1" in output
    output = tmp_path / "found"
    assert table3.main([f"--workdir={tmp_path}", *options, f"--output={output}"]) == 0
    saved = [
        (row["name"], row["accuracy"]) for row in json.loads(output.with_suffix(".json").read_text())
    ]
    assert saved == [("prelu", [0.61, 0.63]), ("none", [])]
    assert output.with_suffix(".png").exists()
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "prelu" in line]
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "prelu",
        "2",
        "62.00 ± 1.41",
        "58.9 / 81.1",
    ]


def test_a_grid_is_a_run_for_every_combination(tmp_path, stub, capsys):
    command = [
        *("quickstart", f"--workdir={tmp_path}", "--seeds=1"),
        *("--grid", "learning_rate=0.003,0.01", "--grid=model.blocks=(1,1), (2,2)"),
        f"--output={tmp_path}/found",
        *("--", "--config.num_steps=2"),
    ]
    for _ in range(2):
        assert sweep.main(command) == 0
        rows = [
            [cell.strip() for cell in line.strip("│").split("│")]
            for line in capsys.readouterr().out.splitlines()
            if line.startswith("│")
        ]
        names = [
            f"quickstart-learning_rate={rate}-model.blocks={blocks}"
            for rate in ("0.003", "0.01")
            for blocks in ("1,1", "2,2")
        ]
        assert rows == [[name, "1", "60.00"] for name in names]
        # The second time finds all of them finished.
        assert _starts(tmp_path) == 4
    saved = json.loads((tmp_path / "found.json").read_text())
    assert [(row["name"], row["accuracy"]) for row in saved] == [(name, [0.6]) for name in names]
    assert saved[0]["overrides"] == [
        *("--config.num_steps=2", "--config.learning_rate=0.003", "--config.model.blocks=(1,1)")
    ]
    (member, *_) = members.make({"a": command[0]}, [1], [], {"model.groups": ["1"]})
    assert member.overrides == ("--config.model.groups=1",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid=learning_rate"], r"--grid=learning_rate: must be KEY=VALUE,VALUE$"),
        (["--grid==1"], "must be KEY=VALUE,VALUE"),
        (["--grid=seed=1,2"], "--grid=seed=1,2: --seeds gives the seeds"),
        (["--grid=batch_size=8,,9"], "must be KEY=VALUE,VALUE"),
        (["--grid=model.blocks=(1,1"], "must be KEY=VALUE,VALUE"),
        (["--grid=batch_size=8,8"], "a value is given twice"),
        (["--grid=flip=true", "--grid=flip=false"], "--grid=flip=false: flip is given twice"),
        (
            ["--grid=learning_rat=1"],
            r"config\.learning_rat: no such key; the nearest is config.learning_rate",
        ),
        (["--grid=batch_size=8,x"], "config.batch_size='x'"),
        (["--grid=train_split=a/b,a-b"], "train_split=a-b would share the directory"),
        (["--grid=batch_size=8", "--", "--config.batch_size=9"], "batch_size: given 2 times"),
    ],
)
def test_a_grid_that_cannot_be_is_told_before_the_first_run(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        sweep.main(["quickstart", f"--workdir={tmp_path}/sweep", *options])
    assert not list(tmp_path.iterdir())


def test_two_configs_of_one_name_are_told(tmp_path):
    config = "quickstart"
    with pytest.raises(UserError, match=r"quickstart would share the directory quickstart"):
        sweep.main([config, config, f"--workdir={tmp_path}/sweep"])


def test_a_sweep_trains(tmp_path, capsys):
    options = [f"--workdir={tmp_path}", "--seeds=3", "--", "--config.num_steps=2"]
    assert sweep.main(["quickstart", *options]) == 0
    assert "quickstart" in capsys.readouterr().out
    assert (tmp_path / "quickstart" / "seed3" / "checkpoints" / "2").is_dir()
