"""Networks of no specification in C: operations that the paper's have not, and those that C has not."""

import c_programs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ftbnn_jax
from ftbnn_jax.configs import own_network
from ftbnn_jax.deploy import export as network_export
from ftbnn_jax.deploy import runtime as runtime_lib
from ftbnn_jax.deploy.c import (
    export,
    fixed_functions,
    fixed_point,
    functions,
    generate,
    lowering,
    reference,
    verify,
)
from ftbnn_jax.deploy.c.options import DEFAULT, Options
from ftbnn_jax.errors import UserError
from ftbnn_jax.ops.preprocessing import Preprocessing

c_programs.need_compiler()

_RNG = np.random.default_rng(0)
_SIGNS = np.where(_RNG.random((12, 5)) < 0.5, -1.0, 1.0).astype(np.float32)
_GROUPED = _RNG.standard_normal((3, 2, 2, 6)).astype(np.float32)
_PLAIN = _RNG.standard_normal((3, 3, 4, 4)).astype(np.float32)
_SQUARE = np.where(_RNG.random((4, 4)) < 0.5, -1.0, 1.0).astype(np.float32)
_ALONG_A_LINE = _RNG.standard_normal((4, 6, 7)).astype(np.float32)


def _functions(x):
    positive = jnp.abs(x) + 0.1
    found = [jnp.exp(x), jnp.expm1(x), jnp.log(positive), jnp.log1p(positive), jnp.tanh(x)]
    found += [jax.nn.sigmoid(x), jnp.sqrt(positive), lax.rsqrt(positive)]
    return sum([*found, lax.integer_pow(x, 3), lax.integer_pow(positive, -2), lax.integer_pow(x, 6)])


def _steps(x):
    stairs = jnp.floor(x) + jnp.ceil(3 * x) + jnp.round(5 * x)
    return stairs + jnp.minimum(x, 0.5) + jnp.where(x < 0, -x, x) + jnp.sign(x)


def _narrow(x):
    """Numbers of 16 bits, subnormal ones among them."""
    halves = [(x * scale).astype(jnp.float16).astype(jnp.float32) / scale for scale in (1, 1e-6, 1e4)]
    return sum(halves) + (x / 3).astype(jnp.bfloat16).astype(x.dtype)


def _whole_numbers(x):
    whole = (x * 100).astype(jnp.int32)
    odd = lax.bitwise_and(whole, 1) == 1
    chosen = jnp.where(odd | ~(whole > 50), whole - 7, -whole)
    narrow = jnp.clip(whole, -100, 100).astype(jnp.int8) + jnp.int8(100)
    return (jnp.maximum(chosen * 3, narrow.astype(jnp.int32)) + jnp.abs(whole)).astype(jnp.float32)


def _moved(x):
    edges = ((0, 0, 0), (1, 2, 1), (-1, 0, 0), (0, 1, 2))
    padded = lax.pad(x, jnp.float32(0.5), edges)
    rows = jnp.concatenate([padded[:, 1:4, :3], padded[:, 2:3, 2:5], padded[:, ::-2, 1:4]], axis=1)
    taken = jnp.take(rows, np.array([3, 0, 2, 2]), axis=1, mode="clip")
    places = jnp.argmax(taken, axis=2).astype(jnp.float32)
    return jnp.concatenate([places, taken[:, :, 1]], axis=-1)


def _products(x):
    x = lax.conv_general_dilated(
        *(x, _GROUPED, (2, 1), ((2, 1), (0, 3))),
        rhs_dilation=(1, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=2,
    )
    rows = x.reshape(x.shape[0], -1, 6)
    x = lax.conv_general_dilated(
        rows, _ALONG_A_LINE, (3,), ((1, 0),), dimension_numbers=("NWC", "WIO", "NWC")
    )
    return jnp.einsum("nij,nkj->nik", x, x)


def _windows(x):
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 2, 1), (1, 2, 1, 1), "SAME")
    # Along the channels too.
    return lax.reduce_window(x, 0.0, lax.add, (1, 1, 2, 3), (1, 1, 2, 1), "SAME")


