"""Small networks that must all be packed, in whatever library they are written.

Weights are random. Some channels of each network are exact zeros of both signs before a binarisation,
and so are some pixels, since zeros are where one spelling of a sign differs from the next.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from ftbnn_jax.nn import architectures
from ftbnn_jax.nn import spec as spec_lib
from ftbnn_jax.nn.resnet import ResNet
from ftbnn_jax.ops import binary
from ftbnn_jax.ops.quantizers import ThreeValuedSign, TwoValuedSign

_CLASSES = 5
_SIGN, _KERNEL_SIGN = ThreeValuedSign(), TwoValuedSign()


@dataclasses.dataclass(frozen=True)
class Network:
    """A network and what packing it must find.

    Attributes:
      name: what it is.
      build: makes `(function, variables)`, a function of variables and a batch.
      shape: of one example.
      forms: of the products that are packed, in order.
      binary_macs: multiply-adds of binary products for one example, as the budget counts them.
      real: products that stay real.
      reason: what the report must say of a binary-looking product that stays real; "" if there is none.
      images_dtype: float32 for standardised images, or uint8.
      options: of packing.
      needs: a package that it is written with, beside JAX and flax.
      estimator: whether its signs are sums, `x + stop_gradient(sign(x) - x)` and the like.
    """

    name: str
    build: Callable[[], tuple[Callable[[Any, jax.Array], jax.Array], Any]]
    shape: tuple[int, ...]
    forms: tuple[str, ...]
    binary_macs: int
    real: int = 0
    reason: str = ""
    images_dtype: str = "float32"
    needs: str = "jax"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    estimator: bool = False

    def images(self, count: int = 4, seed: int = 1) -> np.ndarray:
        """Images; if standardised, with zeros of both signs, and one of nothing else."""
        rng = np.random.default_rng(seed)
        if self.images_dtype == "uint8":
            return rng.integers(0, 256, (count, *self.shape), np.uint8)
        x = rng.standard_normal((count, *self.shape)).astype(np.float32)
        x = np.where(rng.random(x.shape) < 0.1, _zeros(rng, x.shape), x)
        x[-1] = _zeros(rng, self.shape)
        return x


def _zeros(rng, shape):
    return rng.choice(np.array([0.0, -0.0], np.float32), shape)


class _Weights:
    """Random weights, each drawn once, so that a network is a list of layers in order."""

    def __init__(self, seed: int = 0):
        self._rng = np.random.default_rng(seed)

    def real(self, *shape):
        return (self._rng.standard_normal(shape) / math.sqrt(math.prod(shape[:-1]))).astype(np.float32)

    def latent(self, *shape):
        """Without zeros, since `jnp.sign` of a latent weight must be a bit."""
        return self.real(*shape)

    def latent_with_zeros(self, *shape):
        w = self.real(*shape)
        return np.where(self._rng.random(shape) < 0.05, _zeros(self._rng, shape), w)

    def affine(self, features):
        """Folded batch norm, of which two channels become exact zeros, one of each sign."""
        scale = self._rng.uniform(-1, 1, features).astype(np.float32)
        offset = self._rng.standard_normal(features).astype(np.float32)
        scale[:2] = offset[:2] = 0.0, -0.0
        return {"scale": scale, "offset": offset}

    def dense(self, inputs, outputs):
        return {"kernel": self.real(inputs, outputs), "bias": self.real(1, outputs)[0]}


def _affine(p, x):
    return x * p["scale"] + p["offset"]


def _dense(p, x):
    return x @ p["kernel"] + p["bias"]


def _conv(x, kernel, stride=1, padding="SAME", dilation=1, groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _bits(w):
    return jnp.where(w > 0, 1.0, -1.0)


def _drawn(shapes):
    """Draws positive numbers for vectors, the first two being 0, and signed ones for all else."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if not leaf.shape:
            return np.zeros((), leaf.dtype)
        if leaf.size > max(leaf.shape):
            return rng.standard_normal(leaf.shape).astype(np.float32) / 4
        values = rng.uniform(0.5, 2, leaf.shape).astype(np.float32)
        values[:2] = 0
        return values

    return jax.tree.map(draw, shapes)


# The networks of this package.


