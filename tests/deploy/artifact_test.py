"""The packed file: what it holds, and that nothing damaged is ever read."""

import dataclasses
import json
import os
import subprocess
import sys
import tracemalloc

import jax
import networks
import numpy as np
import pytest
import safetensors

from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.deploy import container, export
from ftbnn_jax.deploy import runtime as runtime_lib
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import ir, passes
from ftbnn_jax.nn import architectures
from ftbnn_jax.ops.packed import bits as bitpack
from ftbnn_jax.ops.packed import convolution as packed

_NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
_MUTATIONS = 10_000 if _NIGHTLY else 300
_METADATA_MUTATIONS = 5_000 if _NIGHTLY else 200
_GRAPH_MUTATIONS = 10_000 if _NIGHTLY else 200
# So many of the graphs that are read are run as well: compiling one takes longer than reading many.
_GRAPHS_RUN = 100 if _NIGHTLY else 3


@pytest.fixture(scope="module")
def built():
    spec = architectures.small((1, 1), 11, groups=3, downsample="conv", stage_end_activation="prelu")
    return networks.build(spec, 8)


@pytest.fixture
def path(built, tmp_path):
    path = str(tmp_path / "model.safetensors")
    built[2].save(path)
    return path


def _write(path, tensors, metadata, by_its_author=False):
    """Writes a file whose checksums are right; of a foreign author, that of the network is as well."""
    if by_its_author:
        metadata["sha256"] = {name: artifact_lib.digest(tensor) for name, tensor in tensors.items()}
        fields = {k: v for k, v in metadata.items() if k not in ("schema_version", "sha256")}
        fields.pop("network_sha256", None)
        metadata["network_sha256"] = artifact_lib.network_digest(fields, metadata["sha256"])
    with open(path, "wb") as file:
        file.write(container.to_bytes(tensors, metadata))


def test_a_round_trip_changes_nothing(built, path):
    artifact = built[2]
    loaded = artifact_lib.load(path)
    for field in dataclasses.fields(artifact):
        if field.name not in ("graph", "report"):
            assert getattr(loaded, field.name) == getattr(artifact, field.name), field.name
    graph, expected = loaded.graph, artifact.graph
    assert graph.to_json() == expected.to_json()
    assert (graph.nodes, graph.input, graph.dtype, graph.shape, graph.output) == (
        *(expected.nodes, expected.input, expected.dtype, expected.shape, expected.output),
    )
    assert graph.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert graph.tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(graph.tensors[name], tensor)


def test_other_software_can_read_the_file(built, path):
    with safetensors.safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == built[2].graph.tensors.keys()
        assert json.loads(file.metadata()["ftbnn_jax"])["spec"]["width"] == 11


def test_the_bits_are_the_signs_and_nothing_else_of_a_binary_kernel(built, path):
    config, variables, _ = built
    graph = artifact_lib.load(path).graph
    tiny = np.finfo(np.float32).tiny
    for plan, node in zip(config.model.plan(), graph.binary_products(), strict=True):
        conv = variables["params"][plan.name]["conv"]
        latent = np.concatenate([conv[f"kernel_{g}"].reshape(-1) for g in range(plan.groups)])
        bits = bitpack.unpack_stream(graph.tensors[node.inputs[1]], latent.size)
        # A zero of either sign and a subnormal number are -1.
        np.testing.assert_array_equal(bits, latent >= tiny)
        assert [n for n in graph.tensors if n.startswith(f"{plan.name}/conv/")] == [node.inputs[1]]
    assert {n for n, t in graph.tensors.items() if t.dtype == np.float32 and "kernel" in n} == {
        *("stem/conv/kernel", "block2_1/shortcut_conv/kernel", "head/kernel/scale")
    }


def test_the_classifier_in_16_bits_is_the_nearest_multiple_of_each_class_scale(built):
    _, variables, artifact = built
    kernel = np.asarray(variables["params"]["head"]["kernel"], np.float64)
    multiples = artifact.graph.tensors["head/kernel/int16"]
    stored = multiples * artifact.graph.tensors["head/kernel/scale"]
    assert stored.dtype == np.float32 and multiples.dtype == np.int16
    # Half a step of the largest weight's 32767, and what float32 rounds scale and product by.
    step = np.abs(kernel).max(axis=0) / 32767
    assert (np.abs(stored - kernel) <= step * 0.5 + np.abs(kernel) * 2**-22).all()
    assert (np.abs(multiples).max(axis=0) == 32767).all()


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-41, 1e-38, 1e38])
@pytest.mark.parametrize("axis", [0, 1])
def test_classes_of_any_size_fit_into_16_bits(size, axis):
    kernel = np.float32(size) * np.array([[1, 0], [-0.6, 0], [0.3, 0]], np.float32)
    kernel = kernel if axis == 0 else kernel.T
    multiples, scale = passes.quantize(kernel, axis)
    # A scale that is subnormal is a multiple of 1e-45 itself.
    np.testing.assert_allclose(
        multiples * scale, kernel, rtol=0, atol=size / 32767 / 2 * 1.01 + 32767 * 1.5e-45
    )


