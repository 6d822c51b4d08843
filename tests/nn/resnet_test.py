"""The networks: their parameters, their integers in every compute dtype, and what their gradients do."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ftbnn_jax import config
from ftbnn_jax.nn import architectures, blocks, resnet, spec

_CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)

# Uneven groups, both kinds of slopes, a bridge and duplicated channels, small enough to run.
_DERIVED = spec.ResNetSpec(
    blocks=(1, 2),
    width=5,
    groups=2,
    stem_features=4,
    stem_kernel=3,
    stem_activation="prelu",
    stem_pool=False,
    bridge=True,
    downsample="duplicate",
)


def _shapes(net, num_classes, size, channels):
    """Shapes of all parameters by path, without computing any."""
    images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    variables = jax.eval_shape(
        lambda key, x: resnet.ResNet(net, num_classes).init(key, x), jax.random.key(0), images
    )
    leaves = traverse_util.flatten_dict(variables["params"], sep="/")
    assert {leaf.dtype for leaf in leaves.values()} == {jnp.dtype(jnp.float32)}
    return {path: leaf.shape for path, leaf in leaves.items()}


def _expected_shapes(net, num_classes, channels, image_size):
    shapes = {}

    def norm_and_activation(prefix, features, activation, number=""):
        slopes = {"prelu": ["negative"], "fprelu": ["negative", "positive"]}.get(activation, [])
        names = [f"bn{number}/scale", f"bn{number}/bias"]
        names += [f"act{number}/{side}_slope" for side in slopes]
        shapes.update({f"{prefix}/{name}": (features,) for name in names})

    def shortcut(prefix, ins, features):
        shapes[f"{prefix}/shortcut_conv/kernel"] = (1, 1, ins, features)
        shapes.update({f"{prefix}/shortcut_bn/{name}": (features,) for name in ("scale", "bias")})

    shapes["stem/conv/kernel"] = (net.stem_kernel, net.stem_kernel, channels, net.stem_features)
    norm_and_activation("stem", net.stem_features, net.stem_activation)
    for p in net.plan():
        ins, outs = p.conv_in_features, p.features
        for g in range(p.groups):
            # The last group takes what is left over.
            left = g == p.groups - 1
            i = ins - (ins // p.groups) * g if left else ins // p.groups
            o = outs - (outs // p.groups) * g if left else outs // p.groups
            shapes[f"{p.name}/conv/kernel_{g}"] = (3, 3, i, o)
        norm_and_activation(p.name, p.features, p.activation)
        if p.shortcut == "conv":
            shortcut(p.name, p.in_features, p.features)
    ins = net.width
    for p in net.real_plan():
        sizes = ((3, p.features), (3, p.features))
        if net.block == "bottleneck":
            sizes = ((1, p.features // 4), (3, p.features // 4), (1, p.features))
        width = ins
        for number, (size, features) in enumerate(sizes, 1):
            activation = p.activation if number == len(sizes) else p.inner_activation
            shapes[f"{p.name}/conv{number}/kernel"] = (size, size, width, features)
            norm_and_activation(p.name, features, activation, number)
            width = features
        if p.shortcut == "conv":
            shortcut(p.name, ins, p.features)
        ins = p.features
    # Figure 2's net: 28x28 images, a stem of stride 2, one stage, 2x2 means.
    inputs = {"mean": net.features, "flatten": 7 * 7 * net.features}[net.head]
    assert net.head == "mean" or (image_size, len(net.blocks)) == (28, 1)
    shapes["head/kernel"] = (inputs, num_classes)
    shapes["head/bias"] = (num_classes,)
    return shapes


def _config_names():
    names = sorted(path.name for path in _CONFIGS.glob("[a-z]*.py"))
    smaller = [f"{n}:90" for n in names if n.startswith(("derived18", "derived34"))]
    assert len(smaller) == 2 * 4
    # What its images say must be given, and a user's own network has no plan.
    told = [{"own_images.py": "own_images.py:4"}.get(name, name) for name in names]
    return [name for name in told if name != "own_network.py"] + smaller


@pytest.mark.parametrize("name", _config_names())
def test_every_config_builds_the_network_of_its_plan(name):
    experiment = config.load(str(_CONFIGS / name))
    channels = len(experiment.pixel_mean) or 3
    net, classes = experiment.model, experiment.num_classes
    assert _shapes(net, classes, experiment.image_size, channels) == _expected_shapes(
        net, classes, channels, experiment.image_size
    )


def _stages(width, groups, shortcut, blocks_per_stage):
    """Parameters of four stages without their slopes: convolutions, shortcuts and batch norms."""
    total = 0
    for stage, count in enumerate(blocks_per_stage):
        c = width * 2**stage
        total += count * (9 * c * c // groups + 2 * c)
        if stage > 0:
            total += shortcut(c)
    return total


def _conv_shortcut(c):
    # The first convolution reads c / 2 channels, and the real one with its batch norm is added.
    return -9 * (c // 2) * c + (c // 2) * c + 2 * c


def _groups_of_at_least_two(c):
    return -9 * c * c + 9 * c * c // 2


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (
            architectures.baseline(),
            7 * 7 * 3 * 64
            + 2 * 64
            + _stages(64, 1, _conv_shortcut, (4, 4, 4, 4))
            # FPReLU's two slopes a channel in the three blocks of a stage that do not end it.
            + 3 * 2 * (64 + 128 + 256 + 512)
            + 512 * 1000
            + 1000,
        ),
        (
            architectures.derived(18, 1),
            3 * 3 * 3 * 32
            + (2 + 1) * 32
            + 9 * 32 * 128
            + (2 + 2) * 128
            + _stages(128, 1, _groups_of_at_least_two, (4, 4, 4, 4))
            + 3 * 2 * 15 * 128
            + 8 * 128 * 1000
            + 1000,
        ),
        (
            # 216 / 8 is a whole number: groups are even.
            architectures.derived(34, 8),
            3 * 3 * 3 * 32
            + (2 + 1) * 32
            + 9 * 32 * 216
            + (2 + 2) * 216
            + _stages(216, 8, lambda c: 0, (6, 8, 12, 6))
            + 2 * 216 * (5 * 1 + 7 * 2 + 11 * 4 + 5 * 8)
            + 8 * 216 * 1000
            + 1000,
        ),
    ],
)
def test_number_of_parameters(net, expected):
    assert sum(math.prod(shape) for shape in _shapes(net, 1000, 64, 3).values()) == expected


def _images(n=4, size=8, channels=3):
    x = np.random.default_rng(0).standard_normal((n, size, size, channels))
    return jnp.asarray(x, jnp.float32)


def _build(net, compute_dtype=jnp.float32):
    """A model, and variables made in NumPy: JAX's initialisers take longer to compile than to test."""
    model = resnet.ResNet(net, num_classes=5, compute_dtype=compute_dtype)
    shapes = jax.eval_shape(model.init, jax.random.key(0), _images())
    rng = np.random.default_rng(1)
    kinds = {
        "kernel": lambda shape: 0.3 * rng.standard_normal(shape),
        "bias": lambda shape: 0.3 * rng.standard_normal(shape),
        "mean": lambda shape: rng.standard_normal(shape),
    }

    def values(path, leaf):
        kind = path[-1].key.partition("_")[0]
        draw = kinds.get(kind, lambda shape: rng.uniform(0.5, 1.5, shape))
        return draw(leaf.shape).astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(values, shapes)


