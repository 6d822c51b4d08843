"""The methods of Table 1 beside the paper's own: their parts against NumPy, and what each row is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ftbnn_jax import budget, config, published
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures, decoupling, resnet
from ftbnn_jax.nn.resnet import ResNet
from ftbnn_jax.ops import binary
from ftbnn_jax.ops.quantizers import BalancedSign, Clipped, HardTanh, TernarySign
from ftbnn_jax.train import stages

_SHAPE = {"blocks": (2, 2), "width": 8, "stem_features": 8, "stem_kernel": 3, "stem_pool": False}


def _small(method, **fields):
    return dataclasses.replace(architectures.table1(method), **{**_SHAPE, **fields})


def _kernel(shape=(3, 3, 5, 4), seed=0):
    return np.random.default_rng(seed).normal(0.3, 0.5, shape).astype(np.float32)


def test_balanced_weights_are_the_signs_of_standardised_ones():
    w = _kernel()
    v = (w - w.mean((0, 1, 2))) / w.std((0, 1, 2), ddof=1)
    np.testing.assert_array_equal(BalancedSign()(jnp.asarray(w)), np.where(v > 0, 1, -1))
    assert (w > 0).mean() > 0.6 > (v > 0).mean() > 0.4
    # As in NumPy, of which the powers are whole numbers: round(log2(mean |v|)).
    expected = 2.0 ** np.round(np.log2(np.abs(v).mean((0, 1, 2))))
    np.testing.assert_array_equal(binary.power_of_two_scale([jnp.asarray(w)]), expected)


def test_the_gradient_of_balanced_weights_goes_through_their_mean_and_deviation():
    """The derivative of the standardised weights, with 1 in the place of the sign's inside the bound."""
    w, g = jnp.asarray(_kernel()), jnp.asarray(_kernel(seed=1))

    def standardised(w):
        centred = w - w.mean((0, 1, 2))
        v = centred / jnp.sqrt((centred**2).sum((0, 1, 2)) / (9 * 5 - 1))
        return jnp.where(jnp.abs(jax.lax.stop_gradient(v)) <= 1.0, v, 0)

    found = jax.grad(lambda w: (BalancedSign(Clipped(1.0))(w) * g).sum())(w)
    np.testing.assert_allclose(found, jax.grad(lambda w: (standardised(w) * g).sum())(w), atol=1e-5)


def test_a_ternary_activation_is_the_mean_of_two_signs():
    x = jnp.array([-2.0, -0.5, -0.4, -0.0, 0.0, 0.5, 0.6, 1.7, 1.8])
    ternary = TernarySign(0.5, Clipped(1.2))
    np.testing.assert_array_equal(ternary(x), [-1, -1, 0, 0, 0, 0, 1, 1, 1])
    # One sign's gradient passes from -0.7 to 1.7, the other's from -1.7 to 0.7.
    np.testing.assert_array_equal(jax.grad(lambda x: ternary(x).sum())(x), [0, 1, 1, 1, 1, 1, 1, 0.5, 0])


def test_hard_tanh():
    x = jnp.array([-2.0, -0.5, 0.25, 3.0])
    np.testing.assert_array_equal(HardTanh()(x), [-1, -0.5, 0.25, 1])
    np.testing.assert_array_equal(jax.grad(lambda x: HardTanh()(x).sum())(x), [0, 1, 1, 0])


