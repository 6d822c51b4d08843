"""The benchmark's numbers follow from each other, and its mistakes are told in one line."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ftbnn_jax import config as config_lib
from ftbnn_jax.bench import input as input_benchmark
from ftbnn_jax.data import sets
from ftbnn_jax.nn import architectures

CONFIG = config_lib.TrainConfig(architectures.small((1,), 8), image_size=16, batch_size=8)


@pytest.fixture(scope="module")
def result(tmp_path_factory, write_split):
    directory = tmp_path_factory.mktemp("images")
    images = []
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 30 + number, 3), np.uint8)
        Image.fromarray(pixels).save(directory / "image.jpg")
        images.append((directory / "image.jpg").read_bytes())
    split = write_split(directory, images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sets, "open_split", lambda config, train: split)
        patch.setattr(input_benchmark, "_ROUNDS", 1)
        return input_benchmark.measure(CONFIG, 0.4)


def test_numbers_follow_from_each_other(result):
    rates = result["images_per_second"]
    assert set(rates) == {"pipeline", "fused", "decode_then_crop", "pil"}
    for name, ratio in result["pipeline_over"].items():
        assert ratio == pytest.approx(rates["pipeline"] / rates[name])
    assert result["images_per_second_per_core"] == rates["pipeline"] / result["cores"]
    for rate, cores in result["cores_for"].items():
        assert cores == math.ceil(int(rate) * result["cores"] / rates["pipeline"])
    assert list(result["cores_for"]) == ["500", "1000", "2500", "5000"]
    assert result["images"] == 6


def test_tables_say_what_each_variant_does(result, capsys):
    input_benchmark.print_tables(result)
    text = capsys.readouterr().out
    for words in (
        "6 images on",
        "TensorFlow: decode, then crop",
        "PIL",
        "cores that feed it",
        "5,000",
    ):
        assert words in text
    json.dumps(result)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seconds=0"], "--seconds=0"),
        (["--config=configs/derived18.py"], "the nearest is configs/derived18_g"),
        (["--config=configs/quickstart.py"], "config.augment='pad_crop'"),
        (["--data_dir=nowhere"], "ftbnn_jax.data.prepare imagenet2012 --data_dir=nowhere"),
    ],
)
def test_mistakes_are_told_in_one_line(repository, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(repository)
    assert input_benchmark.main(arguments) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert words in text


def test_module_is_the_command(repository):
    command = [sys.executable, "-m", input_benchmark.__name__, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository, check=True)
    assert "--seconds" in done.stdout
