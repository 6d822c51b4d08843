"""Graphs as ONNX models, against the graphs themselves."""

import dataclasses
import json

import jax.numpy as jnp
import networks
import numpy as np
import pytest

from ftbnn_jax.bench import packed_layer, packed_network
from ftbnn_jax.deploy import export
from ftbnn_jax.deploy import runtime as runtime_lib
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import ir
from ftbnn_jax.nn import architectures
from ftbnn_jax.ops.packed import convolution as popcount

_REASON = "needs the extra onnx"
onnx = pytest.importorskip("onnx", reason=_REASON)
pytest.importorskip("onnxruntime", reason=_REASON)

from ftbnn_jax.deploy import onnx as onnx_model  # noqa: E402
from ftbnn_jax.deploy import onnx_verify  # noqa: E402

_FLOAT, _INTEGERS = "float32", ("int8", "int32", "uint8")
_HALVES = ("float16", "bfloat16")


def _numbers(dtype, shape, rng):
    """Numbers of all sizes, zeros of both signs among the floating ones; "sign" is float32 as well."""
    if dtype == "sign":
        return rng.choice(np.array([-1, -0.0, 0, 1], np.float32), shape)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if np.issubdtype(jnp.dtype(dtype), np.integer):
        limits = np.iinfo(dtype)
        some = rng.integers(limits.min, limits.max, shape, endpoint=True)
        return np.where(rng.random(shape) < 0.5, some, some % 5).astype(dtype)
    x = np.where(rng.random(shape) < 0.2, rng.choice([0.0, -0.0, 1, -1], shape), rng.normal(0, 2, shape))
    return x.astype(jnp.dtype(dtype))


class _Case:
    """One node: its operands, the first of which is the input, and its attributes.

    Args:
      dtype: of the input.
      shape: of the input, the batch first and left out.
      others: further operands: arrays, or the name of an operation that makes one of the input.
      positive: whether the input holds positive numbers alone.
    """

    def __init__(self, dtype, shape, /, *others, positive=False, **attributes):
        self.dtype, self.shape, self.others = dtype, shape, others
        self.positive, self.attributes = positive, attributes

    def graph(self, op):
        nodes, tensors, names = [], {}, ["x"]
        for i, other in enumerate(self.others):
            names.append(f"operand {i}")
            if isinstance(other, str):
                nodes.append(ir.Node(names[-1], other, ("x",), {}, ""))
            else:
                tensors[names[-1]] = other
        nodes.append(ir.Node("y", op, tuple(names), self.attributes, "layer"))
        if self.dtype not in _HALVES:
            dtype = self.input(1).dtype.name
            return ir.Graph(tuple(nodes), tensors, "x", dtype, (-1, *self.shape), "y")
        # Python hands neither of these to onnxruntime.
        nodes.insert(0, ir.Node("x", "cast", ("images",), {"dtype": self.dtype}, ""))
        nodes.append(ir.Node("z", "cast", ("y",), {"dtype": _FLOAT}, ""))
        return ir.Graph(tuple(nodes), tensors, "images", _FLOAT, (-1, *self.shape), "z")

    def input(self, count):
        dtype = _FLOAT if self.dtype in _HALVES else self.dtype
        x = _numbers(dtype, (count, *self.shape), np.random.default_rng(count))
        return np.abs(x) + x.dtype.type(0.1) if self.positive else x


def _of(dtype, *shape, seed=0):
    return _numbers(dtype, shape, np.random.default_rng(seed))


def _bits(dtype="float32", **attributes):
    """Words of random kernels, and the attributes."""
    attributes = {"form": "ternary", "dtype": dtype, **attributes}
    rng = np.random.default_rng(0)
    kernels = [rng.random(shape) < 0.5 for shape in ir.kernel_shapes(attributes)]
    return ir.pack(kernels), attributes


def _binary(dtype, shape, result="float32", **attributes):
    words, attributes = _bits(result, **attributes)
    return _Case(dtype, shape, words, **attributes)


