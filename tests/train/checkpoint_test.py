"""Checkpoints: what comes back, what is kept, and what happens to damaged or foreign ones."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from ftbnn_jax import config as config_lib
from ftbnn_jax import networks
from ftbnn_jax.data import sets
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures
from ftbnn_jax.train import checkpoint, optimizer, state

CONFIG = config_lib.TrainConfig(
    architectures.small((1, 1), 4, groups=3),
    dataset="fake",
    image_size=8,
    num_classes=3,
    keep_checkpoints=2,
)
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def initial() -> state.TrainState:
    return jax.jit(
        lambda: state.init(CONFIG, 1, optimizer.make(CONFIG, 10, networks.weights(CONFIG, 1)))
    )()


def at_step(initial, step):
    """A state that tells its step in every array."""
    moved = jax.tree.map(lambda x: x + np.asarray(step, x.dtype), initial)
    return moved.replace(step=jax.numpy.asarray(step, "int32"))


SPLIT = sets.ArraySplit(np.zeros((2, 8, 8, 1), np.uint8), np.zeros(2, np.int32), NAMES)


def opened(workdir, config=CONFIG):
    return checkpoint.Checkpoints(str(workdir), config, SPLIT)


def save_steps(workdir, initial, accuracies):
    with opened(workdir) as checkpoints:
        for step, accuracy in accuracies.items():
            checkpoints.save(at_step(initial, step), step)
            if accuracy is not None:
                checkpoints.rate(step, accuracy)
        return checkpoints.best()


def steps_in(workdir) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def test_everything_comes_back(tmp_path, initial):
    save_steps(tmp_path, initial, {7: None})
    with opened(tmp_path) as checkpoints:
        restored = checkpoints.restore_latest(initial)
    expected = at_step(initial, 7)
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_nothing_to_restore(tmp_path, initial):
    with opened(tmp_path / "new") as checkpoints:
        assert checkpoints.restore_latest(initial) is None


def test_latest_and_best_are_kept(tmp_path, initial):
    save_steps(tmp_path, initial, {1: 0.3, 2: 0.9, 3: None, 4: 0.5, 5: None, 6: 0.6})
    assert steps_in(tmp_path) == [2, 5, 6]
    for which, step in (("latest", 6), ("best", 2), ("5", 5)):
        variables, experiment, found = checkpoint.load_variables(str(tmp_path), which)
        assert found == step
        expected = at_step(initial, step)
        jax.tree.map(np.testing.assert_array_equal, variables["params"], expected.params)
        jax.tree.map(
            np.testing.assert_array_equal, variables["batch_stats"], expected.collections["batch_stats"]
        )
    assert tuple(experiment["class_names"]) == NAMES
    assert experiment["channels"] == 1


@pytest.mark.parametrize(
    ("which", "message"),
    [("4", "--checkpoint=4: must be latest, best, or one of 3"), ("bset", "--checkpoint=bset: must be")],
)
def test_unknown_checkpoint(tmp_path, initial, which, message):
    save_steps(tmp_path, initial, {3: None})
    with pytest.raises(UserError, match=message):
        checkpoint.load_variables(str(tmp_path), which)


def test_best_without_evaluation(tmp_path, initial):
    save_steps(tmp_path, initial, {3: None})
    with pytest.raises(UserError, match="no checkpoint was evaluated"):
        checkpoint.load_variables(str(tmp_path), "best")


def damage_data(directory: pathlib.Path) -> None:
    """Halves the largest file, where the arrays are."""
    file = max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage_everything(directory: pathlib.Path) -> None:
    for file in directory.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage_experiment(directory: pathlib.Path) -> None:
    (file,) = [p for p in (directory / "experiment").rglob("metadata") if p.is_file()]
    file.write_bytes(file.read_bytes()[:20])


@pytest.mark.parametrize("damage", [damage_data, damage_everything, damage_experiment])
def test_damaged_checkpoint_falls_back_and_says_so(tmp_path, initial, damage, capsys):
    save_steps(tmp_path, initial, {5: None, 6: None})
    damage(tmp_path / "checkpoints" / "6")
    with opened(tmp_path) as checkpoints:
        restored = checkpoints.restore_latest(initial)
        jax.tree.map(np.testing.assert_array_equal, restored, at_step(initial, 5))
        warning = capsys.readouterr().err
        assert warning.count("\n") == 1
        assert "checkpoints/6: damaged" in warning
        # The run comes to step 6 again and saves it; the damaged one is not lost.
        checkpoints.save(at_step(initial, 6), 6)
    assert (tmp_path / "checkpoints_damaged" / "6").is_dir()
    assert checkpoint.load_variables(str(tmp_path))[2] == 6


def test_no_readable_checkpoint_is_no_fresh_start(tmp_path, initial):
    save_steps(tmp_path, initial, {5: None, 6: None})
    for step in "56":
        damage_everything(tmp_path / "checkpoints" / step)
    with (
        opened(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"none of its checkpoints \(6, 5\)"),
    ):
        checkpoints.restore_latest(initial)
    assert steps_in(tmp_path) == [5, 6]


def test_another_network_is_refused(tmp_path, initial):
    """Its config tells, or, where that is equal, its shapes; and neither is taken for damage."""
    save_steps(tmp_path, initial, {5: None})
    other = dataclasses.replace(CONFIG, model=architectures.small((1, 1), 4, groups=2))
    message = r"checkpoints/5: was trained with config\.model\.groups=3, here it is 2; use that value or"
    with opened(tmp_path, other) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.restore_latest(initial)
    bias = {**initial.params["head"], "bias": np.zeros(7, np.float32)}
    other = initial.replace(params={**initial.params, "head": bias})
    message = r"checkpoints/5: params/head/bias: \[3\] in the checkpoint, the network has \[7\]"
    with opened(tmp_path) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.restore_latest(other)
    assert steps_in(tmp_path) == [5]


def test_of_equally_good_ones_the_newest_is_the_best_and_kept(tmp_path, initial):
    assert save_steps(tmp_path, initial, {1: 0.9, 2: 0.9, 3: 0.5, 4: None, 5: None}) == (2, 0.9)
    assert steps_in(tmp_path) == [2, 4, 5]
    assert checkpoint.load_variables(str(tmp_path), "best")[2] == 2
    # An evaluation that was interrupted comes after the next start.
    with opened(tmp_path) as checkpoints:
        checkpoints.rate(5, 0.95)
        assert checkpoints.best() == (5, 0.95)
    assert checkpoint.load_variables(str(tmp_path), "best")[2] == 5


def test_a_damaged_rating_is_told_and_costs_no_weights(tmp_path, initial, capsys):
    save_steps(tmp_path, initial, {1: 0.9, 2: 0.5})
    rating = tmp_path / "checkpoints" / "1" / "metrics" / "metrics"
    assert json.loads(rating.read_text()) == {"accuracy": 0.9}
    rating.write_text('{"accu')
    with pytest.raises(UserError, match=r"1/metrics/metrics: damaged; delete it"):
        checkpoint.load_variables(str(tmp_path))
    with opened(tmp_path) as checkpoints:
        assert checkpoints.best() == (2, 0.5)
        assert checkpoints.restore_latest(initial) is not None
    assert capsys.readouterr().err == f"warning: {rating}: damaged; its step counts as not evaluated\n"
    assert checkpoint.load_variables(str(tmp_path), "1")[2] == 1


def test_numbers_that_are_not_finite_are_no_weights(tmp_path, initial, capsys):
    """Earlier versions could save them, in the optimizer too, which evaluation does not read."""
    bad = at_step(initial, 6)
    bias = {**bad.params["head"], "bias": bad.params["head"]["bias"].at[0].set(np.inf)}
    bad = bad.replace(params={**bad.params, "head": bias})
    worse = at_step(initial, 7)
    worse = worse.replace(opt_state=jax.tree.map(lambda x: x * np.nan if x.ndim else x, worse.opt_state))
    with opened(tmp_path, dataclasses.replace(CONFIG, keep_checkpoints=3)) as checkpoints:
        for step, value in ((5, at_step(initial, 5)), (6, bad), (7, worse)):
            checkpoints.save(value, step)
    message = (
        r"checkpoints/6: params/head/bias holds numbers that are not finite; there are the steps 5, 6, 7"
    )
    with pytest.raises(UserError, match=message):
        checkpoint.load_variables(str(tmp_path), "6")
    with opened(tmp_path, dataclasses.replace(CONFIG, keep_checkpoints=3)) as checkpoints:
        assert int(checkpoints.restore_latest(initial).step) == 5
    lines = capsys.readouterr().err.splitlines()
    told = "holds numbers that are not finite; falling back to the checkpoint before it"
    assert [line.partition(": ")[2].partition(": ")[2] for line in lines] == [told, told]
    assert sorted(p.name for p in (tmp_path / "checkpoints_damaged").iterdir()) == ["6", "7"]


@pytest.mark.parametrize("content", ["{}", "[]", '{"config": {}, "channels": "1", "class_names": []}'])
def test_a_checkpoint_that_does_not_say_what_it_is_of_is_damaged(tmp_path, initial, content, capsys):
    save_steps(tmp_path, initial, {5: None, 6: None})
    (tmp_path / "checkpoints" / "6" / "experiment" / "metadata").write_text(content)
    with pytest.raises(UserError, match=r"checkpoints/6: damaged \(no \w+ beside the weights\)"):
        checkpoint.load_variables(str(tmp_path))
    with opened(tmp_path) as checkpoints:
        assert int(checkpoints.restore_latest(initial).step) == 5
    assert "checkpoints/6: damaged" in capsys.readouterr().err


def test_foreign_files_are_no_checkpoints(tmp_path, initial):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "9").write_text("a file")
    assert not checkpoint.exists(str(tmp_path))
    save_steps(tmp_path, initial, {5: 0.5})
    (folder / "notes.txt").write_text("mine")
    (folder / "old").mkdir()
    with opened(tmp_path) as checkpoints:
        assert int(checkpoints.restore_latest(initial).step) == 5
    assert checkpoint.load_variables(str(tmp_path))[2] == 5
    assert (folder / "notes.txt").read_text() == "mine"


def test_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--workdir=.*file/run: cannot be written"):
        opened(tmp_path / "file" / "run")
