"""Convolution by population count against lax's convolution of signs."""

import os

import hypothesis
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import lax

from ftbnn_jax.ops import binary
from ftbnn_jax.ops.packed import convolution as packed
from ftbnn_jax.ops.packed import popcount as counting

_COMMON = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": list(hypothesis.HealthCheck),
    "database": None,
}
# Compiling takes nearly all the time of an example, which is why it runs on several drawn contents: at
# least 200 cases of geometry and contents in CI, 2,000 every night.
_CONTENTS = 4
hypothesis.settings.register_profile("ci", max_examples=100, **_COMMON)
hypothesis.settings.register_profile("nightly", max_examples=500, **{**_COMMON, "derandomize": False})
_PROFILE = hypothesis.settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Code of the lowest level is compiled several times faster.
_QUICK_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

# Exact zeros of both signs, subnormal numbers, and the smallest normal ones.
_TINY = np.finfo(np.float32).tiny
_PLANTED = np.array([0.0, -0.0, 1e-40, -1e-40, _TINY, -_TINY, 1e30, -1e30], np.float32)


def _signs(x):
    """Three-valued signs in NumPy's float64; a subnormal number is 0 by definition."""
    return np.where(x >= _TINY, 1.0, np.where(x <= -_TINY, -1.0, 0.0))