def _plane(size, **geometry):
    """Geometry of a real or binary convolution, undilated and unpadded unless it says otherwise."""
    dims = len(size)
    plain = {"strides": (1,) * dims, "padding": ((0, 0),) * dims, "dilation": (1,) * dims}
    return {**plain, **geometry}


def _conv(shape, kernel, dtype=_FLOAT, result=_FLOAT, groups=1, **geometry):
    geometry = _plane(kernel[:-2], **geometry)
    geometry.setdefault("input_dilation", (1,) * (len(kernel) - 2))
    return _Case(dtype, shape, _of(dtype, *kernel), groups=groups, dtype=result, **geometry)


def _window(dtype, shape, window, strides=None, padding=None):
    rank = len(shape) + 1
    geometry = {"strides": strides or (1,) * rank, "padding": padding or ((0, 0),) * rank}
    return _Case(dtype, shape, window=window, **geometry)


_SAME = ((0, 0), (1, 1), (0, 1), (0, 0))
_WINDOWS = (
    _window(_FLOAT, (7, 6, 3), (1, 3, 3, 1), (1, 2, 2, 1), _SAME),
    _window(_FLOAT, (3, 7, 6), (1, 1, 2, 3), (1, 1, 2, 1)),
    _window(_FLOAT, (9,), (1, 4), (1, 3), ((0, 0), (1, 2))),
    _window(_FLOAT, (5, 3), (1, 1, 1), (1, 2, 1)),
    _window(_FLOAT, (2, 7, 6, 3), (1, 1, 2, 2, 1), (1, 1, 2, 2, 1)),
    _window(_FLOAT, (4, 5, 4, 3), (1, 2, 2, 3, 2), (1, 1, 2, 1, 1)),
    _window(_FLOAT, (4, 3), (1, 2, 1), (1, 1, 1), ((0, 0), (3, 2), (0, 0))),
    _window(_FLOAT, (6, 3), (1, 2, 1), (1, 1, 1), ((0, 0), (-1, 1), (0, 0))),
    _window(_FLOAT, (6, 3), (1, 1, 1)),
    _window("bfloat16", (6, 3), (1, 2, 1), (1, 2, 1)),
    *(_window(dtype, (7, 6, 3), (1, 3, 2, 1), (1, 2, 2, 1), _SAME) for dtype in _INTEGERS),
)
_PAIR = [_of(_FLOAT, 5), "neg", _of(_FLOAT), _of(_FLOAT, 3, 1), _of(_FLOAT, 1, 3, 5)]
_FLOATS = [_Case(dtype, (3, 5)) for dtype in (_FLOAT, *_HALVES)]
_POSITIVE = [_Case(_FLOAT, (3, 5), positive=True)]
_WHOLE = [_Case(dtype, (3, 5)) for dtype in _INTEGERS]
_PAIRS = [
    *(_Case(_FLOAT, (3, 5), other) for other in _PAIR),
    _Case("bfloat16", (3, 5), _of("bfloat16", 5)),
    *(_Case(dtype, (3, 5), _of(dtype, 3, 5)) for dtype in _INTEGERS),
]
_TRUTHS = [_Case("bool", (3, 5), other) for other in (_of("bool", 3, 5), "not")]
_LOGICAL = [*_TRUTHS, *(_Case(dtype, (3, 5), _of(dtype, 3, 5)) for dtype in _INTEGERS)]
_DIRECTIONS = ("eq", "ne", "lt", "le", "gt", "ge")
_TYPES = (_FLOAT, "bool", *_INTEGERS)