@pytest.mark.parametrize("compute_dtype", _DTYPES)
def test_every_binary_convolution_gives_integers_within_its_reach(compute_dtype):
    model, variables = _build(_DERIVED, compute_dtype)

    @jax.jit
    def run(variables, x):
        return model.apply(
            variables, x, capture_intermediates=lambda m, _: isinstance(m, blocks.BinaryConv)
        )

    logits, state = run(variables, _images())
    assert logits.shape == (4, 5) and logits.dtype == jnp.float32
    outputs = state["intermediates"]
    assert set(outputs) == {p.name for p in _DERIVED.plan()}
    for p in _DERIVED.plan():
        (y,) = outputs[p.name]["conv"]["__call__"]
        widest = p.conv_in_features - (p.conv_in_features // p.groups) * (p.groups - 1)
        assert y.dtype == jnp.float32
        np.testing.assert_array_equal(y, np.round(y))
        assert 0 < np.abs(y).max() <= 9 * widest


@pytest.mark.parametrize(("bound", "compute_dtype"), [(1.2, jnp.float32), (0.7, jnp.float16)])
def test_latent_weights_outside_the_clip_have_no_gradient_and_those_inside_do(bound, compute_dtype):
    """A weight beyond the bound must stay where it is; inside it must be free to move.

    All weights of a group have the same window positions, so a zero inside could only be a rare
    cancellation of sums of real numbers.
    """
    net = spec.ResNetSpec.from_dict(_DERIVED.to_dict() | {"ste_bound": bound})
    model, variables = _build(net, compute_dtype)
    # Weights lie from well inside to well outside, some exactly at the bound, on both sides of 0.
    rng = np.random.default_rng(0)

    def spread(kernel):
        values = rng.uniform(-2 * bound, 2 * bound, kernel.shape).astype(np.float32)
        at_bound = rng.random(kernel.shape) < 0.1
        return np.where(at_bound, np.copysign(np.float32(bound), values), values)

    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    binary_paths = [path for path in flat if "/conv/kernel_" in path]
    assert len(binary_paths) == 1 + 3 * 2
    flat |= {path: spread(flat[path]) for path in binary_paths}

    @jax.jit
    @jax.grad
    def gradients(params):
        logits, _ = model.apply(variables | {"params": params}, _images(), True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(logits))

    found = traverse_util.flatten_dict(gradients(traverse_util.unflatten_dict(flat, sep="/")), sep="/")
    for path in binary_paths:
        inside = np.abs(flat[path]) <= np.float32(bound)
        assert 0 < inside.sum() < inside.size
        assert not np.asarray(found[path])[~inside].any(), path
        assert np.mean(np.asarray(found[path])[inside] != 0) > 0.9, path


def test_training_and_inference_agree_once_the_running_statistics_are_the_batchs():
    """One training step leaves exactly the batch's, where no share of the old ones is kept."""
    net = spec.ResNetSpec.from_dict(
        _DERIVED.to_dict() | {"batch_norm_momentum": 0.0, "running_variance": "biased"}
    )
    model, variables = _build(net)
    train = jax.jit(lambda v, x: model.apply(v, x, True, mutable=["batch_stats"]))
    logits, state = train(variables, _images())
    evaluate = jax.jit(model.apply)
    np.testing.assert_allclose(evaluate(variables | state, _images()), logits, rtol=1e-4, atol=1e-4)
    assert np.abs(evaluate(variables, _images()) - logits).max() > 0.1


@pytest.mark.parametrize(
    ("compute_dtype", "expected"),
    [
        (jnp.float32, jnp.float32),
        (jnp.float16, jnp.float32),
        (jnp.bfloat16, jnp.bfloat16),
        # A config spells it so.
        ("bfloat16", jnp.bfloat16),
        (jnp.dtype("bfloat16"), jnp.bfloat16),
    ],
)
def test_what_flows_between_blocks(compute_dtype, expected):
    net = architectures.small((1, 1), 4)
    model = resnet.ResNet(net, 5, compute_dtype)
    _, state = jax.eval_shape(
        lambda: model.apply(
            model.init(jax.random.key(0), _images()),
            _images(),
            capture_intermediates=lambda m, _: isinstance(m, blocks.Stem | blocks.BinaryBlock),
        )
    )
    outputs = jax.tree.leaves(state["intermediates"])
    assert [y.dtype for y in outputs] == [expected] * 3