@pytest.mark.parametrize("name", ["baseline", "derived"])
def test_a_file_is_as_small_as_its_bits(name, tmp_path):
    """At the width and depth of the paper's networks, with all that a file of 1000 classes says."""
    spec = architectures.baseline() if name == "baseline" else architectures.derived(44, 5)
    _, variables, artifact = networks.build(spec, 32, classes=1000)
    size = artifact.save(str(tmp_path / "model.safetensors"))
    bits = sum(ir.kernel_bits(node.attributes) for node in artifact.graph.binary_products())
    latent = sum(leaf.size for path, leaf in jax.tree.leaves_with_path(variables) if _is_latent(path))
    assert bits == latent
    classifier = variables["params"]["head"]["kernel"].size
    real = sum(leaf.size for leaf in jax.tree.leaves(variables)) - bits - classifier
    # Names of classes, nodes, and a SHA-256 of each tensor.
    assert size <= 1.02 * (bits / 8 + 2 * classifier + 4 * real) + 128 * 2**10
    if name == "derived":
        assert size * 19.8 <= 4 * bits


def _is_latent(path):
    return path[-1].key.startswith("kernel_")


def _mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Damages a file in one of the ways in which files get damaged, or are damaged on purpose."""
    data = bytearray(content)
    length = int.from_bytes(content[:8], "little")
    kind = rng.integers(9)
    where = int(rng.integers(len(data)))
    if kind == 0:
        data[where] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        data[int(rng.integers(8 + length))] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        del data[where:]
    elif kind == 3:
        data += rng.bytes(int(rng.integers(1, 64)))
    elif kind == 4:
        data[:8] = int(rng.integers(2**62)).to_bytes(8, "little")
    elif kind == 5:
        del data[where : where + int(rng.integers(1, 64))]
    elif kind == 6:
        other = int(rng.integers(len(data) - 32))
        where = min(where, len(data) - 32)
        data[where : where + 32], data[other : other + 32] = (
            data[other : other + 32],
            data[where : where + 32],
        )
    elif kind == 7:
        pairs = [(b'"F32"', b'"U32"'), (b'"F32"', b'"F64"'), (b'"U32"', b'"I32"'), (b",11]", b",10]")]
        pairs += [(b'"I16"', b'"U16"'), (b'"I16"', b'"F32"'), (b'"F32"', b'"I16"')]
        pairs += [(b",11]", b",-1]"), (b"bn/add_c", b"bn/adb_c"), (b'"shape":[', b'"shape":{')]
        old, new = pairs[int(rng.integers(len(pairs)))]
        at = data.find(old, int(rng.integers(8 + length)))
        at = data.find(old) if at < 0 else at
        data[at : at + len(old)] = new
    else:
        data[where : where + 16] = rng.bytes(16)
    return bytes(data)


def test_every_mutation_is_refused_in_one_line_and_without_much_memory(path, tmp_path):
    with open(path, "rb") as file:
        content = file.read()
    rng = np.random.default_rng(0)
    target = str(tmp_path / "mutated.safetensors")
    tracemalloc.start()
    tried = 0
    while tried < _MUTATIONS:
        mutated = _mutate(content, rng)
        if mutated == content:
            continue
        tried += 1
        with open(target, "wb") as file:
            file.write(mutated)
        with pytest.raises(UserError) as caught:
            artifact_lib.load(target)
        message = str(caught.value)
        assert message.startswith(target) and "\n" not in message, (tried, message)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50 * len(content)


# What stands in a place of the metadata now and then, by mistake or on purpose.
_FOREIGN = [
    *(None, True, False, 0, 1, -1, 2, 7, 2**31, 10**9, 10**400, 0.5, -0.0, 1e308),
    *(
        float("nan"),
        float("inf"),
        "",
        "5",
        "7 */ int x;",
        "a\nb",
        "\ud800",
        "x" * 10_000,
        [],
        [1],
        ["a"],
    ),
    *([0] * 1000, [[1]], [-1.0], [float("nan")], {}, {"a": 1}, {"x": {"y": []}}),
]


def _mutate_metadata(metadata: dict, rng: np.random.Generator) -> None:
    """Puts something else in a random place, however deep, or takes it away, or adds to it."""
    node, key = metadata, list(metadata)[rng.integers(len(metadata))]
    while isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.8:
        node = node[key]
        key = list(node)[rng.integers(len(node))] if isinstance(node, dict) else rng.integers(len(node))
    kind = rng.integers(5)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[f"{key}x"] = node[key]
    elif kind == 2 and type(node[key]) in (int, float):
        node[key] += int(rng.integers(-3, 4))
    else:
        node[key] = _FOREIGN[rng.integers(len(_FOREIGN))]


@pytest.mark.parametrize("by_its_author", [False, True])
def test_mutated_metadata_is_refused_in_one_line_or_what_it_says_is_what_is_loaded(
    path, tmp_path, by_its_author
):
    rng = np.random.default_rng(1)
    target = str(tmp_path / "mutated.safetensors")
    original = artifact_lib.load(path)
    refused = 0
    for tried in range(_METADATA_MUTATIONS):
        tensors, metadata, _ = container.read(path)
        _mutate_metadata(metadata, rng)
        if by_its_author:
            fields = {k: v for k, v in metadata.items() if k not in ("schema_version", "sha256")}
            fields.pop("network_sha256", None)
            metadata["network_sha256"] = artifact_lib.network_digest(fields, metadata.get("sha256"))
        _write(target, tensors, metadata)
        loaded = _loaded_or_refused(target, metadata, tried)
        refused += loaded is None
        if loaded is not None and not by_its_author:
            assert _said_by(loaded) == _said_by(original), tried
    assert refused > 0.7 * _METADATA_MUTATIONS


def _said_by(artifact):
    """What a file's metadata says of an artifact, checksums and version aside."""
    said = {
        field.name: getattr(artifact, field.name)
        for field in dataclasses.fields(artifact)
        if field.name not in ("graph", "report")
    }
    plain = {n: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for n, v in said.items()}
    return json.loads(json.dumps({**plain, "graph": artifact.graph.to_json()}))


