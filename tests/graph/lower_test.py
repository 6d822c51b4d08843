"""Functions as graphs: the same values, or one line that names the layer and the operation."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import ir, lower, passes, trace

_IMAGES = jax.ShapeDtypeStruct((2, 6, 6, 3), jnp.float32)


def _lowered(function, variables):
    return lower.lower(trace.trace(function, variables, _IMAGES))


def _images(count):
    return np.random.default_rng(count).standard_normal((count, *_IMAGES.shape[1:])).astype(np.float32)


def _run(graph, images):
    return np.asarray(jax.jit(graph.run)(images, graph.tensors))


class _Odd(nn.Module):
    """A module of one function."""

    function: object

    def __call__(self, x):
        return self.function(x)


class _Net(nn.Module):
    """A binary convolution before an odd layer, and a classifier behind it."""

    function: object

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(), (3, 3, 3, 4))
        x = jax.lax.conv_general_dilated(
            jnp.sign(x), jnp.sign(kernel), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = _Odd(self.function, name="odd")(x)
        return nn.Dense(5)(x.reshape(x.shape[0], -1))


def _random(x):
    key = jax.random.key(x.sum().astype(jnp.int32))
    return x * jax.random.bernoulli(key, 0.5, x.shape[1:])


# Name of the primitive, and what uses it on an input `[N, H, W, C]`.
_REFUSED = [
    ("while", lambda x: lax.while_loop(lambda s: s.sum() < 9, lambda s: 2 * s + 1, x)),
    ("while", lambda x: lax.fori_loop(0, x.sum().astype(jnp.int32), lambda i, s: s + 1, x)),
    ("cond", lambda x: lax.cond(x.sum() > 0, lambda s: s, lambda s: -s, x)),
    ("random_", _random),
    ("sort", lambda x: jnp.sort(x, axis=-1)),
    ("complex64", lambda x: jnp.abs(jnp.fft.fft(x, axis=2))),
    ("scan", lambda x: lax.map(lambda image: image / image.max(), x)),
    ("dim_as_value", lambda x: x - x.mean(0)),
    ("rev", lambda x: lax.rev(x, (0,))),
    ("iota", lambda x: x * jnp.arange(x.shape[0])[:, None, None, None]),
    ("pure_callback", lambda x: jax.pure_callback(np.sin, x, x)),
    ("gather", lambda x: jnp.arange(9.0)[jnp.argmax(x, axis=-1)]),
]


@pytest.mark.parametrize(("primitive", "function"), _REFUSED)
def test_an_operation_that_no_graph_has_is_refused(primitive, function):
    model = _Net(function)
    variables = model.init(jax.random.key(0), jnp.zeros(_IMAGES.shape))
    with pytest.raises(UserError) as e:
        _lowered(model.apply, variables)
    message = str(e.value)
    assert message.isprintable()
    assert "odd" in message and primitive in message


@pytest.mark.parametrize(("primitive", "function"), _REFUSED)
def test_it_is_refused_in_a_plain_function_as_well(primitive, function):
    with pytest.raises(UserError) as e:
        _lowered(lambda w, x: w * function(x).reshape(x.shape[0], -1), np.ones(1))
    message = str(e.value)
    assert message.isprintable()
    # Where no module has a name, the line of the source does.
    assert primitive in message and "lower_test.py" in message


@pytest.mark.parametrize(
    "function",
    [
        lambda w, x: x[x > 0],
        lambda w, x: jnp.nonzero(x)[0],
        lambda w, x: x if x.sum() > 0 else -x,
        lambda w, x: float(x.max()) * x,
        lambda w, x: np.asarray(x),
        lambda w, x: x @ w,
        lambda w, x: x * 2 if x.shape[0] > 1 else x,
        lambda w, x: x.reshape(x.shape[0] // 2, 2, -1),
        lambda w, x: x.sum(0),
        lambda w, x: (x, x),
        lambda w, x: {"logits": x},
        lambda w, x: None,
        lambda w, x: w,
        lambda w, x: x.shape[0] * w,
    ],
    ids=[
        "mask",
        "nonzero",
        "if",
        "float",
        "numpy",
        "shapes",
        "batch",
        "halves",
        "summed",
        "two",
        "dictionary",
        "nothing",
        "constant",
        "batch_size",
    ],
)
def test_what_cannot_be_traced_is_one_line_too(function):
    with pytest.raises(UserError) as e:
        _lowered(function, np.ones((4, 5)))
    assert str(e.value).isprintable()


def test_what_nobody_reads_may_be_anything():
    def function(w, x):
        jax.debug.print("{}", x.sum())
        jnp.fft.fft(x)
        return x * w

    assert [node.op for node in _lowered(function, np.ones(3, np.float32)).graph.nodes] == ["mul"]


def test_what_does_not_depend_on_the_input_is_a_constant_however_it_is_computed():
    """Sorted, drawn or found in a loop: the graph holds the numbers."""
    w = np.random.default_rng(0).standard_normal((3, 3, 3, 8)).astype(np.float32)

    def function(w, x):
        w = jnp.sign(jnp.sort(w, axis=0) + jax.random.normal(jax.random.key(0), w.shape))
        x = lax.conv_general_dilated(
            jnp.sign(x), w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        scale = lax.while_loop(lambda s: s < 9, lambda s: 2 * s + 1, 1.0)
        return x.sum((1, 2)) * lax.cond(w.sum() > 0, lambda: scale, lambda: -scale)

    lowered = _lowered(function, w)
    assert len(passes.pack(lowered).graph.binary_products()) == 1
    images = _images(3)
    np.testing.assert_array_equal(_run(lowered.graph, images), jax.jit(function)(w, images))


# Further functions on `[N, 6, 6, 4]` of which a graph must give the value.
_COMPUTED = {
    "split": lambda x: jnp.concatenate(jnp.split(x, [1, 3], axis=-1)[::-1], axis=-1),
    "strided": lambda x: x[:, 1::2, ::3],
    "reversed": lambda x: x[:, ::-1],
    "one position": lambda x: x[:, -1, 2],
    "new axes": lambda x: jnp.squeeze(x[:, None, :, 0:1, :, None], axis=(1, 3)),
    "roll": lambda x: jnp.roll(x, 2, axis=1),
    "taken": lambda x: x[..., np.array([3, 0, 0, 1])],
    "repeated": lambda x: jnp.repeat(x, 3, axis=2),
    "unstacked": lambda x: jnp.stack(jnp.unstack(x, axis=1)[::2], axis=3),
    "a token in front": lambda x: jnp.concatenate(
        [jnp.broadcast_to(jnp.arange(4.0), (x.shape[0], 1, 6, 4)), x], axis=1
    ),
    "tiled": lambda x: jnp.tile(x, (1, 1, 2, 1)),
    "padded by -1": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0), (0, 0)), constant_values=-1),
    "padded by what is there": lambda x: jnp.pad(x, ((0, 0), (1, 1), (2, 2), (0, 0)), mode="reflect"),
    "padded between": lambda x: lax.pad(x, 0.0, ((0, 0, 0), (1, 0, 1), (-1, 2, 0), (0, 0, 0))),
    "pixels to channels": lambda x: (
        x.reshape(-1, 3, 2, 3, 2, 4).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 3, 3, 16)
    ),
    "permuted by a reshape": lambda x: lax.reshape(x, x.shape, (0, 2, 1, 3)),
    "clipped": lambda x: jnp.clip(x, -0.5, 0.7),
    "powers": lambda x: x**2 + x**3 - jnp.square(x) + jnp.abs(x) ** 1.5 + 1 / (1 + x**2),
    "roots": lambda x: jnp.sqrt(jnp.abs(x)) + lax.rsqrt(1 + jnp.abs(x)),
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "leaky relu": jax.nn.leaky_relu,
    "hard swish": jax.nn.hard_swish,
    "elu": lambda x: jax.nn.elu(x) - jax.nn.softplus(x) + jax.nn.gelu(x, approximate=False),
    "softmax": jax.nn.softmax,
    "log of softmax": lambda x: jax.nn.log_softmax(x, axis=(1, 2)),
    "log of sum": lambda x: jax.nn.logsumexp(x, axis=-1),
    "layer norm": lambda x: (x - x.mean((1, 2), keepdims=True)) / (1e-5 + x.std((1, 2), keepdims=True)),
    "conditions": lambda x: jnp.where((x > 0) & ~(x > 1) | (x < -1), x, 2 * x),
    "minimum": lambda x: x.min((1, 2)) + jnp.minimum(x[:, 0, 0], 0.25),
    "counts": lambda x: (x > 0).sum((1, 2)) * 1.0,
    "argmax": lambda x: jnp.argmax(x, axis=-1) - 0.5 * jnp.argmin(x, axis=1)[..., :1],
    "one-hot": lambda x: jax.nn.one_hot(jnp.argmax(x, axis=-1), 4),
    "positions": lambda x: x + jnp.arange(6.0)[:, None] - lax.broadcasted_iota(jnp.float32, (6, 4), 1),
    "16 bits": lambda x: (x.astype(jnp.bfloat16) * 3).astype(jnp.float32) + x.astype(jnp.float16),
    "max pool": lambda x: nn.max_pool(x, (3, 3), (2, 2), "SAME"),
    "min pool": lambda x: lax.reduce_window(x, jnp.inf, lax.min, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
    "mean pool": lambda x: nn.avg_pool(x, (3, 3), (2, 2), "SAME", count_include_pad=False),
    "resized": lambda x: jax.image.resize(x, (x.shape[0], 9, 12, 4), "bilinear"),
    "nearest": lambda x: jax.image.resize(x, (x.shape[0], 12, 12, 4), "nearest"),
    "transposed convolution": lambda x: lax.conv_transpose(
        x, jnp.ones((3, 3, 4, 2)), (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
    "many positions": lambda x: x.reshape(-1, 144)[:, :, None] + jnp.arange(5000.0),
    "taken of two axes": lambda x: x[:, ::-2, 1, np.array([2, 2, 0])],
    "channels first": lambda x: lax.conv(
        x.transpose(0, 3, 1, 2), jnp.ones((5, 4, 3, 3)), (1, 1), "SAME"
    ),
    "a convolution of no axis": lambda x: lax.conv_general_dilated(
        x.mean((1, 2)), jnp.ones((4, 3)), (), [], dimension_numbers=("NC", "IO", "NC")
    ),
    "squeeze and excite": lambda x: x * jax.nn.sigmoid(x.mean((1, 2)) @ jnp.ones((4, 4)))[:, None, None],
    "products of activations": lambda x: jnp.einsum("nhwc,nhvc->nhwv", x, x),
    "checkpointed": jax.checkpoint(lambda x: jnp.tanh(x) * 2),
    "of each example": jax.vmap(lambda x: x / jnp.max(jnp.abs(x))),
    "in turns": lambda x: lax.fori_loop(0, 3, lambda i, s: s * 2 + i, x),
    "rows of a scan": lambda x: lax.scan(
        lambda s, r: (s + r, s * r), x[:, 0], x.swapaxes(0, 1), reverse=True
    )[1].swapaxes(0, 1),
}


@pytest.mark.parametrize("name", _COMPUTED)
def test_a_graph_gives_what_the_function_gives(name):
    def net(w, x):
        return _COMPUTED[name](x @ w / 3 - 0.1)

    w = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    graph = _lowered(net, w).graph
    graph = ir.Graph.from_json(json.loads(json.dumps(graph.to_json())), graph.tensors)
    assert {tensor.dtype.name for tensor in graph.tensors.values()} <= set(ir.DTYPES)
    for count in (1, 3):
        images = _images(count)
        found, expected = _run(graph, images), np.asarray(jax.jit(net)(w, images))
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
