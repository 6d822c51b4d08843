"""Checkpoints: what comes back, what is kept, and what happens to damaged or foreign ones."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from ftbnn_jax import config as config_lib
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures
from ftbnn_jax.train import checkpoint, optimizer, state

CONFIG = config_lib.TrainConfig(
    architectures.small((1, 1), 4, groups=3), image_size=8, num_classes=3, keep_checkpoints=2
)
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def initial() -> state.TrainState:
    return jax.jit(lambda: state.init(CONFIG, 1, optimizer.make(CONFIG, 10)))()


def at_step(initial, step):
    """A state that tells its step in every array."""
    moved = jax.tree.map(lambda x: x + np.asarray(step, x.dtype), initial)
    return moved.replace(step=jax.numpy.asarray(step, "int32"))


def opened(workdir, config=CONFIG, channels=1):
    return checkpoint.Checkpoints(str(workdir), config, channels, NAMES)


def save_steps(workdir, initial, accuracies):
    with opened(workdir) as checkpoints:
        for step, accuracy in accuracies.items():
            checkpoints.save(at_step(initial, step), step, accuracy)


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
        jax.tree.map(np.testing.assert_array_equal, variables["batch_stats"], expected.batch_stats)
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


@pytest.mark.parametrize(
    ("config", "channels", "message"),
    [
        (
            dataclasses.replace(CONFIG, model=architectures.small((1, 1), 4, groups=2)),
            1,
            r"config\.model\.groups=3 there, 2 here",
        ),
        (dataclasses.replace(CONFIG, num_classes=5), 1, r"config\.num_classes=3 there, 5 here"),
        (CONFIG, 3, "channels of the images=1 there, 3 here"),
    ],
)
def test_other_architecture_is_refused(tmp_path, initial, config, channels, message):
    save_steps(tmp_path, initial, {5: None})
    with opened(tmp_path, config, channels) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.restore_latest(initial)
    assert steps_in(tmp_path) == [5]


def test_changed_recipe_is_told(tmp_path, initial, capsys):
    save_steps(tmp_path, initial, {5: None})
    with opened(tmp_path, dataclasses.replace(CONFIG, batch_size=8)) as checkpoints:
        assert checkpoints.restore_latest(initial) is not None
    assert capsys.readouterr().err == (
        "warning: config.batch_size is now 8; the checkpoint was made with 256\n"
    )


def test_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--workdir=.*file/run: cannot be written"):
        opened(tmp_path / "file" / "run")
