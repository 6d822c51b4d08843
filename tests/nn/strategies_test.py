"""The strategies of Table 1: gradients and scaling factors against NumPy, and what goes together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftbnn_jax import budget
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures, blocks, spec, strategies
from ftbnn_jax.nn.resnet import ResNet
from ftbnn_jax.ops import binary
from ftbnn_jax.ops.quantizers import Identity, ThreeValuedSign


def _run(net, index, x, progress=1.0):
    """Random variables, and what a block's convolution, batch norm and the block itself give."""
    module = blocks.BinaryBlock(net, net.plan()[index])
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, False))
    rng = np.random.default_rng(0)
    values = jax.tree.map(lambda s: rng.uniform(0.5, 1.5, s.shape).astype(np.float32), shapes)
    kernels = values["params"]["conv"]
    values["params"]["conv"] = {
        k: rng.normal(size=v.shape).astype(np.float32) for k, v in kernels.items()
    }
    _, state = module.apply(values, x, False, progress, capture_intermediates=True)
    seen = state["intermediates"]
    return values, np.asarray(seen["conv"]["__call__"][0]), np.asarray(seen["bn"]["__call__"][0])


def _before_batch_norm(values, normalised, net):
    """Undoes the batch norm of inference."""
    bn, stats = values["params"]["bn"], values["batch_stats"]["bn"]
    deviation = np.sqrt(stats["var"] + net.batch_norm_epsilon)
    return (normalised - bn["bias"]) / bn["scale"] * deviation + stats["mean"]


def _weight_means(params, net):
    kernels = [params["conv"][f"kernel_{g}"] for g in range(net.groups)]
    return np.concatenate([np.abs(k).mean((0, 1, 2)) for k in kernels])


def _powers_of_two(params, net):
    kernels = [params["conv"][f"kernel_{g}"] for g in range(net.groups)]
    standardised = [(k - k.mean((0, 1, 2))) / k.std((0, 1, 2), ddof=1) for k in kernels]
    return 2.0 ** np.concatenate([np.round(np.log2(np.abs(v).mean((0, 1, 2)))) for v in standardised])


def _xnor_net(x, params, net, stride):
    """K: |x| averaged over a group's channels and nine positions, those of the padding being 0."""
    n, height, width, _ = x.shape
    features = sum(params["conv"][f"kernel_{g}"].shape[3] for g in range(net.groups))
    ins, outs = binary.group_sizes(x.shape[-1], net.groups), binary.group_sizes(features, net.groups)
    padded = np.pad(np.abs(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    factor = np.zeros((n, -(-height // stride), -(-width // stride), features))
    for row in range(factor.shape[1]):
        for column in range(factor.shape[2]):
            window = padded[:, row * stride :, column * stride :][:, :3, :3]
            for g in range(net.groups):
                part = window[..., sum(ins[:g]) : sum(ins[: g + 1])]
                mean = part.sum((1, 2, 3)) / (9 * ins[g])
                factor[:, row, column, sum(outs[:g]) : sum(outs[: g + 1])] = mean[:, None]
    return factor * _weight_means(params, net)


def _real_to_bin(x, params, net, stride):
    hidden = np.maximum(x.mean((1, 2)) @ params["gate"]["reduce_kernel"], 0)
    return (1 / (1 + np.exp(-hidden @ params["gate"]["expand_kernel"])))[:, None, None, :]


_FACTORS = {
    "none": lambda x, params, net, stride: 1.0,
    "mean_abs": lambda x, params, net, stride: _weight_means(params, net),
    "xnor_net": _xnor_net,
    "xnor_net++": lambda x, params, net, stride: params["channel_scale"],
    "power_of_two": lambda x, params, net, stride: _powers_of_two(params, net),
    "real_to_bin": _real_to_bin,
}


@pytest.mark.parametrize("scaling", strategies.SCALINGS)
@pytest.mark.parametrize(("groups", "index"), [(1, 0), (3, 1)])
def test_integers_are_scaled_before_batch_norm(scaling, groups, index):
    """A block of stride 1, and one of stride 2 in uneven groups of 3, 3 and 4 to 6, 6 and 8 channels."""
    net = architectures.small((1, 1), 10, groups=groups, scaling=scaling)
    stride = net.plan()[index].stride
    assert stride == index + 1
    x = np.random.default_rng(1).normal(size=(2, 5, 6, 10)).astype(np.float32)
    values, integers, normalised = _run(net, index, jnp.asarray(x))
    np.testing.assert_array_equal(integers, np.round(integers))
    assert ("channel_scale" in values["params"]) == (scaling == "xnor_net++")
    expected = integers * _FACTORS[scaling](x, values["params"], net, stride)
    found = _before_batch_norm(values, normalised, net)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        (True, "sign"),
        (False, "sign"),
        (False, "tanh"),
        (True, "tanh"),
        (False, "identity"),
        (True, "identity"),
    ],
)
def test_weights_and_activations_can_stay_real(weights, activations):
    real = (
        {} if activations == "sign" else {"binary_activations": False, "real_activations": activations}
    )
    net = architectures.small((1,), 6, binary_weights=weights, **real)
    x = np.random.default_rng(1).normal(size=(1, 3, 3, 6)).astype(np.float32)
    values, found, _ = _run(net, 0, jnp.asarray(x))
    kernel = values["params"]["conv"]["kernel_0"]
    a = {"sign": np.sign, "tanh": np.tanh, "identity": np.array}[activations](x)
    w = np.where(kernel > 0, 1, -1) if weights else kernel
    # The window in the middle is the whole image.
    np.testing.assert_allclose(found[0, 1, 1], np.tensordot(a[0], w, 3), rtol=1e-4, atol=1e-4)


def test_mean_abs_trains_as_no_scaling_does():
    """The batch norm takes a constant factor out again, of its output and of every gradient."""
    x = np.random.default_rng(1).normal(size=(8, 6, 6, 4)).astype(np.float32)
    found = []
    for factor in ("none", "mean_abs"):
        net = architectures.small((1,), 4, scaling=factor, batch_norm_epsilon=1e-12)
        module = blocks.BinaryBlock(net, net.plan()[0])
        values, _, _ = _run(net, 0, x)

        def loss(params, module=module, values=values):
            y, _ = module.apply(values | {"params": params}, x, True, mutable=["batch_stats"])
            return jnp.sum(y**3), y

        gradients, y = jax.grad(loss, has_aux=True)(values["params"])
        found.append([y, *jax.tree.leaves(gradients)])
    assert all(np.abs(array).max() > 0.1 for array in found[0])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3 * np.abs(one).max())


def test_real_weights_have_the_gradient_of_a_real_convolution():
    kernel = jnp.asarray(np.random.default_rng(0).normal(0, 3, (3, 3, 4, 2)), jnp.float32)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 3, 3, 4)), jnp.float32)

    def middle(kernel):
        return binary.binary_conv2d(
            x, [kernel], input_quantizer=ThreeValuedSign(), kernel_quantizer=Identity(), padding=0
        ).sum()

    # Weights beyond the bound of the clipped gradient have it as well.
    expected = np.broadcast_to(np.sign(x[0])[..., None], kernel.shape)
    np.testing.assert_allclose(jax.grad(middle)(kernel), expected)


