"""The paper's numbers, from the traced programs of its nets at 224x224."""

import json
import os
import resource
import subprocess
import sys

import jax
import pytest

from ftbnn_jax import budget, config, published
from ftbnn_jax.budget import figure3
from ftbnn_jax.nn import architectures
from ftbnn_jax.nn.resnet import ResNet

_M = 1e6


@pytest.fixture(scope="module")
def table4(repository):
    """What `--table4 --json` prints, by (budget, layers, groups), and the seconds of CPU it took."""
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(
        [sys.executable, "-m", "ftbnn_jax.budget", "--table4", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rows = {entry["name"]: entry for entry in json.loads(run.stdout)}
    return {key: rows[published.derived_name(*key)] for key in published.TABLE4}, seconds


# (budget, layers, groups), width, FLOPs M, BOPs M, params M: the paper's Table 4, and the width of the
# first stage with which it comes out.
_ROWS = [
    ((90, 18, 1), 100, 19.0, 4516, 1.66),
    ((90, 18, 3), 156, 23.1, 4580, 2.06),
    ((90, 18, 5), 192, 25.8, 4301, 2.28),
    ((90, 18, 8), 232, 28.7, 3988, 2.55),
    ((90, 34, 1), 68, 19.3, 4176, 1.32),
    ((90, 34, 3), 108, 23.8, 4005, 1.59),
    ((90, 34, 5), 136, 27.0, 3829, 1.79),
    ((90, 34, 8), 164, 30.1, 3577, 1.97),
    ((135, 18, 1), 128, 21.1, 7399, 2.42),
    ((135, 18, 3), 198, 26.2, 7285, 2.88),
    ((135, 18, 5), 248, 29.9, 7031, 3.22),
    ((135, 18, 8), 304, 34.0, 6717, 3.60),
    ((135, 34, 1), 88, 21.6, 6994, 1.99),
    ((135, 34, 3), 140, 27.4, 6639, 2.31),
    ((135, 34, 5), 176, 31.5, 6412, 2.56),
    ((135, 34, 8), 216, 36.0, 6090, 2.83),
    ((135, 44, 1), 76, 22.1, 6847, 2.07),
    ((135, 44, 3), 122, 28.5, 6512, 2.33),
    ((135, 44, 5), 154, 32.9, 6251, 2.55),
    ((135, 44, 8), 188, 37.5, 5947, 2.76),
]


@pytest.mark.parametrize(("key", "width", "flops", "bops", "params"), _ROWS)
def test_table_4(table4, key, width, flops, bops, params):
    row = table4[0][key]
    bridge = 0 if key[2] == 1 else 9 * 56 * 56 * width * width / -(-width // 64) / _M
    assert row["flops"] == pytest.approx(flops, abs=0.08)
    assert row["bops_blocks"] == pytest.approx(bops - bridge, abs=1.0)
    assert row["params"] == pytest.approx(params, abs=0.008)
    assert row["total"] == pytest.approx(flops + bops / 64, rel=0.035)
    # Ours is a convolution from the stem's 32 channels; it is no part of the blocks.
    assert row["bops_bridge"] == pytest.approx(9 * 56 * 56 * 32 * width / _M)
    assert row["bops"] == pytest.approx(row["bops_blocks"] + row["bops_bridge"])
    assert row["total"] == pytest.approx(row["flops"] + row["bops"] / 64)
    assert row["published_bridge"] == pytest.approx(bridge)
    found = row["published"]
    assert (found["flops"], found["bops"], found["params"]) == (flops, bops, params)
    assert row["deviation"]["bops_blocks"] == pytest.approx(row["bops_blocks"] - (bops - bridge))


def test_table_4_to_the_printed_digit(table4):
    exact = [key for key, _, flops, _, _ in _ROWS if round(table4[0][key]["flops"], 1) == flops]
    assert set(published.TABLE4) - set(exact) <= {(135, 44, 8)}


def test_table_4_is_there_within_a_minute_on_two_cores(table4):
    assert table4[1] < 2 * 60


@pytest.mark.parametrize("key", published.TABLE4)
def test_parameters_of_table_4_are_the_elements_of_the_variables(table4, key):
    size, layers, groups = key
    assert_counts_are_elements(architectures.derived(layers, groups, size), 3, 1000, table4[0][key])


def assert_counts_are_elements(model, channels, classes, found):
    key = jax.eval_shape(lambda: jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), "float32")
    variables = jax.eval_shape(ResNet(model, classes).init, key, images)
    elements = {c: sum(leaf.size for leaf in jax.tree.leaves(variables[c])) for c in variables}
    kernels = [
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
        if path[-1].key.startswith("kernel_")
    ]
    assert found["binary_params"] == sum(kernels)
    assert found["real_params"] + found["binary_params"] == elements["params"]
    assert found["state"] == elements["batch_stats"]


_TABLE3 = (
    *("bireal_published", "bireal", "none", "prelu", "fprelu", "relu", "stage_relu"),
    *("stage_relu_prelu", "baseline", "full_precision"),
)


def _other_configs(repository):
    files = sorted(p.name for p in (repository / "configs").glob("[a-z]*.py"))
    assert {"baseline.py", "bireal18.py", "bireal34.py", "resnet18_fp.py", "ablation.py"} <= set(files)
    yield from (f for f in files if not f.startswith(("derived", "ablation", "mnist_figure2", "own")))
    yield "own_images.py:4"
    yield from (f"ablation.py:{row}" for row in _TABLE3)


def test_parameters_of_every_other_config_are_the_elements_of_the_variables(repository):
    seen = set()
    for name in _other_configs(repository):
        c = config.load(f"{repository}/configs/{name}")
        net = (c.model, len(c.pixel_mean) or 3, c.num_classes)
        if net in seen:
            continue
        seen.add(net)
        b = budget.count(ResNet(c.model, c.num_classes), (32, 32, net[1]), memory=False)
        found = {field: getattr(b, field) for field in ("real_params", "binary_params", "state")}
        assert_counts_are_elements(*net, found)


def _count(model):
    return budget.count(ResNet(model, 1000), (224, 224, 3), memory=False)


# Multiply-adds of the shortcuts: 64*128 at 28x28, and as many in each later stage.
_SHORTCUTS = 28 * 28 * 64 * 128 + 14 * 14 * 128 * 256 + 7 * 7 * 256 * 512
_STEM = 112 * 112 * 7 * 7 * 3 * 64
_HEAD = 512 * 1000
# One stage's convolution that keeps the resolution: 56x56, 64 to 64, and as many later.
_CONV = 56 * 56 * 9 * 64 * 64


def test_baseline():
    b = _count(architectures.baseline())
    assert b.macs == _STEM + _SHORTCUTS + _HEAD
    # Three reduction blocks have half the input channels.
    assert b.binary_macs == 13 * _CONV + 3 * _CONV // 2
    # Each of them reads the ReLU that closes the stage before.
    assert b.bops == 13 * _CONV + 3 * _CONV
    norms = 112 * 112 * 64 + sum(4 * n * n * c for n, c in ((56, 64), (28, 128), (14, 256), (7, 512)))
    shortcut_norms = 28 * 28 * 128 + 14 * 14 * 256 + 7 * 7 * 512
    activations = norms - 112 * 112 * 64
    pools = 4 * (28 * 28 * 64 + 14 * 14 * 128 + 7 * 7 * 256)
    assert b.flops == b.macs + norms + shortcut_norms + activations + pools
    # The ~163M of Table 4's right half counts as the works that it compares with.
    assert b.total_macs == (_STEM + _SHORTCUTS + _HEAD) + (13 * _CONV + 3 * _CONV // 2) / 64
    assert b.total_macs / _M == pytest.approx(163, rel=0.03)
    assert 100 * b.binary_macs / 64 / b.total_macs == pytest.approx(15, abs=1.5)


def test_parameters_of_the_baseline():
    b = _count(architectures.baseline())
    widths = (64, 128, 256, 512)
    assert b.binary_params == 9 * (4 * 64 * 64 + sum(w * w // 2 + 3 * w * w for w in widths[1:]))
    stem = 7 * 7 * 3 * 64 + 2 * 64
    shortcuts = sum(w // 2 * w + 2 * w for w in widths[1:])
    norms_and_slopes = sum(4 * 2 * w + 3 * 2 * w for w in widths)
    assert b.real_params == stem + shortcuts + norms_and_slopes + 512 * 1000 + 1000
    assert b.bytes_packed == 4 * b.real_params + b.binary_params / 8


@pytest.mark.parametrize(
    ("model", "macs", "binary_macs", "total"),
    [
        (architectures.bireal18(), _STEM + _SHORTCUTS + _HEAD, 13 * _CONV + 3 * _CONV // 2, 163),
        (architectures.bireal34(), _STEM + _SHORTCUTS + _HEAD, 29 * _CONV + 3 * _CONV // 2, 193),
    ],
)
def test_bireal_nets(model, macs, binary_macs, total):
    b = _count(model)
    assert b.macs == macs
    # No ReLU anywhere: nothing counts twice.
    assert b.bops == b.binary_macs == binary_macs
    assert b.total_macs / _M == pytest.approx(total, rel=0.01)


def test_full_precision_resnet_18():
    b = _count(architectures.resnet18())
    assert b.macs == _STEM + 13 * _CONV + 3 * _CONV // 2 + _SHORTCUTS + _HEAD
    assert b.macs / 1e9 == pytest.approx(1.814, rel=0.005)
    assert b.flops / 1e9 == pytest.approx(1.814, rel=0.005)
    assert b.bops == b.binary_params == 0
    assert b.params == 11_689_512  # as the reference implementations of this net have


def test_shares_of_figure_3():
    shares = {}
    for title, parts in figure3.distributions().items():
        shares[title.split("\n")[0]] = 100 * parts["binary convolutions / 64"] / sum(parts.values())
    assert shares["FTBNN baseline"] == pytest.approx(15, abs=1.5)
    assert shares["binary-purified"] == pytest.approx(77, abs=1.5)


def test_share_of_the_purified_net(table4):
    row = table4[0][90, 18, 1]
    assert 100 * row["bops_share"] == pytest.approx(77, abs=2.5)
    assert row["bops_share"] == pytest.approx(row["bops"] / 64 / row["total"])
