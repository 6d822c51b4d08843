"""The benchmark's command line and its turns; the other nets are what they are compared with."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftbnn_jax import budget, networks
from ftbnn_jax import config as config_lib
from ftbnn_jax.bench import train_step
from ftbnn_jax.bench.plain_flax import PlainResNet
from ftbnn_jax.host import machine
from ftbnn_jax.nn import architectures, resnet, spec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants=ftbnn_jax,jaxx"], "--variants=ftbnn_jax,jaxx: 'jaxx' is none of ftbnn_jax, flax"),
        (["--rounds=0"], "--rounds: '0' is not a whole number of at least 1"),
        (["--config=configs/none.py"], "configs/none.py: no such config file"),
        (["--steps=3"], "unrecognized arguments: --steps, the nearest is"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, capsys):
    assert train_step.run(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_row_for_each_variant(repository, capsys):
    config = repository / "configs" / "quickstart.py"
    arguments = [f"--config={config}", "--batch_size=4", "--rounds=1", "--variants=ftbnn_jax,flax"]
    assert train_step.run([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["config"], row["variant"]) for row in rows] == [
        ("quickstart", "ftbnn_jax"),
        ("quickstart", "flax"),
    ]
    for row in rows:
        assert row["images_per_second"] == pytest.approx(4 / row["step_ms"] * 1e3)
        assert 0 < row["share_of_peak"] < 1


@pytest.mark.parametrize(
    "net",
    [
        architectures.small((1, 1), 6),
        architectures.small((1, 1), 6, groups=2, downsample="duplicate"),
        architectures.small((1, 1), 7, groups=3, bridge=True),
        spec.ResNetSpec(blocks=(1, 1), block="real", width=4, stem_features=4, stem_activation="relu"),
        spec.ResNetSpec(blocks=(2, 1), block="bottleneck", width=4, stem_features=4),
    ],
)
def test_the_other_networks_have_as_many_parameters_as_ours(net):
    images = jnp.zeros((2, 16, 16, 3))

    def sizes(model):
        params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))

    expected = sizes(resnet.ResNet(net, 5))
    assert sizes(PlainResNet(net, 5)) == expected
    torch_nets = pytest.importorskip("ftbnn_jax.bench.plain_torch", exc_type=ImportError)
    assert sum(p.numel() for p in torch_nets.make_model(net, 5, 3).parameters()) == expected


def test_a_batch_is_halved_until_it_fits_into_memory(monkeypatch, capsys):
    config = config_lib.TrainConfig(architectures.small((1,), 4), image_size=8, batch_size=64)
    image = budget.count(networks.make(config), (8, 8, 3)).activation_bytes
    for there, size, told in (
        (256 * image, 64, []),
        (256 * image - 1, 32, ["x: batch 32"]),
        # Each device has one image.
        (0, jax.device_count(), [f"x: batch {jax.device_count()}"]),
    ):
        monkeypatch.setattr(machine, "memory_bytes", lambda there=there: there)
        assert train_step._in_memory("x", config).batch_size == size
        lines = capsys.readouterr().err.splitlines()
        assert [line.partition(";")[0] for line in lines] == told