_CASES: dict[str, list[_Case]] = {
    **{op: _FLOATS for op in ("floor", "ceil", "exp", "tanh", "logistic", "erf", "expm1", "erfc")},
    **{op: _POSITIVE for op in ("log", "sqrt", "rsqrt", "log1p")},
    "round": [*_FLOATS, _Case(_FLOAT, (2,), positive=True)],
    **{op: [*_FLOATS, *_WHOLE] for op in ("neg", "sign")},
    "abs": [*_FLOATS, *(_Case(dtype, (3, 5)) for dtype in ("int8", "int16", "int32"))],
    "not": [_Case("bool", (3, 5)), *_WHOLE],
    **{op: _PAIRS for op in ("add", "sub", "mul", "div")},
    **{op: [*_PAIRS, *_TRUTHS] for op in ("max", "min")},
    "pow": [_Case(_FLOAT, (3, 5), _of(_FLOAT, 5), positive=True)],
    **{op: _LOGICAL for op in ("and", "or")},
    "compare": [
        _Case(dtype, (3, 5), _of(dtype, 3, 5), direction=direction)
        for dtype, directions in ((_FLOAT, _DIRECTIONS), ("bool", _DIRECTIONS), ("uint8", ("lt", "ne")))
        for direction in directions
    ],
    "select": [
        _Case("bool", (3, 5), *others)
        for dtype in _TYPES
        for others in ((_of(dtype, 3, 5), _of(dtype)), (_of(dtype, 5), _of(dtype, 3, 1)))
    ],
    "cast": [
        _Case(one, (3, 5), dtype=other)
        for one in (*_TYPES, "int16", "uint16")
        for other in (*_TYPES, "int16", "uint16", "uint32")
        if one == _FLOAT or other in (_FLOAT, "bool", "uint8", "uint32")
    ],
    "integer_pow": [
        *(_Case(_FLOAT, (3, 5), y=y, positive=True) for y in (-3, -1, 0, 1, 2, 5, 7)),
        *(_Case(dtype, (3, 5), y=3) for dtype in _INTEGERS),
    ],
    "reshape": [
        _Case(_FLOAT, (4, 6), shape=(-1, 24)),
        _Case(_FLOAT, (4, 6), shape=(-8, 3)),
        _Case("uint8", (4, 6), shape=(-2, 3, 4)),
        _Case("bool", (4, 6), shape=(2, 12, -1)),
    ],
    "transpose": [_Case(dtype, (4, 6), permutation=(2, 0, 1)) for dtype in (_FLOAT, "uint8", "bool")],
    "broadcast": [
        _Case(_FLOAT, (3,), shape=(-1, 4, 3, 2), axes=(0, 2)),
        _Case("bool", (3,), shape=(5, -1, 3), axes=(1, 2)),
        _Case("int8", (1, 3), shape=(-1, 6, 3), axes=(0, 1, 2)),
    ],
    "slice": [
        _Case(_FLOAT, (7, 3), start=(0, 1, 0), limit=(-1, 6, 3), strides=(1, 2, 1)),
        _Case("uint8", (7, 3), start=(0, 0, 2), limit=(-1, 7, 3), strides=(1, 1, 1)),
        _Case("bool", (7, 3), start=(0, 0, 0), limit=(-1, 7, 3), strides=(1, 1, 1)),
    ],
    "take": [
        _Case(_FLOAT, (7, 3), np.asarray([6, 0, 0, 3], np.int32), axis=1),
        _Case("bool", (7, 3), np.asarray([-1, 2, 3, 90], np.int32), axis=2),
    ],
    "concatenate": [
        _Case(_FLOAT, (4, 3), "neg", "abs", axis=2),
        _Case("int8", (4, 3), "neg", axis=1),
        _Case("bool", (4, 3), "not", axis=0),
        _Case(_FLOAT, (4, 3), axis=1),
    ],
    "pad": [
        _Case(dtype, (4, 3), _of(dtype, seed=2), edges=((0, 0, 0), *edges))
        for dtype in (_FLOAT, "bool", "uint8", "int32")
        for edges in (
            ((1, 2, 0), (0, 0, 0)),
            ((0, 0, 2), (1, 0, 1)),
            ((-1, 1, 1), (2, -2, 0)),
            ((-1, -1, 0), (0, 0, 0)),
        )
    ],
    "reduce_sum": [
        *(_Case(_FLOAT, (4, 3), axes=axes) for axes in ((1,), (1, 2), (2,), ())),
        *(_Case(dtype, (4, 3), axes=(1,)) for dtype in _INTEGERS),
    ],
    "reduce_max": [
        *(_Case(_FLOAT, (4, 3), axes=axes) for axes in ((1,), (1, 2), (2,), ())),
        *(_Case(dtype, (4, 3), axes=(2,)) for dtype in ("bool", *_INTEGERS)),
    ],
    "argmax": [
        *(_Case(_FLOAT, (4, 3), axis=axis) for axis in (1, 2)),
        *(_Case(dtype, (9,), axis=1) for dtype in ("bool", *_INTEGERS)),
    ],
    "window_sum": list(_WINDOWS),
    "window_max": [*_WINDOWS, _window("bool", (7, 6, 3), (1, 3, 2, 1), (1, 2, 2, 1), _SAME)],
    "conv": [
        _conv((7, 6, 3), (3, 3, 3, 4), strides=(2, 2), padding=((1, 1), (1, 1))),
        _conv((9, 4), (3, 4, 5), strides=(2,), padding=((2, 0),), dilation=(2,)),
        _conv((5, 6, 4, 3), (2, 3, 1, 3, 4), strides=(1, 2, 1), padding=((1, 0), (0, 1), (0, 0))),
        _conv((7, 6, 6), (3, 2, 2, 9), groups=3, padding=((0, 2), (1, 0)), dilation=(1, 3)),
        _conv((7, 6, 4), (3, 3, 1, 8), groups=4),
        _conv((4, 5, 3), (3, 3, 3, 2), input_dilation=(2, 3), padding=((2, 1), (0, 1))),
        _conv((7, 6, 3), (3, 3, 3, 2), padding=((-1, 2), (0, -2))),
        _conv((7, 6, 3), (3, 3, 3, 2), "bfloat16", _FLOAT),
        *(
            _conv((7, 6, 4), (3, 3, 2, 2), dtype, "int32", groups=2, padding=((1, 1), (1, 0)))
            for dtype in ("int8", "uint8")
        ),
        _conv((5, 3), (3, 3, 2), "int8", "int8", input_dilation=(2,)),
    ],
    "dot": [
        *(
            _Case(dtype, shape, other, contracting=contracting, batch=batch, dtype=result)
            for dtype, result in ((_FLOAT, _FLOAT), ("int8", "int32"), ("int32", "int32"))
            for shape, other, contracting, batch in (
                ((5,), _of(dtype, 5, 4), ((1,), (0,)), ((), ())),
                ((3, 5), _of(dtype, 4, 5), ((2,), (1,)), ((), ())),
                ((3, 5), _of(dtype, 3, 4, 5), ((1, 2), (0, 2)), ((), ())),
                ((3, 5), _of(dtype, 4, 5, 3), ((2,), (1,)), ((1,), (2,))),
                ((3, 5), "neg", ((2,), (2,)), ((0,), (0,))),
                ((3, 5), _of(dtype, 6, 7), ((), ()), ((), ())),
            )
        ),
        _Case(
            "bfloat16",
            (5,),
            _of("bfloat16", 5, 4),
            contracting=((1,), (0,)),
            batch=((), ()),
            dtype=_FLOAT,
        ),
    ],
    "binary_conv": [
        _binary(
            dtype,
            shape,
            result,
            in_features=i,
            out_features=o,
            kernel_size=size,
            **_plane(size, **geometry),
        )
        for dtype, result in (("sign", _FLOAT), ("sign", "int32"))
        for shape, i, o, size, geometry in (
            ((7, 6, 5), (5,), (4,), (3, 3), {"padding": ((1, 1), (1, 1))}),
            ((7, 6, 6), (3, 3), (2, 2), (3, 1), {"strides": (2, 1), "padding": ((2, 0), (0, 1))}),
            ((7, 6, 9), (2, 2, 5), (3, 3, 4), (2, 2), {"dilation": (2, 3)}),
            ((11, 4), (4,), (6,), (3,), {"strides": (2,), "padding": ((1, 2),)}),
            ((11, 4), (1, 1, 1, 1), (2, 2, 2, 2), (4,), {"dilation": (2,)}),
        )
    ],
    "binary_dot": [
        _binary("sign", shape, result, in_features=i, out_features=o)
        for result in (_FLOAT, "int32")
        for shape, i, o in (
            ((5,), (5,), (4,)),
            ((3, 2, 5), (5,), (4,)),
            ((3, 6), (2, 2, 2), (4, 4, 4)),
            ((6,), (2, 4), (1, 3)),
        )
    ],
}