def _loaded_or_refused(target, metadata, tried):
    """Reads a file in little memory: it holds what its metadata says, or None and a line says why."""
    tracemalloc.start()
    try:
        loaded = artifact_lib.load(target)
    except UserError as error:
        message = str(error)
        assert message.startswith(target) and message.isprintable(), (tried, message)
        assert len(message.removeprefix(target)) < 400, (tried, message)
        return None
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 20 * 2**20, tried
    checksums = ("schema_version", "sha256", "network_sha256")
    assert _said_by(loaded) == {k: v for k, v in metadata.items() if k not in checksums}, tried
    return loaded


# Numbers that stand in a place of a graph now and then, on purpose.
_NUMBERS = [0, 1, 2, 3, 4, 5, 8, -1, -2, -9, 64, 2**15, 2**16, 2**30, 2**31 - 1, 2**31, 2**63, 10**400]


def _mutate_graph(graph: dict, tensors: dict, rng: np.random.Generator) -> None:
    """Changes a node, an attribute, an operand, an order, a name or a tensor, now and then several."""
    nodes = graph["nodes"]
    base = 1 + len(tensors)

    def some(values):
        return values[rng.integers(len(values))]

    for _ in range(some([1, 1, 1, 2, 4])):
        at = int(rng.integers(len(nodes)))
        node, kind = nodes[at], rng.integers(14)
        if kind == 0 and node[2]:
            node[2][rng.integers(len(node[2]))] = int(rng.integers(-1, base + len(nodes) + 1))
        elif kind == 1:
            node[1] = some([*ir.OPERATIONS, "pickle", "", None])
        elif kind == 2:
            node[1], node[3] = _random_operation(rng)
        elif kind in (3, 4) and node[3]:
            _change_a_leaf(node[3], rng)
        elif kind == 5:
            del nodes[at]
        elif kind == 6:
            other = int(rng.integers(len(nodes)))
            nodes[at], nodes[other] = nodes[other], nodes[at]
        elif kind in (7, 8):
            _insert(graph, at, base, rng)
        elif kind == 9:
            node[some([0, 4])] = some([some(nodes)[0], some(list(tensors)), "images", *_FOREIGN])
        elif kind == 10:
            graph["output"] = some([int(rng.integers(base + len(nodes))), *_NUMBERS])
        elif kind == 11:
            _change_a_leaf(graph["input"], rng)
        elif kind == 12:
            _mutate_tensor(tensors, rng)
        else:
            _mutate_metadata(graph, rng)
        if not isinstance(nodes, list) or not nodes or graph.get("nodes") is not nodes:
            return
        if not all(isinstance(n, list) and len(n) == 5 and isinstance(n[2], list) for n in nodes):
            return
        if not isinstance(graph.get("input"), dict) or "output" not in graph:
            return


