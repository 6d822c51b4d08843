"""The comparison finds shapes, passes what is exact and tells what is not."""

import json

import jax.numpy as jnp
import pytest

from ftbnn_jax.bench import exactness
from ftbnn_jax.nn import architectures
from ftbnn_jax.ops.conv import convolution


@pytest.fixture(autouse=True)
def _in_the_repository(repository, monkeypatch):
    monkeypatch.chdir(repository)


def test_shapes_of_the_baseline_and_of_a_derived_net():
    sizes = {
        (s.size, s.stride, s.features_in, s.features_out)
        for s in exactness.shapes(architectures.baseline(), 224)
    }
    assert sizes == {
        (56, 1, 64, 64),
        (56, 2, 64, 128),
        (28, 1, 128, 128),
        (28, 2, 128, 256),
        (14, 1, 256, 256),
        (14, 2, 256, 512),
        (7, 1, 512, 512),
    }
    found = exactness.shapes(architectures.derived(18, 5), 224)
    # The bridge; a reduction block reads its input twice.
    assert exactness.Shape(56, 1, 32, 248, 1) in found
    assert exactness.Shape(56, 2, 496, 496, 5) in found
    assert exactness.Shape(56, 2, 496, 496, 5).largest_sum == 9 * 100


def test_a_small_nets_sums_are_exact(capsys):
    assert exactness.run(["--config=configs/cifar10.py", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["different"] for row in rows} == {0}
    assert {(row["size"], row["stride"], row["features_in"]) for row in rows} == {
        (16, 1, 32),
        (16, 2, 32),
        (8, 1, 64),
        (8, 2, 64),
        (4, 1, 128),
    }
    for row in rows:
        assert row["sums"] == 2 * row["features_out"] * (row["size"] // row["stride"]) ** 2


def test_rounded_sums_are_told(monkeypatch, capsys):
    """bfloat16 has 8 bits: of the 9 * 100 that a channel of ones can sum up to, not every one."""
    exact = convolution.grouped_conv2d

    def rounded(*arguments, **named):
        return exact(*arguments, **named).astype(jnp.bfloat16).astype(jnp.float32)

    monkeypatch.setattr(convolution, "grouped_conv2d", rounded)
    exactness._device_sums.clear_cache()
    shape = exactness.Shape(6, 2, 61, 12, 2)
    rows = exactness.measure([shape], jnp.float32)
    exactness._device_sums.clear_cache()
    assert 0 < rows[0]["different"] < rows[0]["sums"] == 2 * 3 * 3 * 12
    exactness.print_table(rows, jnp.float32)
    text = capsys.readouterr().out
    assert "Sums that are not exact" in text
    assert "in 1 of 1 shapes; the largest can be 279" in text


def test_a_network_without_binary_convolutions_is_a_mistake(capsys):
    assert exactness.run(["--config=configs/resnet18_fp.py"]) == 2
    assert "resnet18_fp.py: a network without binary convolutions" in capsys.readouterr().err
