"""A run on a folder of images finds out what its config leaves open, and keeps it."""

import dataclasses
import json
import shutil

import pytest
from PIL import Image

from ftbnn_jax import config as config_lib
from ftbnn_jax import main
from ftbnn_jax.data import sets
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures
from ftbnn_jax.train import checkpoint, evaluation, loop, opening


def draw(folder, number, level):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), level).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps, its config and its images: all pixels of class b are 100 brighter."""
    directory = tmp_path_factory.mktemp("own")
    for split, count in (("train", 8), ("val", 2)):
        for number in range(count):
            draw(directory / split / "a", number, 50)
            draw(directory / split / "b", number, 150)
    config = config_lib.TrainConfig(
        architectures.small((1,), 8),
        dataset=f"folder:{directory}",
        image_size=8,
        num_classes=0,
        batch_size=8,
        num_steps=2,
        augment="none",
        pixel_mean=(),
        pixel_std=(),
    )
    workdir = directory.with_name("run")
    loop.train(config, str(workdir))
    return config, workdir, directory


def test_a_checkpoint_holds_what_was_found(run, capsys):
    config, workdir, _ = run
    _, experiment, _ = checkpoint.load_variables(str(workdir))
    found = {name: experiment["config"][name] for name in config.from_data}
    assert found == {"num_classes": 2, "pixel_mean": [100.0], "pixel_std": [50.0]}
    assert experiment["class_names"] == ["a", "b"]
    assert json.loads((workdir / "config.json").read_text())["pixel_std"] == [50.0]
    # An index each of train and val.
    assert len(list(workdir.glob("images-*.npz"))) == 2
    assert evaluation.evaluate(config, str(workdir))["count"] == 4


def test_a_run_goes_on_with_what_it_found_when_it_began(run):
    config, workdir, directory = run
    draw(directory / "train" / "a", 9, 250)
    (filled, split) = opening.open_training(config, str(workdir))
    assert split.num_examples == 17
    assert (filled.pixel_mean, filled.pixel_std) == ((100.0,), (50.0,))
    other = directory.with_name("other")
    shutil.copytree(directory, other)
    draw(other / "train" / "c", 1, 0)
    with pytest.raises(UserError, match=r"config\.num_classes=2: folder:.* has 3"):
        opening.open_training(dataclasses.replace(config, dataset=f"folder:{other}"), str(workdir))


def test_export_and_verification_look_at_no_statistics(run, monkeypatch, capsys):
    config, workdir, directory = run
    text = f"""
from ftbnn_jax import config
from ftbnn_jax.nn import architectures
def get_config():
    return config.make(
        architectures.small((1,), 8), dataset={config.dataset!r}, image_size=8, num_classes=0,
        augment="none", pixel_mean=(), pixel_std=(),
    )
"""
    (directory / "own.py").write_text(text)
    given = [f"--config={directory / 'own.py'}", f"--workdir={workdir}"]
    assert main.main([*given, "--mode=export"]) == 0
    assert main.main([*given, "--mode=verify", "--num_images=0"]) == 0
    # Of two images a class.
    assert "4" in capsys.readouterr().out.split()


def test_a_budget_needs_the_number_of_classes(run):
    config, _, _ = run
    with pytest.raises(UserError, match=r"config\.num_classes=0: .*give a number"):
        config.check_classes()
    dataclasses.replace(config, num_classes=3).check_classes()
    assert (
        sets.open_split(dataclasses.replace(config, dataset="fake"), train=False).class_names[-1] == "9"
    )