@pytest.fixture(scope="module")
def coupled():
    """A coupled net of random weights and statistics, and its images."""
    net = _small("binaryduo", ternary="coupled", width=7, stem_features=7, scaling="xnor_net++")
    model = ResNet(net, 5)
    images = jax.random.normal(jax.random.key(1), (3, 9, 9, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        values = (
            rng.uniform(0.5, 1.5, leaf.shape)
            if name in ("var", "scale")
            else rng.normal(size=leaf.shape)
        )
        return values.astype(np.float32)

    return net, jax.tree_util.tree_map_with_path(draw, shapes), images


@pytest.mark.parametrize("train", [False, True])
def test_a_coupled_network_comes_apart_exactly(coupled, train):
    """The same outputs to the last bit, the same statistics, and gradients that add up to the same."""
    net, variables, images = coupled
    apart = dataclasses.replace(net, ternary="decoupled")
    halves = decoupling.decouple(net, variables)
    assert [p.conv_in_features for p in apart.plan()] == [2 * p.in_features for p in net.plan()]

    def run(net, variables):
        def loss(params):
            given = {**variables, "params": params}
            logits, state = ResNet(net, 5).apply(given, images, train, mutable=["batch_stats"])
            return jnp.square(logits).sum(), (logits, state)

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    (gradients, (logits, state)), (others, (other_logits, other_state)) = (
        run(net, variables),
        run(apart, halves),
    )
    np.testing.assert_array_equal(logits, other_logits)
    assert np.ptp(logits) > 0.1
    jax.tree.map(np.testing.assert_array_equal, state, other_state)
    for plan in net.plan():
        one = gradients[plan.name]["conv"]["kernel_0"]
        two = others[plan.name]["conv"]["kernel_0"]
        added = two[:, :, : plan.in_features] + two[:, :, plan.in_features :]
        np.testing.assert_allclose(added, one, rtol=1e-4, atol=1e-5 * np.abs(one).max())
        assert np.abs(one).max() > 0


def test_only_a_coupled_network_comes_apart():
    with pytest.raises(UserError, match=r"model\.ternary='none': only 'coupled' comes apart"):
        decoupling.decouple(architectures.baseline(), {})


def test_a_shortcut_can_span_two_convolutions():
    """What is added in the second block of a pair is what enters the first, pooled if that reduces."""
    net = _small("bnn", activation="none", stage_end_activation="none")
    assert [(p.stride, p.shortcut) for p in net.plan()] == [
        (1, "none"),
        (1, "identity"),
        (2, "none"),
        (1, "conv"),
    ]
    model = ResNet(net, 5)
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    run = jax.jit(lambda v, x: model.apply(v, x, capture_intermediates=True))
    _, state = run(variables, images)

    def out(*path):
        place = state["intermediates"]
        for part in path:
            place = place[part]
        return np.asarray(place["__call__"][0])

    for first, second, start in (
        ("block1_1", "block1_2", out("stem")),
        ("block2_1", "block2_2", out("block2_2", "shortcut_bn")),
    ):
        np.testing.assert_array_equal(out(first), out(first, "bn"))
        np.testing.assert_allclose(out(second), out(second, "bn") + start, atol=1e-5)
    pooled = out("block1_2").reshape(2, 2, 2, 2, 2, 8).mean((2, 4))
    kernel = variables["params"]["block2_2"]["shortcut_conv"]["kernel"][0, 0]
    np.testing.assert_allclose(out("block2_2", "shortcut_conv"), pooled @ kernel, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"shortcut_span": 2, "blocks": (2, 3)},
            r"model\.blocks=\(2, 3\): shortcuts span 2 .* 3 is odd",
        ),
        ({"shortcut_span": 2, "downsample": "duplicate"}, r"model\.downsample='duplicate': does not go"),
        ({"shortcut_span": 3}, r"model\.shortcut_span=3: must be a whole number"),
        ({"ternary": "coupled", "groups": 2}, r"model\.groups=2: does not go with model\.ternary"),
        ({"ternary": "decoupled", "scaling": "mean_abs"}, r"model\.scaling='mean_abs': does not go"),
        ({"ternary": "coupled", "binary_activations": False}, r"model\.ternary='coupled': is for"),
        ({"weight_balance": True, "binary_weights": False}, r"model\.weight_balance=True: is for"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(architectures.baseline(), **fields)


_METHODS = {
    **{method: _small(method) for method in architectures.TABLE1},
    "coupled": _small("binaryduo", ternary="coupled"),
    "hardtanh": _small(
        "bireal",
        **{"activation_gradient": "clipped", "scaling": "none", "binary_weights": False},
        **{"binary_activations": False, "real_activations": "hardtanh"},
    ),
}


@pytest.mark.parametrize("method", _METHODS)
def test_twenty_steps_of_training_lower_the_loss(method):
    network = resnet.network(dataclasses.replace(_METHODS[method], blocks=(2,)), 4)
    images = jax.random.normal(jax.random.key(1), (16, 8, 8, 3))
    labels = jnp.arange(16) % 4
    variables = network.init(jax.random.key(0), images)
    optimizer = optax.adam(0.01)

    @jax.jit
    def twenty(params, collections):
        def step(carry, number):
            params, collections, opt_state = carry

            def loss_of(params):
                found = network.run({"params": params, **collections}, images, True, number / 20)
                loss = optax.softmax_cross_entropy_with_integer_labels(found.logits, labels).mean()
                return loss, found.collections

            (loss, collections), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
            updates, opt_state = optimizer.update(gradients, opt_state)
            return (optax.apply_updates(params, updates), collections, opt_state), loss

        start = params, collections, optimizer.init(params)
        return jax.lax.scan(step, start, jnp.arange(20))[1]

    losses = twenty(variables.pop("params"), variables)
    assert np.isfinite(losses).all()
    assert losses[-5:].mean() < 0.8 * losses[0]


def test_every_row_has_a_config():
    """Its epochs are Table 1's; of steps before the last the paper gives some."""
    epochs = {
        "xnor_net": 58, "xnor_net++": 80, "bireal_b": 256, "bireal_a": 20, "binaryduo": 40,
        "real_to_bin": 75, "ftbnn": 60, "ftbnn_kd": 75,
    }  # fmt: skip
    switches = {
        # Distillation, gradient approximation, several steps, scaling.
        "bnn": (0, 0, 0, 0), "xnor_net": (0, 0, 1, 1), "xnor_net++": (0, 0, 0, 1),
        "bireal_b": (0, 1, 0, 1), "bireal_a": (0, 1, 1, 1), "ir_net": (0, 1, 0, 1),
        "binaryduo": (0, 1, 1, 0), "real_to_bin": (1, 0, 1, 1), "ftbnn": (0, 0, 0, 0),
        "ftbnn_kd": (1, 0, 1, 0),
    }  # fmt: skip
    assert switches.keys() == published.TABLE1.keys()
    for row, expected in switches.items():
        for suffix in ("", ",cifar10"):
            c = config.load(f"table1:{row}{suffix}")
            runs = stages.resolve(c, "runs/table1")
            last = runs[-1].config
            approximated = last.model.activation_gradient != "clipped" or last.model.ternary != "none"
            found = bool(last.teacher), approximated, len(runs) > 1, last.model.scaling != "none"
            assert found == tuple(map(bool, expected)), row
            assert last.model.binary_weights and last.model.binary_activations
            if not suffix and row in epochs:
                assert last.num_epochs == epochs[row]
    assert config.load("table1:bireal_b") == config.load("bireal18")
    assert config.load("table1:ftbnn") == config.load("baseline")
    assert config.load("table1:ftbnn_kd") == config.load("baseline_kd")
    # Shortcuts of one convolution are the daggers of Table 1.
    doubled = {m for m in architectures.TABLE1 if architectures.table1(m).shortcut_span == 1}
    assert doubled == {"bireal", "ir_net", "binaryduo", "real_to_bin"}
    with pytest.raises(UserError, match=r"row='bnm': Table 1 has the rows bnn, "):
        config.load("table1:bnm")


@pytest.mark.parametrize("name", ["xnor_net", "xnor_net++", "ir_net"])
def test_budgets_of_table_4s_right_half(name):
    """Those with a budget in the paper; shortcuts that span two convolutions change nothing in it."""
    specs = {found: net for net, found in published.total_macs_specs().items()}
    counted = budget.count(ResNet(specs[name], 1000), (224, 224, 3), memory=False)
    assert counted.total_macs / 1e6 == pytest.approx(published.TOTAL_MACS[name], abs=1.0)


def test_binaryduo_has_about_as_many_binary_weights_as_the_others():
    """Twice 45 x 45 for each 64 x 64, to a percent; 1-bit ResNet-18 has 10,985,472 of them."""
    net = ResNet(architectures.table1("binaryduo"), 1000)
    counted = budget.count(net, (224, 224, 3), memory=False)
    assert counted.binary_params * 64**2 == 10_985_472 * 2 * 45**2