@pytest.mark.parametrize(
    ("fields", "found", "words"),
    [
        ({"scaling": "xnor"}, "model.scaling='xnor'", "xnor_net, xnor_net++, power_of_two, real_to_bin"),
        ({"activation_gradient": "x"}, "model.activation_gradient='x'", "evolving"),
        ({"weight_gradient": "x"}, "model.weight_gradient='x'", "evolving"),
        ({"binary_weights": None}, "model.binary_weights=None", "True, False"),
        *[
            ({"binary_weights": False, "scaling": name}, f"model.scaling='{name}'", "'none' would do")
            for name in ("mean_abs", "xnor_net", "power_of_two")
        ],
        (
            {"binary_weights": False, "weight_gradient": "evolving"},
            "model.weight_gradient='evolving'",
            "'clipped' would do",
        ),
        *[
            ({"binary_activations": False, **fields}, f"model.{next(iter(fields))}=", words)
            for fields, words in (
                ({"sign": "two_valued"}, "'three_valued' would do"),
                ({"activation_gradient": "evolving"}, "'clipped' would do"),
                ({"scaling": "xnor_net"}, "'none' would do"),
            )
        ],
    ],
)
def test_what_makes_no_sense_is_refused(fields, found, words):
    with pytest.raises(UserError) as error:
        dataclasses.replace(architectures.baseline(), **fields)
    message = str(error.value)
    assert message.startswith(found)
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "fields",
    [
        {"scaling": s, "activation_gradient": a, "weight_gradient": w, "sign": sign}
        for s in strategies.SCALINGS
        for a in strategies.GRADIENTS
        for w in strategies.GRADIENTS
        for sign in spec.SIGNS
    ],
    ids=lambda fields: "-".join(fields.values()),
)
def test_the_strategies_are_independent_of_each_other(fields):
    dataclasses.replace(architectures.baseline(), **fields)


_HW, _C = 6 * 6, 16
# One block of 16 channels at 6x6.
_EXTRA = {
    "none": 0,
    # Absorbed by batch norm.
    "mean_abs": 0,
    "xnor_net++": 0,
    "power_of_two": 0,
    # |a| of every input, a 3x3 mean of one channel, a product for every output.
    "xnor_net": _HW * _C + 9 * _HW + _HW * _C,
    # Two matrix products with 16 / 8 channels between, relu, sigmoid, a product for every output.
    "real_to_bin": 16 * 2 + 2 + 2 * 16 + 16 + _HW * _C,
}


@pytest.mark.parametrize("scaling", strategies.SCALINGS)
@pytest.mark.parametrize("train", [True, False])
def test_the_budget_counts_what_batch_norm_cannot_absorb(scaling, train):
    plain, scaled = (
        budget.count(
            ResNet(architectures.small((1,), _C, scaling=s), 3), (6, 6, 3), memory=False, train=train
        )
        for s in ("none", scaling)
    )
    assert scaled.flops - plain.flops == _EXTRA[scaling]
    assert scaled.bops == plain.bops > 0
    assert scaled.binary_params == plain.binary_params


@pytest.mark.parametrize(
    ("fields", "bops"), [({"binary_weights": False}, 0), ({"binary_activations": False}, 0), ({}, 1)]
)
def test_the_budget_sees_that_a_convolution_is_not_binary_yet(fields, bops):
    counted = budget.count(ResNet(architectures.small((1,), 4, **fields), 3), (6, 6, 3), memory=False)
    macs = bops * _HW * 9 * 4 * 4
    assert (counted.bops, counted.binary_params) == (macs, bops * 9 * 4 * 4)
