"""conv2d against `lax.conv_general_dilated` and JAX's own gradients of it, in float32."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ftbnn_jax.ops.conv import algorithms, convolution, geometry, table


def _plain(x, kernel, stride, padding):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )


def _arguments(features_in, size, kernel_size, features_out=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, *size, features_in)).astype(np.float32)
    kernel = rng.standard_normal((kernel_size, kernel_size, features_in, features_out))
    return jnp.asarray(x), jnp.asarray(kernel, jnp.float32)


# Relative to the largest element: 24, 8 and 11 bits of mantissa; float16 has the gradients of bfloat16.
_TOLERANCE = {jnp.float32: 2e-6, jnp.bfloat16: 2e-2, jnp.float16: 2e-3}
_GRADIENT_TOLERANCE = _TOLERANCE | {jnp.float16: 2e-2}


def _assert_close(actual, expected, tolerance):
    expected = np.asarray(expected, np.float64)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def _value_and_gradients(function, x, kernel, cotangent):
    y, vjp = jax.vjp(function, x, kernel)
    return y, *vjp(cotangent)


# Compiled as a whole: the taps of the kernel's gradient are many operations of their own shapes.
_conv2d = jax.jit(convolution.conv2d, static_argnums=(2, 3, 4))


@pytest.mark.parametrize(
    ("features_in", "size", "kernel_size", "stride", "padding", "compute_dtypes"),
    [
        # Below and above the number of channels from which the kernel's gradient goes by taps.
        (3, (12, 11), 7, 2, 3, _TOLERANCE),
        (15, (6, 7), 3, 2, 1, [jnp.float32]),
        (16, (6, 7), 3, 2, 1, [jnp.float32]),
        (20, (7, 9), 3, 1, 0, [jnp.float32]),
        (20, (5, 4), 5, 1, 2, [jnp.float32]),
        # Rows and columns that no window of stride 2 reaches.
        (20, (8, 7), 1, 2, 0, _TOLERANCE),
        (20, (8, 8), 3, 2, 0, [jnp.float32]),
    ],
)
def test_conv2d_is_laxs_convolution_with_its_gradients(
    features_in, size, kernel_size, stride, padding, compute_dtypes
):
    x, kernel = _arguments(features_in, size, kernel_size)
    shape = _plain(x, kernel, stride, padding).shape
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)
    expected = _value_and_gradients(lambda x, k: _plain(x, k, stride, padding), x, kernel, cotangent)
    for compute_dtype in compute_dtypes:
        actual = _value_and_gradients(
            lambda x, k: _conv2d(x, k, stride, padding, compute_dtype),  # noqa: B023
            x,
            kernel,
            cotangent,
        )
        assert [a.dtype for a in actual] == [jnp.float32] * 3
        _assert_close(actual[0], expected[0], _TOLERANCE[compute_dtype])
        for gradient, expected_gradient in zip(actual[1:], expected[1:], strict=True):
            _assert_close(gradient, expected_gradient, _GRADIENT_TOLERANCE[compute_dtype])


# Of two rows, one is alone in a batch of two; larger turns take both images. The channels, 5 and 3, are
# few or many.
@pytest.mark.parametrize(("turn_bytes", "loop_channels"), [(1, 5), (1, 6), (2**30, 1)])
@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "padding"),
    [
        ((7, 9), 3, 1, 1),
        ((6, 5), 3, 1, 0),
        ((5, 4), 5, 1, 2),
        ((4, 5), 3, 1, 2),
        ((8, 7), 3, 2, 1),
        ((7, 8), 3, 2, 0),
        ((9, 6), 7, 2, 3),
        ((8, 11), 3, 3, 1),
        ((6, 7), 1, 1, 0),
        ((6, 7), 1, 2, 0),
        ((7, 6), 1, 2, 1),
    ],
)
def test_every_algorithm_is_laxs_convolution(
    size, kernel_size, stride, padding, turn_bytes, loop_channels, monkeypatch
):
    """One device, since a batch on several is not cut into turns."""
    monkeypatch.setattr(algorithms, "_TURN_BYTES", turn_bytes)
    monkeypatch.setattr(algorithms, "_PLANES_BYTES", turn_bytes)
    monkeypatch.setattr(algorithms, "_LOOP_CHANNELS", loop_channels)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    x, kernel = _arguments(5, size, kernel_size, features_out=3)
    shape = _plain(x, kernel, stride, padding).shape
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)
    expected = _value_and_gradients(lambda x, k: _plain(x, k, stride, padding), x, kernel, cotangent)
    forward, inputs, kernels = (
        [name for name in names if algorithms.fits(name, kernel_size, stride)]
        for names in (
            algorithms.FORWARD,
            algorithms.INPUT_GRADIENT,
            algorithms.KERNEL_GRADIENT,
        )
    )
    for names in itertools.zip_longest(forward, inputs, kernels, fillvalue=None):
        chosen = [
            name or first[0] for name, first in zip(names, (forward, inputs, kernels), strict=True)
        ]
        with table.forced(*chosen):
            actual = jax.jit(
                lambda x, k: _value_and_gradients(
                    lambda x, k: convolution.conv2d(x, k, stride, padding), x, k, cotangent
                )
            )(x, kernel)
        for a, e in zip(actual, expected, strict=True):
            _assert_close(a, e, 2e-6)


def test_the_table_names_algorithms_that_exist_and_all_of_them():
    rows = [row for rows in table.ROWS.values() for row in rows]
    for field, there in (
        ("forward", algorithms.FORWARD),
        ("input_gradient", algorithms.INPUT_GRADIENT),
        ("kernel_gradient", algorithms.KERNEL_GRADIENT),
    ):
        assert {getattr(row, field) for row in rows} == set(there)
    for row in rows:
        assert algorithms.fits(row.forward, row.kernel_size, row.stride)
        assert algorithms.fits(row.kernel_gradient, row.kernel_size, row.stride)


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_every_shape_finds_a_row_that_can_compute_it(backend):
    for kernel_size, stride, size, features in itertools.product(
        (1, 2, 3, 5, 7), (1, 2, 3), (1, 300), (1, 999)
    ):
        row = table.nearest(backend, kernel_size, stride, size, features, features)
        assert algorithms.fits(row.forward, kernel_size, stride)
        assert algorithms.fits(row.kernel_gradient, kernel_size, stride)


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("dtype", list(_TOLERANCE))
def test_sums_of_signs_in_groups_are_exact_on_every_backends_path(backend, dtype, monkeypatch):
    """Computed here by the CPU, as the table says for another backend.

    The widest sum has 9 * 300 = 2700 products, above float16's 2048.
    """
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    rng = np.random.default_rng(0)
    ins, outs = (3, 5, 120, 300, 8), (4, 1, 7, 3, 5)
    x = rng.integers(-1, 2, (1, 4, 5, sum(ins))).astype(np.float32)
    x[..., sum(ins[:3]) : sum(ins[:4])] = 1
    kernels = [
        rng.choice([-1.0, 1.0], (3, 3, i, o)).astype(np.float32) for i, o in zip(ins, outs, strict=True)
    ]
    kernels[3][..., 0] = 1
    cotangent = rng.standard_normal((1, 4, 5, sum(outs))).astype(np.float32)

    def plain(x, kernels):
        parts = jnp.split(x, np.cumsum(ins)[:-1], -1)
        return jnp.concatenate([_plain(p, k, 1, 1) for p, k in zip(parts, kernels, strict=True)], -1)

    expected = _value_and_gradients(plain, x, kernels, cotangent)
    actual = jax.jit(
        lambda *a: _value_and_gradients(
            lambda x, k: convolution.grouped_conv2d(x, k, 1, 1, dtype, signs=True), *a
        )
    )(x, kernels, cotangent)
    assert actual[0].dtype == jnp.float32
    np.testing.assert_array_equal(actual[0], expected[0])
    assert actual[0].max() == 2700
    for a, e in zip(jax.tree.leaves(actual[1:]), jax.tree.leaves(expected[1:]), strict=True):
        _assert_close(a, e, _GRADIENT_TOLERANCE[dtype])


@pytest.mark.parametrize(("signs", "bytes_of_x"), [(True, 1), (False, 4)])
def test_signs_are_kept_for_the_backward_pass_in_a_byte(signs, bytes_of_x, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    x, kernel = jnp.ones((2, 6, 7, 5)), jnp.ones((3, 3, 5, 4))
    residuals = jax.eval_shape(
        lambda *a: jax.tree.leaves(
            jax.vjp(lambda x, k: convolution.conv2d(x, k, 1, 1, None, signs), *a)[1]
        ),
        x,
        kernel,
    )
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in residuals)
    assert kept == x.size * bytes_of_x + 4 * kernel.size


def test_signs_can_be_multiplied_as_numbers(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    x, kernel = jnp.ones((2, 6, 7, 5)), jnp.ones((3, 3, 5, 4))

    # Traced once for each of the two, although it is one function.
    convolve = jax.jit(lambda x, k: convolution.conv2d(x, k, 1, 1, None, True))

    def program():
        return str(jax.make_jaxpr(convolve)(x, kernel))

    assert "i8[" in program()
    with convolution.signs_as_numbers():
        assert "i8[" not in program()
    assert "i8[" in program()


def test_small_outputs_have_rows_of_their_own_at_any_width():
    for features in (16, 60, 256, 512):
        row = table.nearest("cpu", 3, 1, 2, features, features)
        assert row.forward == "windows"
        assert table.nearest("cpu", 3, 1, 8, features, features).forward == "aligned16"


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        ((30, 30, 30, 34), [[30, 30, 30, 34]]),
        ((64, 64, 64), [[64, 64], [64]]),
        ((100, 100), [[100], [100]]),
        ((300, 4, 4), [[300], [4, 4]]),
    ],
)
def test_as_many_groups_as_fit_the_matrix_unit_are_computed_together(widths, expected, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    runs = convolution._neighbours([jnp.zeros((1, 1, w, w)) for w in widths])
    assert [[kernel.shape[2] for kernel in run] for run in runs] == expected


@pytest.mark.parametrize("features_in", [3, 20])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_have_the_dtypes_of_the_arguments(features_in, dtype):
    x, kernel = _arguments(features_in, (6, 6), 3)
    gradients = jax.eval_shape(
        jax.grad(lambda x, k: jnp.sum(convolution.conv2d(x, k, 1, 1, jnp.float16)), argnums=(0, 1)),
        x.astype(dtype),
        kernel,
    )
    assert [g.dtype for g in gradients] == [dtype, jnp.float32]


@pytest.mark.parametrize("features_in", [3, 20])
def test_float16_operands_have_gradients_of_float32s_range(features_in):
    """Float16 ends at 6e-8 and 65504; the gradients of a mean over a large batch lie below."""
    x, kernel = _arguments(features_in, (6, 6), 3)
    y = _plain(x, kernel, 1, 1)
    expected = _value_and_gradients(lambda x, k: _plain(x, k, 1, 1), x, kernel, jnp.ones(y.shape))
    for scale in (1e-12, 1e12):
        actual = _value_and_gradients(
            lambda x, k: _conv2d(x, k, 1, 1, jnp.float16), x, kernel, jnp.full(y.shape, scale)
        )
        for gradient, expected_gradient in zip(actual[1:], expected[1:], strict=True):
            _assert_close(np.asarray(gradient, np.float64) / scale, expected_gradient, 2e-2)


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "padding", "dilation", "expected"),
    [
        (224, 7, 2, (3, 3), 1, 112),
        (112, 3, 2, (1, 1), 1, 56),
        (56, 3, 1, (1, 1), 1, 56),
        (7, 3, 2, (1, 1), 1, 4),
        (8, 3, 2, (1, 1), 1, 4),
        (8, 3, 2, (0, 1), 1, 4),
        (8, 3, 2, (0, 0), 1, 3),
        (5, 5, 1, (0, 0), 1, 1),
        (8, 1, 2, (0, 0), 1, 4),
        (8, 3, 1, (0, 0), 2, 4),
        (9, 3, 2, (1, 2), 3, 3),
    ],
)
def test_output_size(size, kernel_size, stride, padding, dilation, expected):
    assert geometry.output_size(size, kernel_size, stride, padding, dilation) == expected
    shape = jax.eval_shape(
        lambda x, kernel: lax.conv_general_dilated(
            x, kernel, [stride], [padding], rhs_dilation=[dilation]
        ),
        jax.ShapeDtypeStruct((1, 1, size), jnp.float32),
        jax.ShapeDtypeStruct((1, 1, kernel_size), jnp.float32),
    ).shape
    assert shape == (1, 1, expected)