def _run(graph, images):
    return np.asarray(graph.run(jnp.asarray(images), runtime_lib.prepare(graph)))


def _check(graph, images, form, tolerance=1e-6):
    run = onnx_model.load(onnx_model.network(graph, form), 1)
    for count in (1, 3):
        expected, found = _run(graph, images(count)), run(images(count))
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        if found.dtype == np.float32:
            largest = np.abs(expected[np.isfinite(expected)]).max(initial=0)
            np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * largest)
        else:
            np.testing.assert_array_equal(found, expected)


def test_every_operation_is_tried():
    assert _CASES.keys() == ir.OPERATIONS.keys()
    assert all(_CASES.values())


@pytest.mark.parametrize(
    ("op", "case", "form"),
    [
        pytest.param(op, case, form, id=f"{op}-{i}-{form}")
        for op, cases in _CASES.items()
        for i, case in enumerate(cases)
        for form in (onnx_model.FORMS if op in ir.BINARY else onnx_model.FORMS[:1])
    ],
)
def test_an_operation_gives_the_graphs_numbers(op, case, form):
    # JAX computes some functions of 16-bit numbers in 16 bits.
    _check(case.graph(op), case.input, form, 1e-2 if case.dtype in _HALVES else 1e-6)


@pytest.mark.parametrize(
    ("op", "case", "message"),
    [
        ("add", _Case("uint32", (3,), _of("uint32", 3)), "layer: add: ONNX has not .* uint32"),
        ("conv", _conv((5, 3), (3, 3, 2), "int32", "int32"), "layer: conv: ONNX has not .* int32"),
        ("window_max", _window(_FLOAT, (3,), (2, 1), padding=((1, 0), (0, 0))), "several images"),
    ],
)
def test_what_onnx_has_not_is_one_line(op, case, message):
    with pytest.raises(UserError, match=message) as error:
        onnx_model.network(case.graph(op), "float32")
    assert str(error.value).isprintable()