def _change_a_leaf(place, rng):
    """Puts another number, or anything else, in the place of one of a nested value's."""
    key = rng.integers(len(place)) if isinstance(place, list) else list(place)[rng.integers(len(place))]
    if isinstance(place[key], (list, dict)) and place[key] and rng.random() < 0.9:
        return _change_a_leaf(place[key], rng)
    if type(place[key]) is int and rng.random() < 0.4:
        place[key] += int(rng.integers(-2, 3))
    elif rng.random() < 0.8:
        place[key] = _NUMBERS[rng.integers(len(_NUMBERS))]
    else:
        place[key] = _FOREIGN[rng.integers(len(_FOREIGN))]
    return None


def _random_operation(rng):
    """An operation with attributes of the right kinds and any numbers."""
    op = list(ir.OPERATIONS)[rng.integers(len(ir.OPERATIONS))]
    few = [n for n in _NUMBERS if n < 2**31]

    def numbers(longest=5):
        return [few[i] for i in rng.integers(len(few), size=rng.integers(longest))]

    kinds = {
        "direction": "ge",
        "dtype": list(ir.DTYPES)[rng.integers(len(ir.DTYPES))],
        "form": packed.FORMS[rng.integers(3)],
        **dict.fromkeys(("axis", "groups", "y"), int(rng.integers(-1, 5))),
        **{n: [numbers(3) for _ in range(rng.integers(5))] for n in ("padding", "edges")},
        **{n: [numbers(3), numbers(3)] for n in ("contracting", "batch")},
    }
    return op, {name: kinds.get(name, numbers()) for name in ir.OPERATIONS[op].attributes}


def _insert(graph, at, base, rng):
    """Puts a node in front of another, which reads it; all else stays as it was."""
    nodes = graph["nodes"]
    for node in nodes[at:]:
        node[2] = [n + 1 if type(n) is int and n >= base + at else n for n in node[2]]
    if type(graph["output"]) is int:
        graph["output"] += 1
    sizes = [[-1, 8, 8, 11], [1] * 16, [1] * 17, [2**14, 2**14], [2**31 - 1] * 3, [-(2**31) + 1]]
    big = sizes[rng.integers(len(sizes))]
    edges = [[0, 0, 0], [0, _NUMBERS[rng.integers(16)], _NUMBERS[rng.integers(16)]]] * 2
    op, attributes = [
        ("broadcast", {"shape": big, "axes": []}),
        ("reshape", {"shape": big}),
        ("pad", {"edges": edges}),
        ("window_max", {"window": [1, 9, 9, 1], "strides": [1] * 4, "padding": [[0, 2**20]] * 4}),
        ("integer_pow", {"y": 64}),
        ("abs", {}),
        _random_operation(rng),
    ][rng.integers(7)]
    count = ir.OPERATIONS[op].operands or 3
    operands = [int(n) for n in rng.integers(base + at, size=count)]
    nodes.insert(at, [f"inserted {at} {rng.integers(10**6)}", op, operands, attributes, ""])
    if at + 1 < len(nodes) and nodes[at + 1][2]:
        nodes[at + 1][2][rng.integers(len(nodes[at + 1][2]))] = base + at


def _mutate_tensor(tensors, rng):
    """Renames, removes or adds a tensor, or changes its dtype, its shape or a bit."""
    name = list(tensors)[rng.integers(len(tensors))]
    kind, tensor = rng.integers(7), tensors[name]
    if kind == 0:
        tensors[["a\nb", "", "x" * 2000, "images", "\x7f"][rng.integers(5)]] = tensors.pop(name)
    elif kind == 1:
        del tensors[name]
    elif kind == 2:
        tensors["spare"] = tensor
    elif kind == 3:
        tensors[name] = np.ascontiguousarray(tensor.reshape(-1))
    elif kind == 4:
        dtypes = (np.float16, np.bool_, np.int8, np.uint16, np.int32, np.uint32)
        tensors[name] = tensor.astype(dtypes[rng.integers(6)])
    elif kind == 5 and tensor.nbytes:
        content = bytearray(tensor.tobytes())
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        tensors[name] = np.frombuffer(bytes(content), tensor.dtype).reshape(tensor.shape)
    else:
        tensors[name] = np.ascontiguousarray(np.repeat(tensor.reshape(-1), 2))