def _axes(x):
    turned = jnp.transpose(x, (0, 3, 2, 1))
    return (
        x.sum(-1)[..., None] / 4
        + turned.max((1, 3))[:, None, :, None] * x
        - turned[:, :1, :, ::2].sum(-1)[..., None]
    )


def _read_twice(x):
    """An array that is read in another order, then copied for a convolution; two signs of one array."""
    turned = jnp.transpose(x, (0, 2, 1, 3))
    numbers = ("NHWC", "HWIO", "NHWC")
    magnitudes = jnp.abs(turned)
    y = lax.conv_general_dilated(turned, _PLAIN, (1, 1), "SAME", dimension_numbers=numbers)
    y = y + magnitudes
    z = 2 * y + turned
    return jnp.sign(z - 1) @ _SQUARE + jnp.sign(z) @ -_SQUARE + z


_OPERATIONS = (
    _read_twice,
    _functions,
    _steps,
    _narrow,
    _whole_numbers,
    _moved,
    _products,
    _windows,
    _axes,
)


def _network(operation):
    """Signs of what an operation makes of images, in a binary product; its numbers are added."""

    def function(variables, images):
        x = operation(images).reshape(images.shape[0], -1)[:, :12]
        return jnp.sign(x - x.mean(1, keepdims=True)) @ variables + x[:, 7:12] / 100

    return function


def _pack(operation, images):
    return ftbnn_jax.pack(_network(operation), _SIGNS, images)


def _bytes(images):
    return images.astype(jnp.float32) / 64


def _images(count=3):
    return _RNG.standard_normal((count, 6, 6, 4)).astype(np.float32)


def _compare(artifact, images, folder, options=DEFAULT, flags=c_programs.STRICT):
    files = generate.files(artifact, options)
    export.write(folder, {name: text.encode() for name, text in files.items()})
    batch = {"image": images, "weight": np.ones(len(images))}
    return verify.compare(folder, runtime_lib.Runtime(artifact), [batch], flags)


@pytest.mark.parametrize("operation", _OPERATIONS, ids=lambda f: f.__name__.strip("_"))
def test_operations_of_any_network_give_the_same_numbers(tmp_path, operation):
    images = _images()
    result = _compare(_pack(operation, images), images, tmp_path / "c", flags=c_programs.SANITIZED)
    assert list(result.failures()) == []
    *_, layer = result.layers
    assert (layer.compared, layer.differing, layer.rounded) == (3 * 5, 0, 0)
    assert (result.logits, result.logits_bounded) == (3 * 5, 3)


@pytest.mark.parametrize(
    "flags", [c_programs.SANITIZED, ("-O1", "-march=native")], ids=["plain", "vectors"]
)
@pytest.mark.parametrize("least", [0, 1], ids=["signs", "bits"])
def test_long_windows_and_outputs_beyond_a_tile_are_counted(tmp_path, least, flags):
    # 130 whole words and 20 bits, more than a byte can count in steps of four; 33 outputs are one more
    # than a tile has.
    images = _RNG.standard_normal((2, 1, 22, 8 * 22 + 14)).astype(np.float32)
    inputs = np.prod(images.shape[1:])
    signs = _RNG.choice(np.array([-1, 1], np.float32), (int(inputs), 33))

    def function(variables, x):
        x = jnp.sign(x.reshape(x.shape[0], -1))
        return (jnp.maximum(x, 0) if least else x) @ variables

    artifact = ftbnn_jax.pack(function, signs, images)
    result = _compare(artifact, images, tmp_path / "c", flags=flags)
    assert list(result.failures()) == []
    (layer,) = result.layers
    # The result is the product's integers themselves.
    assert (layer.compared, layer.differing, layer.end_to_end, layer.rounded) == (2 * 33, 0, 0, 0)
    assert (result.logits, result.logits_bounded) == (2 * 33, 2)