def _chain(shape, *steps, **tensors):
    """A graph of nodes one after the other, each (operation, further operands, attributes)."""
    nodes, last = [], "x"
    for i, (op, others, attributes) in enumerate(steps):
        nodes.append(ir.Node(f"y{i}", op, (last, *others), attributes, ""))
        last = nodes[-1].name
    return ir.Graph(tuple(nodes), tensors, "x", _FLOAT, (-1, *shape), last)


def test_what_only_repeats_is_repeated_where_it_is_read_as_a_whole():
    """A broadcast that a sum, a transposition, another broadcast and the result read."""
    wide = {"shape": (-1, 4, 3, 2), "axes": (0, 2)}
    add, flat = ("add", ("c",), {}), ("reduce_sum", (), {"axes": (1, 3)})
    steps = [("broadcast", (), wide), add, ("transpose", (), {"permutation": (3, 0, 1, 2)})]
    for chosen in (steps[:1], steps[:2], steps, [*steps[:2], flat, *steps[:1]]):
        graph = _chain((3,), *chosen, c=np.float32([0.5, -2])[None, None, None])
        _check(graph, lambda count: _of(_FLOAT, count, 3), "float32")


def test_a_batch_is_counted_where_several_axes_depend_on_it():
    """Products of every image with every image: two axes are as long as the batch."""
    graph = _chain(
        (4,),
        ("dot", ("x",), {"contracting": ((1,), (1,)), "batch": ((), ()), "dtype": _FLOAT}),
        ("broadcast", (), {"shape": (-1, 2, -1), "axes": (0, 2)}),
        ("reshape", (), {"shape": (-1, -2)}),
    )
    _check(graph, lambda count: _of(_FLOAT, count, 4), "float32")