@pytest.mark.filterwarnings("ignore:overflow encountered in cast", "ignore:invalid value encountered")
def test_a_mutated_graph_is_refused_in_one_line_or_is_read_and_run_as_it_says(path, tmp_path):
    """All checksums are right, those of the tensors and of the network among them."""
    rng = np.random.default_rng(2)
    target = str(tmp_path / "mutated.safetensors")
    images = networks.images(8)
    read = run = 0
    for tried in range(_GRAPH_MUTATIONS):
        tensors, metadata, _ = container.read(path)
        _mutate_graph(metadata["graph"], tensors, rng)
        _write(target, tensors, metadata, by_its_author=True)
        loaded = _loaded_or_refused(target, metadata, tried)
        if loaded is None:
            continue
        read += 1
        assert loaded.graph.tensors.keys() == tensors.keys()
        if run < _GRAPHS_RUN and loaded.graph.to_json() != artifact_lib.load(path).graph.to_json():
            run += 1
            assert len(runtime_lib.Runtime(loaded)(images)) == len(images), tried
    assert 0.02 * _GRAPH_MUTATIONS < read < 0.5 * _GRAPH_MUTATIONS
    assert run == _GRAPHS_RUN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("step"), "metadata 'step': is missing"),
        (lambda f: f.pop("graph"), "metadata graph: is missing"),
        (lambda f: f.update(step="5"), "metadata step: int expected, found '5'"),
        (lambda f: f.update(step=True), "metadata step: int expected, found True"),
        (lambda f: f.update(step="7 */ int x;"), "metadata step: int expected, found '7 "),
        (lambda f: f["versions"].update(jax="1 */"), "metadata versions: names and versions expected"),
        (lambda f: f["class_names"].append("sixth"), "metadata class_names: 6 names for 5 classes"),
        (lambda f: f["class_names"].append(3), "metadata class_names: str expected, found 3"),
        (lambda f: f["preprocessing"].update(size=10**6), "preprocessing.size: 1 to 4096 expected"),
        (lambda f: f["preprocessing"].update(size=9), r"gives uint8 \[9, 9, 3\], and .* \[8, 8, 3\]"),
        (lambda f: f["preprocessing"].update(antialias=1), "preprocessing.antialias: bool expected"),
        (lambda f: f["preprocessing"].update(mean=[1.0, 2.0]), "2 numbers for 3 channels"),
        (lambda f: f["preprocessing"].update(std=[0.0]), "preprocessing.std: positive numbers expected"),
        (lambda f: f["preprocessing"].update(std=[float("nan")]), "preprocessing.std: a finite number"),
        (lambda f: f["preprocessing"].update(crop=100), "its metadata is not what was exported"),
        (lambda f: f["spec"].update(width=12), "model.stem_features=11"),
        (lambda f: f["spec"].update(groups=2), "its metadata is not what was exported"),
        (
            lambda f: f["spec"].update(blocks=[10**9]),
            r"model\.blocks=\(1000000000,\): must be a tuple .* at most 1000",
        ),
        (lambda f: f["spec"].update(colour=1), "metadata 'spec.colour': no such field is known"),
        (
            lambda f: f.update(schema_version=3),
            "version 3; .* reads 5; --mode=export writes the file anew",
        ),
        (lambda f: f.update(schema_version=99), "schema version 99; this version of ftbnn_jax reads 5"),
        (lambda f: f["sha256"].popitem(), "tensors are not those"),
        (lambda f: f["sha256"].update({"head/bias": "0" * 64}), "'head/bias'"),
    ],
)
def test_metadata_that_is_wrong_under_a_right_checksum_is_refused(path, change, message):
    tensors, metadata, intact = container.read(path)
    assert intact
    change(metadata)
    _write(path, tensors, metadata)
    with pytest.raises(UserError, match=message):
        artifact_lib.load(path)


def _node(op, *operands, **attributes):
    """Puts a node between the network and its output that reads tensors or earlier nodes by name."""

    def change(graph, tensors):
        names = [graph["input"]["name"], *sorted(tensors), *(n[0] for n in graph["nodes"])]
        inputs = [names.index(name) for name in operands]
        graph["nodes"].append([f"last {len(names)}", op, inputs, attributes, ""])
        graph["output"] = len(names)

    return change


def _on_each(*changes):
    def change(graph, tensors):
        for each in changes:
            each(graph, tensors)

    return change


def _at(index, place, value):
    def change(graph, tensors):
        graph["nodes"][index][place] = value

    return change


def _attributes(op, **values):
    def change(graph, tensors):
        next(n for n in graph["nodes"] if n[1] == op)[3].update(values)

    return change


def _ends_with(op):
    def change(graph, tensors):
        count = next(i for i, node in enumerate(graph["nodes"]) if node[1] == op)
        graph.update(nodes=graph["nodes"][: count + 1], output=1 + len(tensors) + count)

    return change


def _words_of_both(graph, tensors):
    first, second = (n for n in graph["nodes"] if n[1] == "binary_conv")
    second[2][1] = first[2][1]


