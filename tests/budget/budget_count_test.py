"""Counts of modules that nobody registered, with every expected value written out."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from ftbnn_jax import budget
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import activations, architectures, blocks
from ftbnn_jax.nn.resnet import ResNet
from ftbnn_jax.ops import batch_norm, binary, pooling, quantizers


class OneBinaryOneDense(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = blocks.BinaryConv(24)(x)
        return nn.Dense(10)(x.mean((1, 2)))


def test_a_users_module_with_one_binary_convolution_and_one_dense():
    b = budget.count(OneBinaryOneDense(), (16, 20, 8))
    assert b.bops == b.bops_blocks == b.binary_macs == 16 * 20 * 9 * 8 * 24
    assert b.bops_bridge == 0
    assert b.flops == b.macs == 24 * 10
    assert b.total == 24 * 10 + 16 * 20 * 9 * 8 * 24 / 64
    assert b.binary_params == 9 * 8 * 24
    assert b.real_params == 24 * 10 + 10
    assert b.params == 24 * 10 + 10 + 9 * 8 * 24 / 32
    assert b.bytes_unpacked == 4 * (9 * 8 * 24 + 24 * 10 + 10)
    assert b.bytes_packed == 9 * 8 * 24 / 8 + 4 * (24 * 10 + 10)
    assert b.state == 0
    layers = {layer.name: layer for layer in b.layers}
    assert layers["BinaryConv_0"].bops == b.bops
    assert layers["BinaryConv_0"].binary_params == b.binary_params
    assert layers["Dense_0"].flops == b.flops
    assert layers["Dense_0"].real_params == b.real_params


class FromOps(nn.Module):
    """Uses the operations alone, with parameters of its own shape, in a jit and under other names."""

    groups: int = 4

    @nn.compact
    def __call__(self, images):
        latent = self.param("latent", nn.initializers.normal(), (self.groups, 9, 6, 5))
        gain = self.param("gain", nn.initializers.ones, (5 * self.groups,))

        @jax.jit
        def forward(x, latent):
            kernels = [k.reshape(3, 3, 6, 5) for k in latent]
            y = binary.binary_conv2d(
                x,
                kernels,
                input_quantizer=quantizers.ThreeValuedSign(),
                kernel_quantizer=quantizers.TwoValuedSign(),
                stride=2,
                compute_dtype=jnp.bfloat16,
            )
            return pooling.global_avg_pool(y)

        return forward(images, latent) * gain


def test_operations_without_our_modules():
    b = budget.count(FromOps(), jax.ShapeDtypeStruct((32, 12, 12, 4 * 6), jnp.bfloat16))
    assert b.bops == 4 * (6 * 6) * 9 * 6 * 5
    assert b.binary_params == 4 * 9 * 6 * 5
    assert b.real_params == 4 * 5
    assert b.flops == 0


@jax.jit
def _compiled_conv(x, kernel):
    signs = quantizers.TwoValuedSign()
    return binary.binary_conv2d(x, [kernel], input_quantizer=signs, kernel_quantizer=signs)


class CompiledBefore(nn.Module):
    @nn.compact
    def __call__(self, x):
        return _compiled_conv(x, self.param("latent", nn.initializers.normal(), (3, 3, 30, 30)))


def test_what_was_compiled_before_is_traced_anew():
    """Compiled for this machine, the convolution may have its channels padded."""
    _compiled_conv(jnp.ones((1, 8, 8, 30)), jnp.ones((3, 3, 30, 30)))
    assert budget.count(CompiledBefore(), (8, 8, 30)).binary_macs == 9 * 8 * 8 * 30 * 30


class AfterAll(nn.Module):
    """A binary convolution after a chain of operations on a ReLU's output or on anything else."""

    activation: str = "relu"
    input_quantizer: quantizers.Quantizer = quantizers.ThreeValuedSign()

    @nn.compact
    def __call__(self, x, train):
        x = activations.MODULES[self.activation]()(x)
        x = pooling.max_pool(x).astype(jnp.bfloat16)
        x = jnp.concatenate([x, x], axis=-1)
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))[:, 1:-1, 1:-1]
        return blocks.BinaryConv(14, groups=3, input_quantizer=self.input_quantizer)(x)


