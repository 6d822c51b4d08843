"""The modules that the networks are made of, each alone."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftbnn_jax.nn import architectures, blocks
from ftbnn_jax.nn.resnet import ResNet


def test_latent_weights_start_xavier_normal_with_gain_two():
    # 63 input channels are 31 + 32, 48 output channels 24 + 24.
    kernels = blocks.BinaryConv(48, groups=2).init(jax.random.key(0), jnp.zeros((1, 3, 3, 63)))
    for g, features_in in enumerate((31, 32)):
        kernel = np.asarray(kernels["params"][f"kernel_{g}"], np.float64)
        # Fan in of the group, fan out of the whole convolution.
        std = 2 * math.sqrt(2 / (9 * features_in + 9 * 48))
        # The standard error of a standard deviation from n values is std / sqrt(2 n).
        assert abs(kernel.std() - std) < 5 * std / math.sqrt(2 * kernel.size)
        assert abs(kernel.mean()) < 5 * std / math.sqrt(kernel.size)


def test_a_binary_convolutions_integers_are_the_same_in_every_compute_dtype():
    # Quarters, which every dtype holds; a ninth of them are exact zeros.
    x = jnp.asarray(np.random.default_rng(0).integers(-4, 5, (2, 5, 6, 14)) / 4, jnp.float32)
    rng = np.random.default_rng(1)
    widths = ((4, 3), (4, 3), (6, 5))
    kernels = {f"kernel_{g}": rng.standard_normal((3, 3, *w)) for g, w in enumerate(widths)}

    @jax.jit
    def run(x, kernels):
        return [
            blocks.BinaryConv(11, 3, stride=2, compute_dtype=dtype).apply(
                {"params": kernels}, x.astype(blocks.stream_dtype(dtype))
            )
            for dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
        ]

    expected, *others = run(x, kernels)
    assert len(np.unique(expected)) > 10
    for y in others:
        assert y.dtype == expected.dtype == jnp.float32
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(
    ("sign", "after_relu", "zeros_count"),
    [
        ("three_valued", False, 0),
        ("three_valued", True, 0),
        ("two_valued", False, -1),
        ("two_valued", True, 0),
    ],
)
def test_what_an_exact_zero_adds_to_a_sum(sign, after_relu, zeros_count):
    net = architectures.small((1,), 4, sign=sign, stem_activation="relu" if after_relu else "none")
    (plan,) = net.plan()
    x = jnp.zeros((1, 3, 3, 4))
    block = blocks.BinaryBlock(net, plan)
    weights = np.random.default_rng(0).choice([-1.0, 1.0], (3, 3, 4, 4)).astype(np.float32)
    ones = jax.tree.map(
        lambda leaf: jnp.ones(leaf.shape),
        jax.eval_shape(lambda: block.init(jax.random.key(0), x, False)),
    )
    variables = ones | {"params": ones["params"] | {"conv": {"kernel_0": weights}}}
    _, state = block.apply(
        variables, x, False, capture_intermediates=lambda m, _: isinstance(m, blocks.BinaryConv)
    )
    (y,) = state["intermediates"]["conv"]["__call__"]
    # The window in the middle is whole; padding adds nothing in any case.
    np.testing.assert_array_equal(y[0, 1, 1], zeros_count * weights.sum((0, 1, 2)))
    np.testing.assert_array_equal(y[0, 0, 0], zeros_count * weights[1:, 1:].sum((0, 1, 2)))


@pytest.mark.parametrize(("momentum", "unbiased"), [(0.9, True), (0.25, False)])
def test_running_statistics_are_moving_averages_of_the_batchs(momentum, unbiased):
    """Of 54 numbers a channel, the unbiased variance is 54/53 of the biased one."""
    x = jnp.asarray(np.random.default_rng(0).normal(1, 3, (6, 3, 3, 2)), jnp.float32)
    module = blocks.BatchNorm(momentum, unbiased=unbiased)
    variables = module.init(jax.random.key(0), x, True)
    # Initialising must not count as a step.
    for name, start in (("mean", 0), ("var", 1)):
        np.testing.assert_array_equal(variables["batch_stats"][name], np.full(2, start))
    _, state = module.apply(variables, x, True, mutable=["batch_stats"])
    values = np.asarray(x, np.float64)
    expected = {
        "mean": values.mean((0, 1, 2)),
        "var": values.var((0, 1, 2)) * (54 / 53 if unbiased else 1),
    }
    for name, start in (("mean", 0), ("var", 1)):
        np.testing.assert_allclose(
            state["batch_stats"][name], momentum * start + (1 - momentum) * expected[name], rtol=1e-5
        )


def test_one_number_has_no_unbiased_variance():
    module = blocks.BatchNorm()
    x = jnp.full((1, 1, 1, 2), 3.0)
    variables = module.init(jax.random.key(0), x, True)
    _, state = module.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(state["batch_stats"]["var"], [0.9, 0.9], rtol=1e-6)


@pytest.mark.parametrize(("init", "variance"), [("fan_in_uniform", 1 / 3), ("he_normal", 2.0)])
def test_real_layers_begin_as_the_field_says(init, variance):
    """A uniform number between -b and b has the variance b * b / 3."""
    net = architectures.small((1, 1), 16, real_init=init)
    params = ResNet(net, 50).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    kernels = {
        27: params["stem"]["conv"]["kernel"],
        16: params["block2_1"]["shortcut_conv"]["kernel"],
        32: params["head"]["kernel"],
    }
    for fan_in, kernel in kernels.items():
        # The variance of 432 numbers or more, to six times its standard error for normal ones.
        assert abs(np.var(kernel) * fan_in / variance - 1) < 6 * math.sqrt(2 / kernel.size)
        if init == "fan_in_uniform":
            assert 0.98 < np.abs(kernel).max() * math.sqrt(fan_in) <= 1
    bias = np.abs(params["head"]["bias"]) * math.sqrt(32)
    assert (0.8 < bias.max() <= 1) if init == "fan_in_uniform" else (bias == 0).all()


@pytest.mark.parametrize(
    ("fields", "index"),
    [
        ({"groups": 3, "downsample": "duplicate"}, 1),
        # Learnt factors before the norm, and no integers after others.
        ({"scaling": "xnor_net++"}, 0),
        ({"scaling": "real_to_bin", "activation": "prelu"}, 1),
        ({"bridge": True, "weight_gradient": "evolving", "stage_end_activation": "relu"}, 0),
    ],
)
def test_a_block_that_computes_again_gives_the_same_and_has_the_same_gradients(fields, index):
    net = architectures.small((1, 1), 6, **fields)
    plan = net.plan()[index]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 5, 6, plan.in_features)), jnp.float32)
    plain = blocks.BinaryBlock(net, plan)
    shapes = jax.eval_shape(lambda: plain.init(jax.random.key(0), x, True))
    variables = jax.tree.map(lambda s: rng.uniform(-1.5, 1.5, s.shape).astype(np.float32), shapes)

    @functools.partial(jax.jit, static_argnums=0)
    def run(block, params, x):
        def loss(params, x):
            y, state = block.apply({**variables, "params": params}, x, True, 0.3, mutable="batch_stats")
            return jnp.sum(jnp.sin(y)), (y, state)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    results = [run(block, variables["params"], x) for block in (plain, plain.clone(recompute=True))]
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        # Factors before a batch norm have gradients of rounding errors alone.
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