_EDGES = [[0, 0, 0], [2**30, 2**30, 0], [2**30, 2**30, 0], [0, 0, 0]]
_DOT = {"contracting": [[0], [0]], "batch": [[], []], "dtype": "float32"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # More memory or time than any network needs.
        (_node("broadcast", "head/bias", shape=[2**31 - 1, 5], axes=[0, 1]), "more than any network"),
        (
            _node("broadcast", "constants/0.0", shape=[1, 5], axes=[]),
            r"output: \[61, ...\] for .* 61 exp",
        ),
        (
            _on_each(
                *[_node("broadcast", "constants/0.0", shape=[i, 2**13, 2**13], axes=[]) for i in (1, 2)],
                _node("add", "head/add", "constants/0.0"),
            ),
            "201,32.,... numbers before any image",
        ),
        (_node("pad", "block1_1/select", "constants/0.0", edges=_EDGES), "more than any network needs"),
        (_attributes("conv", padding=[[2**30, 2**30]] * 2), "'stem/conv/conv': .* is more than any"),
        (
            _on_each(
                _attributes("binary_conv", padding=[[2**11, 2**11]] * 2), _ends_with("binary_conv")
            ),
            "151,[0-9]+,[0-9]+ numbers before any image",
        ),
        (_attributes("binary_conv", kernel_size=[2**31 - 1] * 2), "block1_1/conv/concatenate' .* words"),
        (_attributes("binary_conv", in_features=[2**31 - 1] * 3), "11 channels for 6442450941"),
        (_attributes("binary_conv", in_features=[1] * (2**16 + 1)), "a list of at most 65,536 expected"),
        (_node("reshape", "head/add", shape=[-1] + [1] * 16), "a list of at most 16 expected"),
        (
            _node("integer_pow", "head/add", y=10**9),
            "a number from -64 to 64 expected, found 1000000000",
        ),
        (lambda g, t: g.update(nodes=g["nodes"] * 400), "a list of 1 to 16,384 expected"),
        # Not of its kind.
        (_at(3, 1, "eval"), r"graph.nodes\[3\].op: one of the 46 .* expected, found 'eval'"),
        (_at(3, 1, ["conv"]), r"graph.nodes\[3\].op: one of .* expected, found \['conv'\]"),
        (_at(3, 2, [27]), r"graph.nodes\[3\].inputs: 2 operands expected, found \(27,\)"),
        (_at(3, 2, [27, 28]), r"graph.nodes\[3\].inputs: a number from 0 to 27 expected, found 28"),
        (_at(3, 2, [27, True]), "expected, found True"),
        (_at(3, 2, [27, -1]), "expected, found -1"),
        (_at(3, 3, {}), r"graph.nodes\[3\].attributes: an object of strides, padding, .* found {}"),
        (_at(3, 4, None), r"graph.nodes\[3\].layer: a name .* expected, found None"),
        (_at(3, 4, "a\nb"), r"graph.nodes\[3\].layer: a name .* expected, found 'a\\nb'"),
        (_at(3, 0, "div"), "graph.nodes: names that differ expected, found 'div'"),
        (_at(3, 0, "x" * 1001), r"graph.nodes\[3\].name: a name of at most 1,000 characters"),
        (_attributes("conv", groups=float("nan")), "groups: a number from .* expected, found nan"),
        (_attributes("conv", groups=10**400), "groups: a number from .* expected, found 1000"),
        (_attributes("conv", groups=2), "'stem/conv/conv' .conv.: "),
        (_attributes("conv", dilation=[1, 1, 1]), r".conv.: dilation \[1, 1, 1\] for 2 axes"),
        (
            _attributes("binary_conv", padding=[[1], [1]]),
            r"conv.: padding \[\(1,\), \(1,\)\] for 2 axes",
        ),
        (_attributes("binary_conv", kernel_size=[]), r"binary_conv.: kernel_size \[\] for 2 axes"),
        (_attributes("conv", strides=[0, 1]), "strides: a number from 1 .* expected, found 0"),
        (_attributes("conv", dtype="complex64"), "dtype: one of .* expected, found 'complex64'"),
        (_attributes("compare", direction="__eq__"), "direction: one of .* expected, found '__eq__'"),
        (_attributes("binary_conv", form="or"), "form: one of .* expected, found 'or'"),
        (_node("add", "head/add", "cast"), "'last [0-9]+' .add.: "),
        (_node("dot", "head/add", "head/bias", **_DOT), "'last [0-9]+' .dot.: "),
        (lambda g, t: g.update(output=0), "graph.output: a number from 25 to 65 expected, found 0"),
        (lambda g, t: g.update(more=0), "graph: an object of input, nodes, output expected"),
        (lambda g, t: g.update(nodes=[]), "graph.nodes: a list of 1 to 16,384 expected, found"),
        (lambda g, t: g["input"].update(shape=[1, 8, 8, 3]), "graph.input.shape: the batch, -1, and"),
        (lambda g, t: g["input"].update(shape=[-1, 8, 0, 3]), "graph.input.shape: the batch, -1, and"),
        (lambda g, t: g["input"].update(dtype=["uint8"]), "graph.input.dtype: one of"),
        # The batch's size is no number of a graph.
        (_node("reshape", "head/add", shape=[5]), r"'last [0-9]+' .reshape.: \[61, 5\] as \[5\]"),
        (_node("reshape", "head/add", shape=[61, 5]), r".reshape.: \[1, 5\] as \[61, 5\]"),
        (_node("reduce_sum", "head/add", axes=[0]), r"graph.output: \[1, ...\] for .* found \(5,\)"),
        # Words of kernels have one reader.
        (_words_of_both, "is read by another node too"),
        (_node("add", "block1_1/conv/bits", "block1_1/conv/bits"), "is read by another node too"),
    ],
)
def test_a_graph_that_cannot_be_is_refused_under_right_checksums(path, change, message):
    tensors, metadata, _ = container.read(path)
    change(metadata["graph"], tensors)
    _write(path, tensors, metadata, by_its_author=True)
    with pytest.raises(UserError, match=message):
        artifact_lib.load(path)
    assert _loaded_or_refused(path, metadata, change) is None