@pytest.mark.parametrize(
    ("fields", "factor"),
    [
        ({"activation": "relu"}, 2),
        # Signs of -1 and +1 alone are plain XNOR again.
        ({"activation": "relu", "input_quantizer": quantizers.TwoValuedSign()}, 1),
        ({"activation": "fprelu"}, 1),
        ({"activation": "prelu"}, 1),
        ({"activation": "none"}, 1),
    ],
)
def test_bops_double_where_the_program_feeds_a_relu(fields, factor):
    b = budget.count(AfterAll(**fields), (8, 8, 8))
    # 16 channels in 3 uneven groups to 14: 5, 5, 6 to 4, 4, 6.
    macs = 4 * 4 * 9 * (5 * 4 + 5 * 4 + 6 * 6)
    assert b.binary_macs == macs
    assert b.bops == factor * macs
    assert [layer.after_relu for layer in b.layers if layer.bops] == [factor == 2]


class WrittenOut(nn.Module):
    """Signs and a ReLU without any name: what they are follows from what they compute."""

    def setup(self):
        self.w = self.param("w", nn.initializers.normal(), (8, 3))

    def __call__(self, x):
        signs = jnp.sign(jnp.maximum(x, 0))
        return signs @ jnp.where(self.w >= 0, 1.0, -1.0)


class RealWeights(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, use_bias=False)(quantizers.ThreeValuedSign()(x))


class RealActivations(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x @ quantizers.TwoValuedSign()(self.param("w", nn.initializers.normal(), (8, 3)))


class SharedWeights(nn.Module):
    """The latent weights are needed as they are too, so they cannot shrink to bits."""

    @nn.compact
    def __call__(self, x):
        w = self.param("w", nn.initializers.normal(), (8, 3))
        return quantizers.ThreeValuedSign()(x) @ quantizers.TwoValuedSign()(w) + x @ w


@pytest.mark.parametrize(
    ("module", "flops", "bops", "binary_params"),
    [
        (WrittenOut(), 0, 2 * 8 * 3, 8 * 3),
        (RealWeights(), 8 * 3, 0, 0),
        (RealActivations(), 8 * 3, 0, 0),
        (SharedWeights(), 8 * 3, 8 * 3, 0),
    ],
)
def test_both_operands_must_be_signs(module, flops, bops, binary_params):
    b = budget.count(module, (8,))
    assert (b.flops, b.bops, b.binary_params) == (flops, bops, binary_params)
    assert b.real_params + b.binary_params == 8 * 3


class Elementwise(nn.Module):
    """One operation, by its name."""

    name_: str

    @nn.compact
    def __call__(self, x):
        c = x.shape[-1]
        ones = jnp.ones(c)
        return {
            "normalize": lambda: batch_norm.Normalizer.of(x, ones, ones, 1e-5)(x),
            "folded": lambda: batch_norm.apply_folded(x, ones, ones),
            "our batch norm": lambda: blocks.BatchNorm()(x, train=True),
            "our batch norm, folded": lambda: blocks.BatchNorm()(x, train=False),
            "flax batch norm": lambda: nn.BatchNorm(use_running_average=False)(x),
            "flax layer norm": lambda: nn.LayerNorm()(x),
            "our relu": lambda: activations.ReLU()(x),
            "our prelu": lambda: activations.PReLU()(x),
            "our fprelu": lambda: activations.FPReLU()(x),
            "flax relu": lambda: nn.relu(x),
            "flax prelu": lambda: nn.PReLU()(x),
            "silu": lambda: nn.silu(x),
            "gelu": lambda: nn.gelu(x),
            "tanh": lambda: jnp.tanh(x),
            "twice": lambda: activations.ReLU()(activations.ReLU()(x)),
            "sum": lambda: x + x,
            "cast": lambda: x.astype(jnp.bfloat16),
            "max pool": lambda: pooling.max_pool(x),
            "flax max pool": lambda: nn.max_pool(x, (2, 2), (2, 2)),
            "global mean": lambda: pooling.global_avg_pool(x),
            "flax global mean": lambda: nn.avg_pool(x, x.shape[1:3]),
            "3x3 mean": lambda: pooling.avg_pool_3x3(x),
            "3x3 mean, then twice": lambda: jnp.concatenate([pooling.avg_pool_3x3(x)] * 2, -1),
            "2x2 mean": lambda: pooling.avg_pool_2x2(x),
            "of the weights": lambda: x * jnp.tanh(self.param("w", nn.initializers.ones, c)),
        }[self.name_]()


_ELEMENTS = 6 * 10 * 4


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        *[(name, _ELEMENTS) for name in ("normalize", "folded", "our batch norm")],
        *[(name, _ELEMENTS) for name in ("our batch norm, folded", "flax batch norm")],
        *[(name, _ELEMENTS) for name in ("flax layer norm", "our relu", "our prelu", "our fprelu")],
        *[(name, _ELEMENTS) for name in ("flax relu", "flax prelu", "silu", "gelu", "tanh")],
        ("twice", 2 * _ELEMENTS),
        *[(name, 0) for name in ("sum", "cast", "max pool", "flax max pool")],
        *[(name, 0) for name in ("global mean", "flax global mean", "of the weights")],
        ("3x3 mean", 9 * 3 * 5 * 4),
        ("3x3 mean, then twice", 9 * 3 * 5 * 4),
        ("2x2 mean", 4 * 3 * 5 * 4),
    ],
)
def test_flops_of_everything_but_products(name, flops):
    assert budget.count(Elementwise(name), (6, 10, 4)).flops == flops


