"""Binary convolution against sums of signs counted in NumPy's integers."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax

from ftbnn_jax.ops import binary
from ftbnn_jax.ops.conv import convolution
from ftbnn_jax.ops.quantizers import Clipped, ThreeValuedSign, TwoValuedSign

_DTYPES = [np.float32, ml_dtypes.bfloat16, np.float16]


def _three_valued(x):
    return np.where(x > 0, 1, np.where(x < 0, -1, 0))


def _two_valued(x):
    return np.where(x > 0, 1, -1)


@pytest.mark.parametrize(
    ("channels", "groups", "expected"),
    [
        (64, 1, (64,)),
        (198, 3, (66, 66, 66)),
        (154, 5, (30, 30, 30, 30, 34)),
        (164, 8, (20, 20, 20, 20, 20, 20, 20, 24)),
        (5, 5, (1, 1, 1, 1, 1)),
        (7, 4, (1, 1, 1, 4)),
    ],
)
def test_group_sizes(channels, groups, expected):
    assert binary.group_sizes(channels, groups) == expected
    assert sum(expected) == channels


@pytest.mark.parametrize(("channels", "groups"), [(4, 0), (4, -1), (4, 5)])
def test_group_sizes_names_what_does_not_fit(channels, groups):
    with pytest.raises(ValueError, match=f"groups={groups}: 4 channels allow 1 to 4 groups"):
        binary.group_sizes(channels, groups)


def test_grouped_conv2d_wants_kernels_for_all_channels():
    with pytest.raises(ValueError, match=r"kernels take \[2, 3\] channels, the input has 6"):
        kernels = [jnp.ones((1, 1, 2, 1)), jnp.ones((1, 1, 3, 1))]
        convolution.grouped_conv2d(jnp.ones((1, 2, 2, 6)), kernels, 1, 0)


_QUANTIZERS = {_three_valued: ThreeValuedSign, _two_valued: TwoValuedSign}


def _operands(features_in, features_out, groups, size, kernel_size, seed=0):
    """Activations and latent weights, a fifth of them exact zeros, of both signs of zero."""
    rng = np.random.default_rng(seed)

    def values(*shape):
        x = 1.5 * rng.standard_normal(shape)
        return np.where(rng.random(shape) < 0.2, np.copysign(0, x), x).astype(np.float32)

    part_in, part_out = features_in // groups, features_out // groups
    kernels = []
    for g in range(groups):
        # The last group takes the channels that are left over.
        i = features_in - part_in * (groups - 1) if g == groups - 1 else part_in
        o = features_out - part_out * (groups - 1) if g == groups - 1 else part_out
        kernels.append(values(kernel_size, kernel_size, i, o))
    return values(2, *size, features_in), kernels


def _direct(x, kernels, stride, padding, sign):
    """The definition: for each output position, a sum over the window, in 64-bit integers."""
    signs = sign(x).astype(np.int64)
    signs = np.pad(signs, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    outputs, start = [], 0
    for kernel in kernels:
        size, _, features_in, features_out = kernel.shape
        part = signs[..., start : start + features_in]
        start += features_in
        weights = _two_valued(kernel).astype(np.int64)
        height = (part.shape[1] - size) // stride + 1
        width = (part.shape[2] - size) // stride + 1
        y = np.zeros((len(x), height, width, features_out), np.int64)
        for row in range(height):
            for column in range(width):
                top, left = row * stride, column * stride
                window = part[:, top : top + size, left : left + size]
                y[:, row, column] = np.tensordot(window, weights, 3)
        outputs.append(y)
    return np.concatenate(outputs, -1)


@pytest.mark.parametrize(
    ("features_in", "features_out", "groups", "size", "kernel_size", "stride", "padding"),
    [
        (8, 6, 2, (7, 6), 3, 2, 1),
        (154, 154, 5, (3, 4), 3, 1, 1),
        (14, 22, 4, (6, 7), 3, 2, 0),
        (6, 4, 1, (5, 8), 5, 1, 2),
        (7, 5, 3, (7, 5), 5, 2, 1),
        (9, 4, 2, (4, 5), 1, 1, 0),
        (9, 4, 2, (4, 5), 1, 2, 2),
        # 9 * 512 = 4608 products a sum: more than float16 (2048) and bfloat16 (256) can count.
        (512, 2, 1, (3, 3), 3, 1, 1),
    ],
)
def test_binary_conv2d_counts_exactly_in_every_compute_dtype(
    features_in, features_out, groups, size, kernel_size, stride, padding
):
    x, kernels = _operands(features_in, features_out, groups, size, kernel_size)
    variants = [(sign, dtype) for sign in _QUANTIZERS for dtype in _DTYPES]

    @jax.jit  # One compilation for all variants: that is where the time of this test goes.
    def run(x, kernels):
        return [
            binary.binary_conv2d(
                x,
                kernels,
                stride=stride,
                padding=padding,
                input_quantizer=_QUANTIZERS[sign](),
                kernel_quantizer=TwoValuedSign(),
                compute_dtype=dtype,
            )
            for sign, dtype in variants
        ]

    for (sign, dtype), y in zip(variants, run(x, kernels), strict=True):
        assert y.dtype == jnp.float32
        expected = _direct(x, kernels, stride, padding, sign)
        np.testing.assert_array_equal(y, expected, err_msg=f"{sign.__name__} {dtype}")


def test_binary_conv2d_counts_thousands_of_equal_signs_exactly():
    """Sums of random signs stay small; this one takes every value of its range, 1001 to 4608."""
    x = jnp.ones((1, 3, 3, 512))
    kernels = [jnp.asarray(np.where(np.arange(4608) < 4608 - n, 1, -1)) for n in range(0, 1804, 451)]
    kernel = jnp.stack(kernels, -1).reshape(3, 3, 512, -1).astype(jnp.float32)
    for compute_dtype in _DTYPES:
        y = binary.binary_conv2d(
            x,
            [kernel],
            input_quantizer=ThreeValuedSign(),
            kernel_quantizer=TwoValuedSign(),
            padding=0,
            compute_dtype=compute_dtype,
        )
        np.testing.assert_array_equal(y[0, 0, 0], [4608 - 2 * n for n in range(0, 1804, 451)])


def _straight_through(values, signs, bound):
    """`signs` forward, the gradient of a clip of `values` backward, by JAX's autodiff alone."""
    clipped = jnp.clip(values, -bound, bound)
    return clipped + lax.stop_gradient(signs - clipped)