def test_a_header_that_is_no_header_is_refused(tmp_path):
    """What JSON can hold where safetensors has names, dtypes, shapes and offsets."""
    path = tmp_path / "model.safetensors"
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    described = json.dumps({"file_sha256": "0" * 64}, separators=(",", ":"))
    for name, changed in [
        *((name, {"dtype": []}) for name in ("a", "a\nb", "x" * 10_000)),
        *(("a", {"shape": value}) for value in (None, [[]], [True], [-1], [2**48], [0] * 9, [0.0], [1])),
        *(("a", {"data_offsets": value}) for value in ([0], [0, 4], [4, 0], [0, "0"], {})),
        *(("a", {"dtype": value}) for value in ("F64", None, {}, 3)),
    ]:
        header = {"__metadata__": {"ftbnn_jax": described}, name: {**entry, **changed}}
        content = json.dumps(header).encode()
        path.write_bytes(len(content).to_bytes(8, "little") + content)
        with pytest.raises(UserError) as caught:
            artifact_lib.load(str(path))
        assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_the_same_checkpoint_gives_the_same_bytes(built, path):
    """Whatever the order of its fields; a hash map's order would differ now and then."""
    artifact = built[2]
    with open(path, "rb") as file:
        content = file.read()
    tensors = dict(reversed(artifact.graph.tensors.items()))
    backwards = dataclasses.replace(
        artifact,
        graph=dataclasses.replace(artifact.graph, tensors=tensors),
        versions=dict(reversed(artifact.versions.items())),
    )
    for again in [backwards] * 8:
        again.save(path)
        with open(path, "rb") as file:
            assert file.read() == content


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "name",
    [
        "params/stem/conv/kernel",
        "params/block1_1/conv/kernel_1",
        "params/head/bias",
        "batch_stats/stem/bn/mean",
        "batch_stats/stem/bn/var",
    ],
)
def test_what_is_not_finite_is_not_exported(built, name, value):
    config, variables, _ = built
    experiment = {"channels": 3, "class_names": []}

    def planted(path, leaf):
        here = jax.tree_util.keystr(path, simple=True, separator="/") == name
        return np.where(np.arange(leaf.size).reshape(leaf.shape) == 1, value, leaf) if here else leaf

    damaged = jax.tree_util.tree_map_with_path(planted, variables)
    with pytest.raises(UserError, match=f"step 9: {name} holds a number that is not finite"):
        export.to_artifact(config, damaged, experiment, step=9)


def _resized(tensors):
    tensors["stem/bn/add_constant"] = np.zeros((1, 1, 1, 12), np.float32)


def _not_a_number(tensors):
    tensors["block1_1/bn/add_constant"] = np.full((1, 1, 1, 11), np.nan, np.float32)


def _other_dtype(tensors):
    tensors["stem/bn/add_constant"] = tensors["stem/bn/add_constant"].view(np.uint32)


def _fewer_words(tensors):
    tensors["block1_1/conv/bits"] = tensors["block1_1/conv/bits"][:-1]


def _spare(tensors):
    tensors["zero"] = tensors["head/bias"]


def _padding_bit(tensors):
    words = tensors["block1_1/conv/bits"].copy()
    words[-1] |= np.uint32(1 << 31)
    tensors["block1_1/conv/bits"] = words


