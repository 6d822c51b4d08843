"""Learning rate schedules, and weight decay that leaves binary kernels alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftbnn_jax import config as config_lib
from ftbnn_jax import networks
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import weights
from ftbnn_jax.nn import architectures
from ftbnn_jax.train import optimizer

CONFIG = config_lib.TrainConfig(
    architectures.small((2, 2), 8, groups=3), image_size=8, num_classes=4, learning_rate=0.01
)


@pytest.mark.parametrize(
    ("fields", "step", "expected"),
    [
        ({"schedule": "cosine"}, 0, 0.01),
        ({"schedule": "cosine"}, 300, 0.01 * (1 + np.cos(np.pi * 0.5)) / 2),
        ({"schedule": "cosine"}, 600, 0.0),
        # Epochs 45 and 55 of 60: steps 450 and 550 of 600.
        ({"schedule": "multistep"}, 449, 0.01),
        ({"schedule": "multistep"}, 450, 0.01 * 0.1),
        ({"schedule": "multistep"}, 549, 0.01 * 0.1),
        ({"schedule": "multistep"}, 550, 0.01 * 0.1 * 0.1),
        # Two boundaries that fall on one step.
        ({"schedule": "multistep", "schedule_boundaries": (0.5, 0.5001)}, 300, 0.01 * 0.1 * 0.1),
        ({"schedule": "constant"}, 599, 0.01),
        ({"schedule": "constant", "warmup_steps": 100}, 25, 0.01 / 4),
        ({"schedule": "cosine", "warmup_steps": 100}, 100, 0.01),
        ({"schedule": "cosine", "warmup_steps": 100}, 350, 0.01 / 2),
        # The drops count from the start of the training, not from the end of the warm-up.
        ({"schedule": "multistep", "warmup_steps": 100}, 449, 0.01),
        ({"schedule": "multistep", "warmup_steps": 100}, 451, 0.01 * 0.1),
    ],
)
def test_learning_rate(fields, step, expected):
    rate = optimizer.learning_rate(dataclasses.replace(CONFIG, **fields), num_steps=600)
    np.testing.assert_allclose(rate(step), expected, rtol=1e-5, atol=1e-9)


def test_warmup_must_end_before_the_training():
    with pytest.raises(UserError, match=r"config\.warmup_steps=600.*below the 600 steps"):
        optimizer.learning_rate(dataclasses.replace(CONFIG, warmup_steps=600), 600)


@pytest.mark.parametrize(
    ("fields", "real", "latent"),
    [
        ({}, ("block2_1/shortcut_conv/kernel",), 12),
        # Activations that stay real in a first step: the weights' signs are multiplied all the same.
        ({"binary_activations": False}, ("block2_1/shortcut_conv/kernel",), 12),
        ({"binary_weights": False}, None, 0),
        (
            {"downsample": "duplicate", "scaling": "real_to_bin"},
            [
                f"block{s}_{b}/gate/{k}_kernel"
                for s in (1, 2)
                for b in (1, 2)
                for k in ("reduce", "expand")
            ],
            12,
        ),
    ],
)
def test_decay_reaches_weights_that_are_multiplied_as_they_are(fields, real, latent):
    """Twelve latent kernels: four convolutions of three groups."""
    model = dataclasses.replace(CONFIG.model, **fields)
    found = networks.weights(dataclasses.replace(CONFIG, model=model), 3)
    kernels = {f"block{s}_{b}/conv/kernel_{g}" for s in (1, 2) for b in (1, 2) for g in range(3)}
    assert len(found.binary) == latent
    assert set(found.binary) == (kernels if latent else set())
    others = {*kernels, "block2_1/shortcut_conv/kernel"} if real is None else set(real)
    assert set(found.real) == {"stem/conv/kernel", "head/kernel", *others}


_BLOCKS = [f"block{s}_{b}" for s in (1, 2) for b in (1, 2)]
# Of a net of two stages of two blocks, by the kind of parameter.
_KINDS = {
    "binary": {f"{b}/conv/kernel_0" for b in _BLOCKS},
    "real": {"stem/conv/kernel", "block2_1/shortcut_conv/kernel", "head/kernel"},
    "norms": {
        f"{norm}/{name}"
        for norm in ("stem/bn", "block2_1/shortcut_bn", *(f"{b}/bn" for b in _BLOCKS))
        for name in ("scale", "bias")
    }
    | {f"{b}/channel_scale" for b in _BLOCKS},
    "slopes": {f"block{s}_1/act/{side}_slope" for s in (1, 2) for side in ("negative", "positive")},
    "biases": {"head/bias"},
}


@pytest.mark.parametrize(
    "decayed", [(kind,) for kind in _KINDS] + [(), ("real", "norms", "slopes", "biases"), tuple(_KINDS)]
)
def test_each_kind_of_parameter_decays_by_its_name_in_the_config(decayed):
    model = dataclasses.replace(CONFIG.model, groups=1, scaling="xnor_net++")
    config = dataclasses.replace(CONFIG, model=model, decayed=decayed)
    params = networks.shapes(config, 3)["params"]
    found = optimizer.decayed_names(config, networks.weights(config, 3), params)
    assert found == set().union(*(_KINDS[kind] for kind in decayed))
    if decayed == tuple(_KINDS):
        assert len(found) == len(jax.tree.leaves(params))


def test_decay_is_an_l2_term_in_the_gradient():
    """PyTorch's Adam: the decayed weight enters the moments, unlike AdamW's."""
    config = dataclasses.replace(CONFIG, weight_decay=0.5, schedule="constant")
    params = {"conv": {"kernel": jnp.array([2.0]), "kernel_0": jnp.array([2.0])}}
    tx = optimizer.make(config, 10, weights.Weights(("conv/kernel_0",), ("conv/kernel",)))
    opt_state = tx.init(params)
    kernel, moments = 2.0, np.zeros(2)
    for step in range(1, 4):
        gradients = {"conv": {"kernel": jnp.array([0.1]), "kernel_0": jnp.array([0.0])}}
        updates, opt_state = tx.update(gradients, opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
        gradient = 0.1 + 0.5 * kernel
        moments = np.array([0.9, 0.999]) * moments + np.array([0.1, 0.001]) * [gradient, gradient**2]
        first, second = moments / (1 - np.array([0.9, 0.999]) ** step)
        kernel -= 0.01 * first / (np.sqrt(second) + 1e-8)
    np.testing.assert_allclose(params["conv"]["kernel"], [kernel], rtol=1e-5)
    np.testing.assert_array_equal(params["conv"]["kernel_0"], [2.0])