@pytest.mark.parametrize("form", onnx_model.FORMS)
@pytest.mark.parametrize("widths", [((7,), (5,)), ((4, 4), (3, 3)), ((3, 3, 5), (2, 2, 4))])
@pytest.mark.parametrize(("sign", "stride"), [("ternary", 1), ("ternary", 2), ("xnor", 1), ("xnor", 2)])
def test_a_layer_sums_products_of_signs(form, widths, sign, stride):
    """With zeros of both signs, against the sum over the window's positions, group by group."""
    rng = np.random.default_rng(0)
    conv = popcount.PackedConv(*widths, sign, strides=(stride, stride))
    kernels = [rng.random((3, 3, i, o)) < 0.5 for i, o in zip(*widths, strict=True)]
    x = rng.choice(np.array([-2, -0.0, 0.0, 0.5], np.float32), (2, sum(widths[0]), 7, 6))
    found = onnx_model.load(onnx_model.layer(conv, kernels, form, 7, 6), 1)(x)

    signs = np.where(x > 0, 1, -1) if sign == "xnor" else (x > 0).astype(int) - (x < 0)
    padded = np.pad(signs, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::stride, ::stride]
    parts = np.split(windows, np.cumsum(widths[0])[:-1], axis=1)
    expected = [
        np.einsum("nihwab,abio->nohw", part, 2 * kernel.astype(int) - 1)
        for part, kernel in zip(parts, kernels, strict=True)
    ]
    np.testing.assert_array_equal(found, np.concatenate(expected, axis=1))
    assert found.dtype == (np.int32 if form == "int8" else np.float32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Config, paths of model and artifact, and runtime of a network with uneven groups."""
    folder = tmp_path_factory.mktemp("onnx")
    config, _, artifact = networks.build(networks.DERIVED, 16)
    # Onnxruntime computes with subnormal numbers, which JAX takes for 0 on a CPU.
    tensors = {
        name: np.where(np.abs(x) < np.finfo(x.dtype).tiny, 0, x) if x.dtype == np.float32 else x
        for name, x in artifact.graph.tensors.items()
    }
    graph = dataclasses.replace(artifact.graph, tensors=tensors)
    artifact = dataclasses.replace(artifact, graph=graph)
    path, artifact_path = (str(folder / f"model.{suffix}") for suffix in ("onnx", "safetensors"))
    artifact.save(artifact_path)
    assert onnx_model.run(path, artifact_path) == 0
    return config, path, artifact_path, artifact


def _verify(exported, **options):
    config, path, artifact_path, _ = exported
    pixels = networks.images(16, 5)
    batches = [
        {"image": pixels[:3], "weight": np.ones(3), "decoded": list(pixels[:3])},
        {"image": pixels[2:], "weight": np.array([0, 1, 1]), "decoded": list(pixels[2:])},
    ]
    described = export.described(config, 3)
    return onnx_verify.run(path, artifact_path, described, batches, **options)


def test_an_exported_model_is_verified(exported, capsys):
    assert _verify(exported) == 0
    output, errors = capsys.readouterr()
    assert "on 5 test images" in output and "5 of 5 images" in output and errors == ""
    assert "0 of 3,840 pixel values differ" in output
    assert _verify(exported, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] and found["logit_error"] < 1e-6
    # 4 x 4 positions of 13 channels, 2 x 2 of 26.
    assert [layer["compared"] for layer in found["layers"]] == [5 * 16 * 13] * 3 + [5 * 4 * 26]


def test_a_model_says_what_the_artifact_says(exported):
    _, path, _, artifact = exported
    said = {prop.key: json.loads(prop.value) for prop in onnx.load(path).metadata_props}
    assert said["preprocessing"]["size"] == 16 and said["preprocessing"]["mean"] == [120]
    assert said["class_names"] == list(artifact.class_names)
    assert (said["step"], said["versions"]) == (artifact.step, artifact.versions)


def _turn_a_weight(model):
    """Weights in 8 bits are 0 and 2, around a zero point of 1."""
    kernel = next(c for c in model.graph.initializer if c.data_type == onnx.TensorProto.UINT8 and c.dims)
    weights = onnx.numpy_helper.to_array(kernel).copy()
    weights.flat[0] = 2 - weights.flat[0]
    kernel.CopyFrom(onnx.numpy_helper.from_array(weights, kernel.name))


def _scale(model, name, factor):
    (constant,) = (c for c in model.graph.initializer if c.name == name)
    changed = onnx.numpy_helper.to_array(constant) * np.float32(factor)
    constant.CopyFrom(onnx.numpy_helper.from_array(changed, name))


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (_turn_a_weight, "integers differ from the packed runtime's"),
        (lambda model: _scale(model, "bridge/bn/add_constant", -1), "more than rounding explains"),
        (lambda model: _scale(model, "head/bias", 1.01), "float32 rounding explains"),
    ],
    ids=["kernel", "norm", "classifier"],
)
def test_another_model_is_found_out(exported, damage, line):
    _, path, _, artifact = exported
    model = onnx.load(path)
    damage(model)
    runtime = runtime_lib.Runtime(artifact)
    failures = list(onnx_verify.compare(model, runtime, [networks.images(16, 5)]).failures())
    assert failures and line in failures[0]


def test_a_file_that_is_not_the_artifacts_is_one_line(exported, tmp_path):
    config, path, artifact_path, _ = exported
    model = onnx.load(path)
    _scale(model, "head/bias", 2)
    other, damaged = tmp_path / "other.onnx", tmp_path / "damaged.onnx"
    other.write_bytes(model.SerializeToString())
    damaged.write_bytes(b"\x00" * 9)
    for found, line in (
        (other, "not what the artifact gives; --mode=export --format=onnx"),
        (damaged, "damaged: no ONNX model"),
        (tmp_path / "none.onnx", "no such file; --mode=export --format=onnx"),
        (tmp_path, "cannot be read"),
    ):
        with pytest.raises(UserError, match=line):
            _verify((config, str(found), artifact_path, None))
    with pytest.raises(UserError, match="cannot be written"):
        onnx_model.run(str(tmp_path / "no" / "folder.onnx"), artifact_path)


def test_the_benchmarks_time_onnxruntime_in_the_same_run(tmp_path, capsys, monkeypatch):
    def medians(calls):
        assert all(np.all(np.isfinite(call())) for call in calls)
        return [10.0 + i for i, _ in enumerate(calls)]

    monkeypatch.setattr(packed_layer, "medians", medians)
    monkeypatch.setattr(packed_layer, "BATCHES", (2,))
    monkeypatch.setattr(popcount, "FORMS", ("ternary",))
    config, variables, artifact = networks.build(architectures.small((1,), 4, groups=3), 8)
    found = packed_network.rows(config, variables, runtime_lib.Runtime(artifact))
    monkeypatch.setattr(packed_network, "rows", lambda *args: found)
    path = str(tmp_path / "model.safetensors")
    artifact.save(path)
    assert packed_network.run(path, config, variables, as_json=True) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert packed_layer.main(["5:4:3", "--json"]) == 0
    rows += json.loads(capsys.readouterr().out)
    names = ["block1_1/conv", "whole network", "5x5, 4 channels, 3 groups"]
    assert [row["name"] for row in rows] == names
    names = ("float_ms", "packed_ms", "onnx_float32_ms", "onnx_int8_ms")
    assert {tuple(row[name] for name in names) for row in rows} == {(10, 11, 12, 13)}

    assert packed_network.run(path, config, variables) == 0
    text = capsys.readouterr().out
    assert text.count("onnxruntime") == 2
    assert text.count("12.000") == text.count("13.000") == 2
    assert "onnxruntime float32    12.000 ms  int8    13.000 ms" in packed_layer.line(found[0])


def test_a_layer_with_other_integers_is_not_timed(monkeypatch):
    class Wrong:
        FORMS = onnx_model.FORMS
        layer = onnx_model.layer

        @staticmethod
        def load(model, threads):
            run = onnx_model.load(model, threads)
            return lambda x: run(x) + 1

    monkeypatch.setattr(packed_layer, "onnx_network", Wrong)
    with pytest.raises(AssertionError, match="a: packed and onnxruntime's results differ"):
        packed_layer.layer("a", popcount.PackedConv((4,), (4,)), 5, 1)