def _randomised(shapes, seed=0):
    """Draws flax variables: positive variances, and zeros among everything but the real kernels."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "var":
            return rng.uniform(1, 40, leaf.shape).astype(np.float32)
        values = rng.standard_normal(leaf.shape).astype(np.float32)
        if name.startswith("kernel_") or name.endswith("slope"):
            values = np.where(rng.random(leaf.shape) < 0.05, _zeros(rng, leaf.shape), values)
        if path[-2].key.startswith("bn") and name in ("scale", "bias", "mean"):
            values[:2] = 0.0, -0.0
        return values

    return jax.tree_util.tree_map_with_path(draw, shapes)


def _flax(module, shape):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, *shape))))
    return module.apply, _randomised(shapes)


def _resnet(shape, spec):
    return lambda: _flax(ResNet(spec, _CLASSES), shape)


def _derived(width, groups):
    return spec_lib.ResNetSpec(
        blocks=(2, 1),
        width=width,
        groups=groups,
        stem_features=9,
        stem_kernel=3,
        stem_activation="prelu",
        bridge=True,
        downsample="duplicate",
    )


def _scaled(scaling):
    # The first convolution of the second stage reads a ReLU's output. Real are stem, shortcut and head,
    # and the two matrix products of each gate.
    return Network(
        f"scaling {scaling}",
        _resnet((8, 8, 3), architectures.small((1, 1), 10, scaling=scaling)),
        (8, 8, 3),
        ("ternary", "and"),
        8 * 8 * 9 * 10 * 10 + 4 * 4 * 9 * 10 * 20,
        real=3 + (2 * 2 if scaling == "real_to_bin" else 0),
    )


class _DenseNet(nn.Module):
    """Three binary convolutions, each of which reads the concatenation of all before it."""

    growth: int = 6

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), use_bias=False)(x)
        for layer in range(3):
            y = nn.BatchNorm(use_running_average=True, name=f"bn{layer}")(x)
            shape = (3, 3, x.shape[-1], self.growth)
            kernel = self.param(f"kernel_{layer}", nn.initializers.normal(), shape)
            x = jnp.concatenate(
                [
                    x,
                    binary.binary_conv2d(
                        y, [kernel], input_quantizer=_SIGN, kernel_quantizer=_KERNEL_SIGN
                    ),
                ],
                axis=-1,
            )
        x = nn.avg_pool(nn.relu(x), (2, 2), (2, 2))
        return nn.Dense(_CLASSES)(x.reshape(x.shape[0], -1))


class _VGG(nn.Module):
    """Binary convolutions with max pools between them, and a binary matrix in front of a real one."""

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(8, (3, 3), use_bias=False)((images.astype(jnp.float32) - 127) / 64)
        for layer, features in enumerate((8, 16)):
            y = nn.BatchNorm(use_running_average=True, name=f"bn{layer}")(x)
            shape = (3, 3, x.shape[-1], features)
            kernel = self.param(f"kernel_{layer}", nn.initializers.normal(), shape)
            x = binary.binary_conv2d(y, [kernel], input_quantizer=_SIGN, kernel_quantizer=_KERNEL_SIGN)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.BatchNorm(use_running_average=True, name="bn_dense")(x).reshape(x.shape[0], -1)
        kernel = self.param("kernel_dense", nn.initializers.normal(), (x.shape[-1], 20))
        x = nn.BatchNorm(use_running_average=True, name="bn_head")(_SIGN(x) @ _KERNEL_SIGN(kernel))
        return nn.Dense(_CLASSES)(nn.relu(x))


# Plain JAX.


@jax.custom_vjp
def _own_sign(x):
    return jnp.where(x >= 0, 1.0, -1.0)


_own_sign.defvjp(lambda x: (_own_sign(x), x), lambda x, g: (jnp.where(jnp.abs(x) <= 1, g, 0),))


def _plain():
    w = _Weights()
    variables = {
        "stem": w.real(3, 3, 3, 12),
        "affines": [w.affine(12), w.affine(20)],
        "kernels": [w.latent_with_zeros(3, 3, 12, 20), w.latent_with_zeros(3, 3, 20, 20)],
        "head": w.dense(20, _CLASSES),
    }

    def apply(v, x):
        x = _conv(x, v["stem"])
        for affine, kernel in zip(v["affines"], v["kernels"], strict=True):
            y = _conv(_own_sign(_affine(affine, x)), _own_sign(kernel))
            x = jax.nn.relu(y) if y.shape != x.shape else x + y
        return _dense(v["head"], x.mean((1, 2)))

    return apply, variables


def _equinox():
    """Channels first, one example at a time; the batch is `vmap`'s."""
    import equinox as eqx

    @jax.custom_jvp
    def sign(x):
        return jnp.where(x > 0, 1.0, -1.0)

    sign.defjvp(lambda primals, tangents: (sign(*primals), tangents[0]))

    class BinaryConv(eqx.nn.Conv2d):
        def __call__(self, x):
            binarised = eqx.tree_at(lambda conv: conv.weight, self, sign(self.weight))
            return super(BinaryConv, binarised).__call__(sign(x))

    class Net(eqx.Module):
        stem: eqx.nn.Conv2d
        norms: list[dict]
        convs: list[BinaryConv]
        pool: eqx.nn.AvgPool2d
        head: eqx.nn.Linear

        def __init__(self, key):
            w = _Weights()
            self.stem = eqx.nn.Conv2d(2, 8, 3, padding=1, key=key)
            self.norms = [{k: v[:, None, None] for k, v in w.affine(8).items()} for _ in range(2)]
            self.convs = [
                BinaryConv(8, 8, 3, padding=1, use_bias=False, key=key),
                BinaryConv(8, 16, 3, stride=2, padding=1, groups=2, use_bias=False, key=key),
            ]
            self.pool = eqx.nn.AvgPool2d(2, 2)
            self.head = eqx.nn.Linear(16 * 2 * 2, _CLASSES, key=key)

        def __call__(self, x):
            x = self.stem(x)
            for norm, conv in zip(self.norms, self.convs, strict=True):
                x = jax.nn.hard_tanh(conv(_affine(norm, x)) / 8)
            return self.head(self.pool(x).reshape(-1))

    net = eqx.filter_eval_shape(Net, jax.random.key(0))
    variables, static = eqx.partition(net, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    return lambda v, x: jax.vmap(eqx.combine(v, static))(x), _drawn(variables)


def _nnx():
    from flax import nnx

    class BinaryConv(nnx.Conv):
        def __call__(self, x):
            return _conv(_SIGN(x), _KERNEL_SIGN(self.kernel[...]))

    class Block(nnx.Module):
        def __init__(self, features, rngs):
            self.norm = nnx.BatchNorm(features, use_running_average=True, rngs=rngs)
            self.conv = BinaryConv(features, features, (3, 3), use_bias=False, rngs=rngs)

        def __call__(self, x):
            return x + self.conv(self.norm(x))

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.stem = nnx.Conv(3, 9, (3, 3), strides=2, rngs=rngs)
            self.blocks = nnx.List([Block(9, rngs) for _ in range(2)])
            # Its state holds random keys beside numbers.
            self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
            self.head = nnx.Linear(9, _CLASSES, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.stem(x))
            for block in self.blocks:
                x = block(x)
            return self.head(self.dropout(x.max((1, 2))))

    graph, state = nnx.split(nnx.eval_shape(lambda: Net(nnx.Rngs(0))))
    return lambda v, x: nnx.merge(graph, v)(x), _drawn(state)


def _mlp():
    w = _Weights()
    sizes = [(50, 64), (64, 33), (33, 10)]
    variables = [{"kernel": w.latent_with_zeros(*s), "affine": w.affine(s[1])} for s in sizes]

    def apply(v, x):
        for layer in v:
            x = _affine(layer["affine"], _SIGN(x) @ _KERNEL_SIGN(layer["kernel"]))
        return x

    return apply, variables


def _depthwise():
    """Depthwise and pointwise, each after a learnt threshold: `sign(x - b)`."""
    w = _Weights()
    zeros = w.affine(12)
    variables = {
        "stem": w.real(3, 3, 3, 12),
        "zeros": zeros,
        "thresholds": [np.where(zeros["scale"] == 0, 0, w.real(1, 12)[0]), w.real(1, 24)[0]],
        "depthwise": [w.latent(3, 3, 1, 12), w.latent(3, 3, 1, 48)],
        "pointwise": w.latent(1, 1, 12, 24),
        "head": w.dense(48, _CLASSES),
    }

    def apply(v, x):
        narrow, wide = v["thresholds"]
        x = _affine(v["zeros"], _conv(x, v["stem"]))
        x = x + _affine(v["zeros"], _conv(jnp.sign(x - narrow), jnp.sign(v["depthwise"][0]), groups=12))
        x = _conv(jnp.sign(x - narrow), jnp.sign(v["pointwise"])) / 12
        # Two outputs a channel.
        x = _conv(jnp.sign(jnp.tanh(x) - wide), jnp.sign(v["depthwise"][1]), stride=2, groups=24)
        return _dense(v["head"], x.mean((1, 2)))

    return apply, variables


def _geometry(size, padding, dilation=1, stride=1):
    """One binary convolution of any geometry between two real products, height and width apart."""
    w = _Weights()
    variables = {
        "stem": w.real(3, 3, 2, 7),
        "affine": w.affine(7),
        "kernel": w.latent_with_zeros(*size, 7, 9),
        "head": w.dense(9, _CLASSES),
    }

    def apply(v, x):
        x = _affine(v["affine"], _conv(x, v["stem"]))
        x = _conv(jnp.sign(x), _bits(v["kernel"]), stride, padding, dilation)
        return _dense(v["head"], jnp.abs(x).mean((1, 2)))

    return lambda: (apply, variables)


def _scan():
    """Equal blocks, their weights stacked."""
    w = _Weights()
    variables = {
        "stem": w.real(3, 3, 3, 10),
        "blocks": jax.tree.map(
            lambda *leaves: np.stack(leaves),
            *[{"affine": w.affine(10), "kernel": w.latent(3, 3, 10, 10)} for _ in range(3)],
        ),
        "head": w.dense(10, _CLASSES),
    }

    def block(x, v):
        return x + _conv(jnp.sign(_affine(v["affine"], x)), jnp.sign(v["kernel"])) / 9, None

    def apply(v, x):
        x, _ = lax.scan(block, _conv(x, v["stem"]), v["blocks"])
        return _dense(v["head"], x.mean((1, 2)))

    return apply, variables


def _one_dimensional():
    w = _Weights()
    variables = {
        "stem": w.real(5, 2, 16),
        "affine": w.affine(16),
        "kernels": [w.latent_with_zeros(3, 16, 16), w.latent_with_zeros(4, 8, 12)],
        "head": w.dense(12, _CLASSES),
    }

    def conv(x, kernel, stride, padding, groups=1):
        numbers = ("NWC", "WIO", "NWC")
        return lax.conv_general_dilated(
            x, kernel, (stride,), padding, dimension_numbers=numbers, feature_group_count=groups
        )

    def apply(v, x):
        x = _affine(v["affine"], conv(x, v["stem"], 2, "SAME"))
        x = x + conv(jnp.sign(x), _bits(v["kernels"][0]), 1, "SAME") / 8
        x = conv(jnp.sign(x), _bits(v["kernels"][1]), 2, "VALID", groups=2)
        return _dense(v["head"], jnp.max(x, axis=1))

    return apply, variables


# Spellings of the straight-through estimator.
_stop = lax.stop_gradient


def _clipped(x):
    c = jnp.clip(x, -1, 1)
    return c + _stop(jnp.sign(x) - c)


def _shifted(x):
    c = jnp.tanh(x)
    return _stop(jnp.sign(x) - c) + c


# Name, spelling, form of the product, whether it is a sum.
_ESTIMATORS = (
    ("x + sg(sign(x) - x)", lambda x: x + _stop(jnp.sign(x) - x), "ternary", True),
    ("clip(x) + sg(sign(x) - clip(x))", _clipped, "ternary", True),
    ("x - sg(x - sign(x))", lambda x: x - _stop(x - jnp.sign(x)), "ternary", True),
    ("sg(sign(x) - c) + c", _shifted, "ternary", True),
    ("x + sg(where(x >= 0, 1, -1) - x)", lambda x: x + _stop(_own_sign(x) - x), "xnor", True),
    ("where(x >= 0, 1, -1)", lambda x: jnp.where(x >= 0, 1.0, -1.0), "xnor", False),
    ("2 * (x > 0) - 1", lambda x: 2.0 * (x > 0) - 1, "xnor", False),
)


def _straight_through(sign):
    """The same spelling for activations and weights, in a convolution and a matrix product."""
    w = _Weights()
    variables = {
        "stem": w.real(3, 3, 3, 11),
        "affines": [w.affine(11), w.affine(13)],
        "kernels": [w.latent(3, 3, 11, 13), w.latent(13, 40)],
        "head": w.dense(40, _CLASSES),
    }

    def apply(v, x):
        x = _affine(v["affines"][0], _conv(x, v["stem"]))
        x = _affine(v["affines"][1], _conv(sign(x), sign(v["kernels"][0])).mean((1, 2)))
        return _dense(v["head"], jax.nn.relu(sign(x) @ sign(v["kernels"][1])))

    return lambda: (apply, variables)


def _estimator(name, sign, form, estimator):
    macs = 8 * 8 * 9 * 11 * 13 + 13 * 40
    return Network(
        name, _straight_through(sign), (8, 8, 3), (form, form), macs, real=2, estimator=estimator
    )


def _real_weights():
    """Binary activations times real weights, beside a product of signs."""
    w = _Weights()
    variables = {
        "kernels": [w.real(3, 3, 3, 8), w.real(3, 3, 8, 8), w.latent(3, 3, 8, 8)],
        "affines": [w.affine(8), w.affine(8)],
    }

    def apply(v, x):
        real, mixed, bits = v["kernels"]
        x = _affine(v["affines"][0], _conv(x, real))
        x = _affine(v["affines"][1], _conv(jnp.sign(x), mixed))
        return _conv(jnp.sign(x), jnp.sign(bits)).mean((1, 2))

    return apply, variables


def _scaled_kernels():
    """XNOR-Net's weights, sign times mean magnitude, of each output channel or of all together."""
    w = _Weights()
    variables = {
        "stem": w.real(3, 3, 3, 9),
        "affines": [w.affine(9), w.affine(12)],
        "kernel": w.latent(3, 3, 9, 12),
        "dense": w.latent(12, 20),
        "head": w.dense(20, _CLASSES),
    }

    def apply(v, x):
        kernel, dense = v["kernel"], v["dense"]
        x = _affine(v["affines"][0], _conv(x, v["stem"]))
        x = _conv(jnp.sign(x), jnp.sign(kernel) * jnp.abs(kernel).mean((0, 1, 2)))
        x = _affine(v["affines"][1], x.mean((1, 2)))
        x = jnp.sign(x) @ (jnp.sign(dense) * jnp.abs(dense).mean())
        return _dense(v["head"], x)

    return apply, variables


def _products_of_matrices():
    """A product for each of 3 groups at once, and a dense layer on every position of `[N, T, K]`."""
    w = _Weights()
    variables = {
        "stem": w.real(6, 12),
        "affine": w.affine(12),
        "batched": w.latent(3, 4, 8),
        "dense": w.latent_with_zeros(24, 20),
        "head": w.dense(20, _CLASSES),
    }

    def apply(v, x):
        x = _affine(v["affine"], x @ v["stem"])
        n, t, _ = x.shape
        x = jnp.sign(x).reshape(n * t, 3, 4)
        x = jnp.einsum("ngk,gko->ngo", x, jnp.sign(v["batched"])).reshape(n, t, 24)
        x = jnp.einsum("ntk,ko->nto", jnp.sign(x), _bits(v["dense"]))
        return _dense(v["head"], x.mean(1))

    return apply, variables


def _attention():
    """Scores from signs of two activations, so that neither operand is a constant."""
    w = _Weights()
    variables = {
        "query": w.latent(16, 8),
        "key": w.latent(16, 8),
        "value": w.latent(16, 8),
        "head": w.dense(8, _CLASSES),
    }

    def apply(v, x):
        signs = jnp.sign(x)
        query, key, value = (signs @ jnp.sign(v[name]) for name in ("query", "key", "value"))
        scores = jnp.einsum("nqc,nkc->nqk", jnp.sign(query), jnp.sign(key))
        mixed = jnp.einsum("nqk,nkc->nqc", jax.nn.softmax(scores / 8), value)
        return _dense(v["head"], mixed.mean(1))

    return apply, variables


def _shared_kernels():
    """One kernel at two sizes, in one group and in two, and one matrix with either axis summed over."""
    w = _Weights()
    variables = {
        "stem": w.real(3, 3, 3, 8),
        "affines": [w.affine(8) for _ in range(5)],
        "kernel": w.latent(3, 3, 8, 8),
        "dense": w.latent(8, 20),
        "head": w.dense(8, _CLASSES),
    }

    def apply(v, x):
        kernel, dense = jnp.sign(v["kernel"]), jnp.sign(v["dense"])
        x = _conv(x, v["stem"])
        for p, stride in zip(v["affines"], (1, 2, 1), strict=False):
            x = _conv(_own_sign(_affine(p, x)), kernel, stride)
        x = _own_sign(_affine(v["affines"][3], x))
        x = _conv(jnp.concatenate([x, x[..., ::-1]], axis=-1), kernel, groups=2)
        x = jnp.sign(_affine(v["affines"][4], x.mean((1, 2)))) @ dense
        return _dense(v["head"], jnp.einsum("nh,kh->nk", jnp.sign(x), dense))

    return apply, variables


def _groups_apart():
    """Two groups whose results are put side by side, and also read by themselves."""
    w = _Weights()
    variables = {
        "stem": w.real(3, 3, 3, 8),
        "affine": w.affine(8),
        "kernels": [w.latent(3, 3, 3, 7), w.latent(3, 3, 5, 7)],
        "head": w.dense(14, _CLASSES),
    }

    def apply(v, x):
        x = jnp.sign(_affine(v["affine"], _conv(x, v["stem"])))
        parts = [
            _conv(x[..., :3], jnp.sign(v["kernels"][0])),
            _conv(x[..., 3:], jnp.sign(v["kernels"][1])),
        ]
        x = jax.nn.relu(jnp.concatenate(parts, axis=-1)) + jnp.tile(parts[0] * parts[1] / 9, 2)
        return _dense(v["head"], x.mean((1, 2)))

    return apply, variables


def _narrow_types():
    """Images of 8 bits, signs of 8 and 16 bits, and weights that the function closes over."""
    w = _Weights()
    stem, affine, head = w.real(3, 3, 3, 10), w.affine(10), w.dense(10, _CLASSES)
    kernels = [w.latent_with_zeros(3, 3, 10, 10) for _ in range(2)]

    @jax.jit
    def apply(v, images):
        del v
        x = _affine(affine, _conv((images - 127.0) / 64, stem))
        for kernel, dtype, sums in zip(
            kernels, (jnp.int8, jnp.bfloat16), (jnp.int32, None), strict=True
        ):
            y = lax.conv_general_dilated(
                jnp.sign(x).astype(dtype),
                jnp.where(kernel > 0, 1, -1).astype(dtype),
                *((1, 1), "SAME"),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                preferred_element_type=sums,
            )
            x = x + y.astype(jnp.float32) / 30
        return _dense(head, x.mean((1, 2)))

    return apply, None


NETWORKS = (
    Network(
        "derived, 3 uneven groups",
        _resnet((16, 16, 3), _derived(13, 3)),
        (16, 16, 3),
        # The bridge, two blocks of 4 + 4 + 5 channels, and 26 duplicated ones, 8 + 8 + 10, after a ReLU.
        ("ternary", "ternary", "ternary", "and"),
        4 * 4 * 9 * (9 * 13 + 2 * (4 * 4 + 4 * 4 + 5 * 5)) + 2 * 2 * 9 * (8 * 8 + 8 * 8 + 10 * 10),
        real=2,
    ),
    Network(
        "derived, 5 uneven groups",
        _resnet((16, 16, 3), _derived(12, 5)),
        (16, 16, 3),
        ("ternary", "ternary", "ternary", "and"),
        4 * 4 * 9 * (9 * 12 + 2 * (4 * 2 * 2 + 4 * 4)) + 2 * 2 * 9 * (4 * 4 * 4 + 8 * 8),
        real=2,
    ),
    *map(_scaled, ("none", "mean_abs", "xnor_net", "xnor_net++", "real_to_bin")),
    Network(
        "two-valued signs, head of positions",
        _resnet((9, 9, 3), architectures.small((2, 1), 10, sign="two_valued", head="flatten")),
        (9, 9, 3),
        ("xnor", "xnor", "and"),
        2 * 9 * 9 * 9 * 10 * 10 + 5 * 5 * 9 * 10 * 20,
        real=3,
    ),
    Network(
        "DenseNet of flax layers",
        lambda: _flax(_DenseNet(), (8, 8, 3)),
        (8, 8, 3),
        ("ternary",) * 3,
        8 * 8 * 9 * (8 + 14 + 20) * 6,
        real=2,
    ),
    Network(
        "VGG of flax layers",
        lambda: _flax(_VGG(), (8, 8, 3)),
        (8, 8, 3),
        ("ternary",) * 3,
        9 * 8 * (8 * 8 * 8 + 4 * 4 * 16) + 2 * 2 * 16 * 20,
        real=2,
        images_dtype="uint8",
    ),
    Network("plain JAX", _plain, (8, 8, 3), ("xnor",) * 2, 8 * 8 * 9 * (12 * 20 + 20 * 20), real=2),
    Network(
        "equinox",
        _equinox,
        (2, 8, 8),
        ("xnor",) * 2,
        8 * 8 * 9 * 8 * 8 + 4 * 4 * 9 * 4 * 16,
        real=2,
        needs="equinox",
    ),
    Network("flax.nnx", _nnx, (8, 8, 3), ("ternary",) * 2, 2 * 4 * 4 * 9 * 9 * 9, real=2),
    Network("MLP", _mlp, (50,), ("ternary",) * 3, 50 * 64 + 64 * 33 + 33 * 10),
    Network(
        "depthwise and pointwise, thresholds",
        _depthwise,
        (8, 8, 3),
        ("ternary",) * 3,
        8 * 8 * 9 * 12 + 8 * 8 * 12 * 24 + 4 * 4 * 9 * 48,
        real=2,
    ),
    *(
        Network(name, _geometry(*geometry), (8, 8, 2), ("ternary",), positions * 7 * 9, real=2)
        for name, geometry, positions in (
            ("5x5, stride 2, SAME", ((5, 5), "SAME", 1, 2), 4 * 4 * 5 * 5),
            ("5x5, stride 2, VALID", ((5, 5), "VALID", 1, 2), 2 * 2 * 5 * 5),
            ("dilation 2", ((3, 3), "SAME", 2), 8 * 8 * 3 * 3),
            ("3x1, paddings apart", ((3, 1), ((2, 0), (0, 1))), 8 * 9 * 3),
        )
    ),
    Network("scan over blocks", _scan, (8, 8, 3), ("ternary",) * 3, 3 * 8 * 8 * 9 * 10 * 10, real=2),
    Network(
        "one-dimensional",
        _one_dimensional,
        (32, 2),
        ("ternary",) * 2,
        16 * 3 * 16 * 16 + 7 * 4 * 8 * 12,
        real=2,
    ),
    *(_estimator(*row) for row in _ESTIMATORS),
    Network(
        "real weights among binary ones",
        _real_weights,
        (8, 8, 3),
        ("ternary",),
        8 * 8 * 9 * 8 * 8,
        real=2,
        reason="its kernel holds numbers",
    ),
    Network(
        "scaled kernels",
        _scaled_kernels,
        (8, 8, 3),
        ("ternary", "ternary"),
        # As the network is written, these kernels are real numbers; packing takes them apart.
        0,
        real=2,
        options={"scaled_kernels": True},
    ),
    Network(
        "batched matrix products",
        _products_of_matrices,
        (7, 6),
        ("ternary",) * 2,
        7 * (3 * 4 * 8 + 24 * 20),
        real=2,
    ),
    Network(
        "shared kernels",
        _shared_kernels,
        (8, 8, 3),
        (*("xnor",) * 4, "ternary", "ternary"),
        (8 * 8 + 3 * 4 * 4) * 9 * 8 * 8 + 2 * 8 * 20,
        real=2,
    ),
    Network(
        "groups that are also read apart",
        _groups_apart,
        (8, 8, 3),
        ("ternary", "ternary"),
        8 * 8 * 9 * (3 + 5) * 7,
        real=2,
    ),
    Network(
        "narrow types, closed over",
        _narrow_types,
        (8, 8, 3),
        ("ternary", "ternary"),
        2 * 8 * 8 * 9 * 10 * 10,
        real=2,
        images_dtype="uint8",
    ),
    Network(
        "float16",
        lambda: _flax(ResNet(architectures.small((1, 1), 10), _CLASSES, jnp.float16), (8, 8, 3)),
        (8, 8, 3),
        ("ternary", "and"),
        8 * 8 * 9 * 10 * 10 + 4 * 4 * 9 * 10 * 20,
        real=3,
    ),
    Network(
        "attention between signs",
        _attention,
        (9, 16),
        ("ternary",) * 3,
        # The scores are binary for the budget, though no operand is a constant that could be packed.
        3 * 9 * 16 * 8 + 9 * 9 * 8,
        real=3,
        reason="both operands depend on the images",
    ),
)