@pytest.mark.parametrize("size", [7, 8, 224])
def test_odd_sizes_leave_the_count_of_positions_to_the_program(size):
    half = -(-size // 2)
    b = budget.count(Elementwise("2x2 mean"), (size, size, 4))
    # At odd sizes the number of positions in a window is computed too, but once, not for each image.
    assert b.flops == 4 * half * half * 4


def _scanned(length):
    class Turn(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.remat(blocks.BinaryConv)(8)(x), None

    return nn.scan(
        Turn, variable_axes={"params": 0}, split_rngs={"params": True}, length=length
    )  # fmt: skip


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        return _scanned(5)()(x, None)[0]


class Branches(nn.Module):
    @nn.compact
    def __call__(self, x):
        small, large = (self.param(n, nn.initializers.normal(), (8, 8)) for n in ("small", "large"))
        return jax.lax.cond(x.sum() > 0, lambda: x @ small, lambda: x @ large @ small)


class Endless(nn.Module):
    @nn.compact
    def __call__(self, x):
        w = self.param("w", nn.initializers.normal(), (8, 8))
        return jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ w, x)


def test_a_loop_counts_as_often_as_it_turns():
    b = budget.count(Scanned(), (4, 4, 8))
    assert b.bops == 5 * (4 * 4 * 9 * 8 * 8)
    assert b.binary_params == 5 * (9 * 8 * 8)


def test_the_dearest_branch_counts():
    assert budget.count(Branches(), (8,)).flops == 2 * 8 * 8


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(UserError, match=r"while loop.*jax\.lax\.scan"):
        budget.count(Endless(), (8,))


def _small(**fields):
    return ResNet(architectures.small((2, 2), 8, **fields), 3)


@pytest.mark.parametrize("arguments", [{"train": True}, {"train": False}, {}])
def test_training_and_inference_cost_the_same(arguments):
    counted = budget.count(_small(), (8, 8, 1), memory=False, **arguments)
    expected = budget.count(_small(), (8, 8, 1), memory=False, train=True)
    assert (counted.flops, counted.bops, counted.params) == (
        expected.flops, expected.bops, expected.params
    )  # fmt: skip


@pytest.mark.parametrize("compute_dtype", [jnp.bfloat16, jnp.float16])
def test_the_compute_dtype_does_not_matter(compute_dtype):
    net = ResNet(architectures.derived(18, 3, 90), 1000, compute_dtype)
    b = budget.count(net, (32, 32, 3), memory=False)
    expected = budget.count(ResNet(architectures.derived(18, 3, 90), 1000), (32, 32, 3), memory=False)
    assert (b.flops, b.bops, b.binary_params) == (
        expected.flops, expected.bops, expected.binary_params
    )  # fmt: skip


@pytest.mark.parametrize("sign", ["three_valued", "two_valued"])
def test_after_relu_agrees_with_the_plan(sign):
    net = architectures.small(
        (3, 2, 1), 8, groups=2, bridge=True, stem_activation="relu", downsample="duplicate", sign=sign
    )
    b = budget.count(ResNet(net, 3), (16, 16, 3), memory=False)
    found = {layer.name.split("/")[0]: layer.after_relu for layer in b.layers if layer.bops}
    assert found == {plan.name: plan.after_relu for plan in net.plan()}
    assert b.bops_bridge == 2 * 16 * 16 * 9 * 8 * 8
    assert b.bops == b.bops_blocks + b.bops_bridge


def test_layers_stand_in_the_order_of_the_program_and_add_up():
    b = budget.count(_small(), (8, 8, 1))
    names = [layer.name for layer in b.layers]
    assert [n for n in names if n.endswith("conv")] == [
        *("stem/conv", "block1_1/conv", "block1_2/conv"),
        *("block2_1/shortcut_conv", "block2_1/conv", "block2_2/conv"),
    ]
    assert len(set(names)) == len(names)
    for field in ("flops", "bops", "real_params", "binary_params", "total", "bytes_packed"):
        assert sum(getattr(layer, field) for layer in b.layers) == getattr(b, field)