def _gates(x):
    """Functions and quotients: a gate, a softmax, a layer norm."""
    x = x - x.mean(-1, keepdims=True)
    powers = jnp.exp(x - x.max(-1, keepdims=True))
    x = x * jax.nn.sigmoid(x) + jnp.tanh(3 * x) + powers / powers.sum(-1, keepdims=True)
    deviation = jnp.square(x).mean(-1, keepdims=True) + 0.01
    return x * lax.rsqrt(deviation) + jnp.sqrt(deviation)


def _stairs(x):
    whole = (x * 3).astype(jnp.int32)
    stairs = jnp.floor(x) + jnp.ceil(3 * x) + jnp.round(5 * x)
    return stairs + jnp.where(whole > 1, whole - 7, -whole).astype(jnp.float32)


def _between(x):
    rows = x.reshape(x.shape[0], -1, 6)
    return jnp.einsum("nij,nkj->nik", rows, rows) / 8


@pytest.mark.parametrize("operation", [_read_twice, _moved, _windows, _axes, _gates, _stairs, _between])
def test_operations_of_any_network_give_the_same_integers_in_fixed_point(tmp_path, operation):
    images = _RNG.integers(0, 256, (3, 6, 6, 4), np.uint8)
    artifact = _pack(lambda x: operation(_bytes(x) - 2), images)
    options = Options(reference.calibrate(artifact, [images]))
    result = _compare(artifact, images, tmp_path / "c", options, c_programs.SANITIZED)
    assert list(result.failures()) == []
    assert result.losses.saturated == {}
    assert result.agreeing == 3


@pytest.mark.parametrize("fixed", [False, True], ids=["float", "fixed"])
def test_the_template_of_an_own_network_becomes_c(tmp_path, fixed):
    net = own_network.Vgg((8, 8, 16, 16), 5)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), False))
    draw = lambda leaf: _RNG.uniform(0.5, 2, leaf.shape).astype(np.float32) * _RNG.choice([-1, 1])  # noqa: E731
    variables = jax.tree.map(draw, shapes)
    variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])
    images = _RNG.integers(0, 256, (4, 16, 16, 3), np.uint8)
    artifact = network_export.pack(
        lambda v, x: net.apply(v, (x.astype(jnp.float32) - 120) / 60, False),
        variables,
        images,
        preprocessing=Preprocessing(16, 3, 0, False, (120.0,), (60.0,)),
    )
    options = Options(reference.calibrate(artifact, [images]) if fixed else None)
    result = _compare(artifact, images, tmp_path / "c", options)
    assert list(result.failures()) == []
    # 16x16, then 8x8 twice with twice the channels.
    assert [layer.compared for layer in result.layers] == [4 * 256 * 8, 4 * 64 * 16, 4 * 64 * 16]
    assert [layer.differing for layer in result.layers] == [0, 0, 0]
    assert result.losses.saturated == {}


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("exp", np.exp),
        ("expm1", np.expm1),
        ("log", np.log),
        ("log1p", np.log1p),
        ("tanh", np.tanh),
        ("logistic", lambda x: 1 / (1 + np.exp(-x))),
        ("sqrt", np.sqrt),
        ("rsqrt", lambda x: 1 / np.sqrt(x)),
    ],
)
def test_functions_are_right_to_the_last_place(name, exact):
    sizes = np.concatenate([np.logspace(-37, 1.9, 2000), np.linspace(0.1, 3, 999), [0.0, np.inf]])
    x = np.concatenate([sizes, -sizes]).astype(np.float32)
    with np.errstate(all="ignore"):
        expected = exact(x.astype(np.float64)).astype(np.float32)
        found = functions.apply(name, x)
        # Half a unit in the last place where the double's digits decide, at most a whole one elsewhere.
        apart = np.abs(found.astype(np.float64) - expected)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(found[~finite], expected[~finite])
    assert (apart[finite] <= np.spacing(np.abs(expected[finite]))).all()
    assert (apart[finite] == 0).mean() > 0.999