_TENSORS = [
    (_resized, r"'stem/bn/add' \(add\): .*11.*12"),
    (_other_dtype, r"'stem/bn/add' \(add\): operands of float32 and uint32"),
    (_fewer_words, r"'block1_1/conv/concatenate' \(binary_conv\): \[12\] words for 387 bits"),
    (_spare, "tensor 'zero': the network has no such tensor"),
    (_padding_bit, "tensor 'block1_1/conv/bits': its padding bits are not all 0"),
    (_not_a_number, "tensor 'block1_1/bn/add_constant': holds a number that is not finite"),
]


@pytest.mark.parametrize(("change", "message"), _TENSORS)
def test_tensors_that_are_not_the_networks_are_neither_read_nor_written(built, path, change, message):
    tensors, metadata, _ = container.read(path)
    base, graph = 1 + len(tensors), metadata["graph"]
    change(tensors)
    # Nodes are counted behind the tensors.
    more = 1 + len(tensors) - base
    for node in graph["nodes"]:
        node[2] = [n + more * (n >= base) for n in node[2]]
    graph["output"] += more
    _write(path, tensors, metadata, by_its_author=True)
    with pytest.raises(UserError, match=message):
        artifact_lib.load(path)
    graph = dataclasses.replace(built[2].graph, tensors=tensors)
    with pytest.raises(UserError, match=f"not written, it could not be read again: .*{message}"):
        dataclasses.replace(built[2], graph=graph).save(path)


def test_a_tensor_that_is_missing_is_refused(path):
    tensors, metadata, _ = container.read(path)
    del tensors["head/bias"]
    _write(path, tensors, metadata)
    with pytest.raises(UserError, match="tensors are not those that its metadata lists"):
        artifact_lib.load(path)
    _write(path, tensors, metadata, by_its_author=True)
    # One operand fewer, so that all numbers behind it mean something else.
    with pytest.raises(UserError, match=r"metadata graph.nodes\[[0-9]+\].inputs|\(conv\)|\(mul\)"):
        artifact_lib.load(path)


def test_a_byte_that_is_no_truth_value_is_refused(tmp_path):
    """XLA computes with a bool's byte as it is."""
    path = str(tmp_path / "model.safetensors")

    def function(variables, images):
        return jax.numpy.where(variables["mask"], images, -images)

    mask = np.array([True, False, True])
    images = np.ones((2, 3), np.float32)
    export.pack(function, {"mask": mask}, images).save(path)
    tensors, metadata, _ = container.read(path)
    (name,) = tensors
    assert tensors[name].dtype == bool
    tensors[name] = np.array([[1, 0, 2]], np.uint8).view(bool).reshape(tensors[name].shape)
    _write(path, tensors, metadata, by_its_author=True)
    with pytest.raises(UserError, match=f"tensor '{name}': holds what is neither True nor False"):
        artifact_lib.load(path)


def test_the_home_directory_is_that_of_a_path(built, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    built[2].save("~/model.safetensors")
    assert (tmp_path / "model.safetensors").is_file()
    assert artifact_lib.load("~/model.safetensors").spec == built[2].spec
    with pytest.raises(UserError, match=r"^~nobody123/x: there is no home directory"):
        artifact_lib.load("~nobody123/x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preprocessing": {"size": 5000}}, "metadata preprocessing.size: 1 to 4096 expected"),
        ({"class_names": ("\udcff",)}, "metadata class_names: holds half of a surrogate pair"),
    ],
)
def test_what_could_not_be_read_is_not_written(built, tmp_path, change, message):
    (field, value), artifact = *change.items(), built[2]
    if isinstance(value, dict):
        value = dataclasses.replace(getattr(artifact, field), **value)
    path = tmp_path / "model.safetensors"
    with pytest.raises(UserError, match=rf"not written, it could not be read again: {message}"):
        dataclasses.replace(artifact, **{field: value}).save(str(path))
    assert not path.exists()


def test_a_missing_file_and_a_path_that_cannot_be_written(built, tmp_path):
    with pytest.raises(UserError, match="no such file; --mode=export writes it"):
        artifact_lib.load(str(tmp_path / "none.safetensors"))
    with pytest.raises(UserError, match="cannot be written"):
        built[2].save(str(tmp_path / "no" / "such" / "directory"))


def test_running_an_artifact_needs_no_training_software(path):
    """In a fresh interpreter in which importing anything of the training half fails."""
    program = f"""
import sys
for name in ("flax", "optax", "orbax", "tensorflow", "tensorflow_datasets", "ml_collections", "rich",
             "absl", "sklearn", "safetensors.torch"):
    sys.modules[name] = None
import numpy as np
from ftbnn_jax.deploy import runtime
loaded = runtime.Runtime.load({path!r})
print(loaded.predict(np.zeros((2, 8, 8, 3), np.uint8)).shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2,)"