@pytest.mark.parametrize(
    ("features_in", "features_out", "groups", "stride", "bound"),
    [(7, 5, 3, 2, 1.2), (20, 4, 1, 1, 0.5)],
)
def test_gradients_are_those_of_a_convolution_of_straight_through_signs(
    features_in, features_out, groups, stride, bound
):
    x, kernels = _operands(features_in, features_out, groups, (5, 6), 3)
    # Small integers, whose sums here stay below 256, so that bfloat16 holds them exactly as well.
    shape = _direct(x, kernels, stride, 1, _three_valued).shape
    cotangent = np.random.default_rng(1).integers(-1, 2, shape).astype(np.float32)

    def plain(x, kernels, sign):
        outputs, start = [], 0
        signs = _straight_through(x, sign(x), bound)
        for kernel in kernels:
            part = signs[..., start : start + kernel.shape[2]]
            start += kernel.shape[2]
            outputs.append(
                lax.conv_general_dilated(
                    part,
                    _straight_through(kernel, jnp.where(kernel > 0, 1, -1), bound),
                    (stride, stride),
                    [(1, 1), (1, 1)],
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                )
            )
        return jnp.concatenate(outputs, -1)

    @jax.jit
    def run(x, kernels, cotangent):
        results = []
        for quantizer, sign in (
            (ThreeValuedSign, jnp.sign),
            (TwoValuedSign, lambda x: jnp.where(x > 0, 1, -1)),
        ):
            expected = jax.vjp(lambda x, k: plain(x, k, sign), x, kernels)[1](cotangent)  # noqa: B023
            for compute_dtype in _DTYPES:
                convolve = functools.partial(
                    binary.binary_conv2d,
                    input_quantizer=quantizer(Clipped(bound)),
                    kernel_quantizer=TwoValuedSign(Clipped(bound)),
                    stride=stride,
                    compute_dtype=compute_dtype,
                )
                results.append((jax.vjp(convolve, x, kernels)[1](cotangent), expected))
        return results

    for actual, expected in run(x, kernels, cotangent):
        for gradient, expected_gradient in zip(
            jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
        ):
            assert 1 < np.abs(expected_gradient).max() < 256
            np.testing.assert_allclose(gradient, expected_gradient, atol=1e-4)


@pytest.mark.parametrize(
    ("inputs", "quantizer", "expected"),
    [
        # After the ReLU, with zeros kept (Eq. 5 and 7).
        ([0, 0, 1.5, 2, 0], ThreeValuedSign(), 0),
        # Zeros as -1: Eq. 3 counts 2 equal signs of 5, and a sum of signs is 2 * equal - 5.
        ([0, 0, 1.5, 2, 0], TwoValuedSign(), 2 * 2 - 5),
        # Without the ReLU the signs are the same ones.
        ([-3, -2, 1.5, 2, -1.2], ThreeValuedSign(), 2 * 2 - 5),
    ],
)
def test_the_worked_example_of_appendix_b(inputs, quantizer, expected):
    x = jnp.asarray(inputs, jnp.float32).reshape(1, 1, 1, 5)
    kernel = jnp.array([1.0, -1, 1, -1, 1]).reshape(1, 1, 5, 1)
    y = binary.binary_conv2d(
        x, [kernel], input_quantizer=quantizer, kernel_quantizer=TwoValuedSign(), padding=0
    )
    assert y.item() == expected