def _convolve(signs, kernels, conv):
    """`lax`'s convolution of all groups at once, with zeros between them.

    `signs` `[N, H, W, I]`, `kernels` one `[KH, KW, I_g, O_g]` a group; float32 holds such sums exactly.
    """
    dense = np.zeros((*conv.kernel_size, sum(conv.in_features), sum(conv.out_features)), np.float32)
    i, o = 0, 0
    for kernel in kernels:
        _, _, ins, outs = kernel.shape
        dense[:, :, i : i + ins, o : o + outs] = kernel
        i, o = i + ins, o + outs
    return lax.conv_general_dilated(
        signs.astype(np.float32),
        dense,
        conv.strides,
        conv.padding,
        rhs_dilation=conv.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _check(conv, shape, contents):
    """Compares a packed convolution of inputs of `shape` with lax's.

    Args:
      conv: packed.
      shape: batch, height and width.
      contents: share of planted values and seed of the others, one pair a comparison.
    """
    compiled = jax.jit(conv, compiler_options=_QUICK_COMPILE)
    _, height, width = shape
    for planted, seed in contents:
        rng = np.random.default_rng(seed)

        def draw(shape, rng=rng, planted=planted):
            x = rng.standard_normal(shape).astype(np.float32)
            return np.where(rng.random(shape) < planted, rng.choice(_PLANTED, shape), x)

        x = draw((*shape, sum(conv.in_features)))
        signs = _signs(x)
        if conv.form == "and":
            x, signs = np.maximum(x, 0), np.maximum(signs, 0)
        elif conv.form == "xnor":
            signs = np.where(signs > 0, 1.0, -1.0)
        widths = zip(conv.in_features, conv.out_features, strict=True)
        positive = [_signs(draw((*conv.kernel_size, *width))) > 0 for width in widths]
        actual = compiled(conv.prepare(positive, height, width), x)
        assert actual.dtype == jnp.int32
        assert actual.shape[1:3] == conv.output_shape(height, width)
        expected = _convolve(signs, [np.where(kernel, 1, -1) for kernel in positive], conv)
        np.testing.assert_array_equal(actual, expected)


@st.composite
def _groups(draw):
    """Input and output channels of each group."""
    kind = draw(st.sampled_from(["even", "uneven", "depthwise"]))
    if kind == "depthwise":
        groups = draw(st.integers(1, 300))
        return (1,) * groups, (draw(st.integers(1, 2)),) * groups
    if kind == "uneven":
        widths = st.tuples(st.integers(1, 70), st.integers(1, 9))
        return tuple(zip(*draw(st.lists(widths, min_size=1, max_size=4)), strict=True))
    # Widths around whole words are where packing can go wrong; the rest is drawn evenly.
    channels = draw(st.one_of(st.integers(1, 300), st.sampled_from([31, 32, 33, 63, 64, 65, 128, 300])))
    features = draw(st.integers(1, 40))
    groups = draw(st.integers(1, min(8, channels, features)))
    return binary.group_sizes(channels, groups), binary.group_sizes(features, groups)


@st.composite
def _cases(draw):
    def pair(values):
        return draw(st.tuples(values, values))

    kernel_size, strides = pair(st.sampled_from([1, 2, 3, 5])), pair(st.integers(1, 3))
    dilation = pair(st.sampled_from([1, 1, 2]))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel_size, strict=True)]
    kind = draw(st.sampled_from(["SAME", "VALID", "one number", "any"]))
    if kind == "any":
        padding = pair(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    elif kind == "one number":
        padding = ((draw(st.integers(0, 2)),) * 2,) * 2
    size = [draw(st.integers(1, 7)) for _ in range(2)]
    if kind in ("SAME", "VALID"):
        size = [max(n, r) for n, r in zip(size, reach, strict=True)] if kind == "VALID" else size
        padding = tuple(lax.padtype_to_pads(size, reach, strides, kind))
    else:
        size = [max(n, r - sum(p)) for n, r, p in zip(size, reach, padding, strict=True)]
    conv = packed.PackedConv(
        *draw(_groups()),
        draw(st.sampled_from(packed.FORMS)),
        kernel_size,
        strides,
        padding,
        dilation,
        draw(st.sampled_from(counting.COUNTINGS)),
    )
    content = st.tuples(st.sampled_from([0.0, 0.05, 0.5, 1.0]), st.integers(0, 2**32 - 1))
    contents = draw(st.lists(content, min_size=_CONTENTS, max_size=_CONTENTS))
    return conv, (draw(st.integers(1, 2)), *size), contents


@_PROFILE
@hypothesis.given(_cases())
def test_integers_equal_laxs_convolution_of_signs(case):
    _check(*case)


_NO_PADDING = ((0, 0), (0, 0))


@pytest.mark.parametrize("form", packed.FORMS)
@pytest.mark.parametrize(
    ("widths", "geometry", "shape"),
    [
        pytest.param(
            ((70,), (6,)), {"kernel_size": (1, 1), "padding": _NO_PADDING}, (2, 3, 4), id="1x1"
        ),
        pytest.param(
            ((1500,), (10,)), {"kernel_size": (1, 1), "padding": _NO_PADDING}, (3, 1, 1), id="dense"
        ),
        pytest.param(
            ((40,), (6,)),
            {"kernel_size": (1, 3), "strides": (1, 2), "padding": ((0, 0), (1, 1))},
            (2, 1, 9),
            id="1-D",
        ),
        pytest.param(((1,) * 700, (1,) * 700), {}, (1, 5, 4), id="depthwise"),
        # The bits that are left of 49 positions are more words than one expression takes.
        pytest.param(
            ((31,), (3,)), {"kernel_size": (7, 7), "padding": ((3, 3), (3, 3))}, (1, 9, 8), id="7x7"
        ),
        # Whole windows lie on the padding.
        pytest.param(
            ((33,), (3,)), {"kernel_size": (2, 2), "padding": ((4, 0), (0, 5))}, (1, 2, 1), id="outside"
        ),
    ],
)
def test_geometries_of_their_own(widths, geometry, shape, form):
    _check(packed.PackedConv(*widths, form, **geometry), shape, [(0.0, 1), (0.5, 2)])


def test_equal_groups_are_one_piece_of_the_program_whatever_their_number():
    def operations(groups):
        conv = packed.PackedConv((1,) * groups, (2,) * groups)
        weights = conv.prepare([np.ones((3, 3, 1, 2), bool)] * groups, 4, 4)
        return str(jax.make_jaxpr(conv)(weights, jnp.ones((1, 4, 4, groups)))).count(" = ")

    assert operations(500) == operations(2)


def _small():
    """A convolution in uneven groups, its weights and inputs for it."""
    conv = packed.PackedConv((4, 4, 5), (3, 3, 2), "and", strides=(1, 2))
    rng = np.random.default_rng(0)
    kernels = [
        rng.random((3, 3, *w)) < 0.5 for w in zip(conv.in_features, conv.out_features, strict=True)
    ]
    return (
        conv,
        conv.prepare(kernels, 6, 5),
        np.maximum(rng.standard_normal((3, 6, 5, 13), np.float32), 0),
    )


@pytest.mark.parametrize("batch", ["3", "batch"])
def test_an_exported_program_names_the_operation_and_its_geometry(batch):
    conv, weights, x = _small()
    shape = jax.export.symbolic_shape(f"{batch}, 6, 5, 13")
    program = jax.export.export(jax.jit(lambda x: conv(weights, x)), platforms=["cpu", "cuda"])
    exported = program(jax.ShapeDtypeStruct(shape, np.float32))
    loaded = jax.export.deserialize(exported.serialize())
    (call,) = [line for line in loaded.mlir_module().splitlines() if f"call @{packed.NAME}(" in line]
    for attribute in (
        'version = "1"',
        'form = "and"',
        'in_features = "(4, 4, 5)"',
        'out_features = "(3, 3, 2)"',
        'kernel_size = "(3, 3)"',
        'strides = "(1, 2)"',
        'padding = "((1, 1), (1, 1))"',
        'dilation = "(1, 1)"',
    ):
        assert attribute in call
    assert "counting" not in call
    np.testing.assert_array_equal(loaded.call(x), conv(weights, x))


def test_a_further_axis_can_be_mapped_over():
    conv, weights, x = _small()
    mapped = jax.vmap(lambda x: conv(weights, x))(x[:, None])
    np.testing.assert_array_equal(mapped[:, 0], conv(weights, x))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"form": "or"}, "form='or': must be one of xnor, and, ternary"),
        ({"counting": "bytes"}, "counting='bytes': must be one of words, adders"),
        ({"out_features": (2,)}, "2 groups in, 1 groups out"),
        ({"kernel_size": (0, 3)}, r"kernel_size=\(0, 3\): must be at least 1 each"),
        ({"strides": (1, 0)}, r"strides=\(1, 0\): must be"),
        ({"dilation": (0, 1)}, r"dilation=\(0, 1\): must be"),
        ({"in_features": (), "out_features": ()}, r"in_features=\(\): must be"),
        ({"padding": ((0, 0), (-1, 0))}, r"padding=\(\(0, 0\), \(-1, 0\)\): must not be negative"),
    ],
)
def test_impossible_fields_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        packed.PackedConv(**{"in_features": (4, 4), "out_features": (3, 3), **fields})


@pytest.mark.parametrize(
    ("shape", "height", "words"),
    [
        ((3, 3, 4, 2), 5, r"kernels of shapes \[\(3, 3, 4, 2\)\]: must be \[\(3, 3, 4, 3\)\]"),
        ((3, 3, 4, 3), 2, "a window is larger than an input of 2 x 5 positions"),
    ],
)
def test_kernels_and_inputs_that_do_not_fit_are_named(shape, height, words):
    conv = packed.PackedConv((4,), (3,), padding=_NO_PADDING)
    with pytest.raises(ValueError, match=words):
        conv.prepare([np.ones(shape, bool)], height, 5)