@pytest.mark.parametrize(
    ("name", "exact", "low", "high"),
    [
        ("exp", np.exp, -30, 7),
        ("logistic", lambda x: 1 / (1 + np.exp(-x)), -30, 30),
        ("tanh", np.tanh, -20, 20),
        ("sqrt", np.sqrt, 0, 2000),
        ("rsqrt", lambda x: 1 / np.sqrt(x), 0.01, 2000),
        ("floor", np.floor, -9, 9),
        ("ceil", np.ceil, -9, 9),
        ("round", np.rint, -9, 9),
    ],
)
def test_functions_of_whole_numbers_are_right_to_a_unit(name, exact, low, high):
    for bits, result_bits in ((20, 20), (11, 20), (20, 12), (9, 7)):
        x = np.unique(np.rint(np.linspace(low, high, 3001) * 2**bits).astype(np.int64))
        x = x[(x > 0) | (name != "rsqrt")]
        found = fixed_functions.apply(name, x, bits, result_bits)
        expected = exact(x * 2.0**-bits) * 2**result_bits
        # A unit, and what 2**-27 of the result is.
        assert (np.abs(found - expected) <= 1 + np.abs(expected) * 2**-27).all()


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (
            lambda x: x**1.5,
            r"the network: pow: the C program has no such operation; one of exp, .* would do",
        ),
        (lambda x: lax.erf(x), r"the network: erf: the C program has no such operation"),
        (
            lambda x: lax.div(x.astype(jnp.int32), 3),
            r"div: the C program has none of int32; float32 would do",
        ),
        (
            lambda x: lax.conv_transpose(x, np.ones((2, 2, 4, 3), np.float32), (2, 2), "SAME"),
            r"conv: the C program has no transposed convolution; zeros .* would do",
        ),
        (
            lambda x: lax.conv_general_dilated(
                x[..., None, :],
                np.ones((2, 2, 1, 4, 3)),
                (1, 1, 1),
                "SAME",
                dimension_numbers=("NHWDC", "HWDIO", "NHWDC"),
            ),
            r"conv: the C program has none of 3 dimensions; 1 or 2 would do",
        ),
        (lambda x: x.astype(jnp.uint32), r"cast: the C program has no uint32; int32 would do"),
    ],
)
def test_what_c_has_not_is_named(operation, words):
    with pytest.raises(UserError, match=words) as caught:
        lowering.lower(_pack(lambda x: operation(x).astype(jnp.float32), _images()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (lambda x: jnp.log(_bytes(x) + 1), r"the network: log: fixed point has none of log; single"),
        (lambda x: lax.integer_pow(_bytes(x), 3), r"integer_pow: fixed point has none of integer_pow"),
    ],
)
def test_what_fixed_point_has_not_is_named(operation, words):
    images = _RNG.integers(0, 256, (2, 6, 6, 4), np.uint8)
    artifact = _pack(operation, images)
    generate.files(artifact)
    with pytest.raises(UserError, match=words) as caught:
        generate.files(artifact, Options(20))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=words):
        fixed_point.choose_fraction_bits(lowering.lower(artifact), {})


def test_fixed_point_takes_whole_numbers_alone():
    with pytest.raises(
        UserError, match=r"images: fixed point takes none of float32; uint8 pixels would"
    ):
        generate.files(_pack(_axes, _images()), Options(20))


def test_without_preprocessing_there_is_no_program_for_images():
    files = generate.files(_pack(_axes, _images()))
    assert "classify.c" not in files
    assert not any(name.startswith("ftbnn_image") for name in files)
    assert "PROGRAMS = test_model\n" in files["Makefile"]
    assert "typedef float ftbnn_pixel;" in files["model.h"]
    assert "IMAGE_SIZE" not in files["model.h"]


def test_a_network_without_a_binary_product_is_refused():
    artifact = ftbnn_jax.pack(lambda v, x: x.reshape(x.shape[0], -1) @ v, np.ones((144, 5)), _images())
    with pytest.raises(UserError, match="the network: none of its products is binary"):
        lowering.lower(artifact)
