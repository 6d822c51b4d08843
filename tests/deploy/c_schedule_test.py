"""Memory, sizes and text of a C program, without a compiler."""

import dataclasses
import functools
import hashlib
import os
import pathlib
import re
import subprocess
import sys

import c_programs
import networks
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftbnn_jax.deploy.c import (
    arithmetic,
    emit,
    emulator,
    export,
    fixed_point,
    generate,
    golden,
    lowering,
    memory,
    reference,
    tables,
)
from ftbnn_jax.deploy.c.options import Options
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures

_BUFFERS = st.lists(
    st.tuples(st.integers(1, 9), st.integers(0, 5), st.integers(0, 3)).map(
        lambda t: memory.Buffer(t[0], t[1], t[1] + t[2])
    ),
    max_size=8,
)


@settings(deadline=None)
@given(_BUFFERS)
def test_buffers_in_use_at_once_never_overlap(buffers):
    offsets, total = memory.place(buffers)
    for step in range(9):
        taken = [
            set(range(offset, offset + b.size))
            for offset, b in zip(offsets, buffers, strict=True)
            if b.first <= step <= b.last
        ]
        assert len(set().union(*taken)) == sum(map(len, taken))
    assert total == max((o + b.size for o, b in zip(offsets, buffers, strict=True)), default=0)


def test_a_chain_of_buffers_takes_two_places():
    chain = [memory.Buffer(size, i, i + 1) for i, size in enumerate((8, 8, 4, 4, 2))]
    assert memory.place(chain)[1] == 16


@functools.cache
def _large(spec):
    """The artifact of a network of 224x224 pixels, without a kernel's numbers."""
    return networks.build(spec, 224, classes=1000)[2]


_PAPER = (
    architectures.baseline(),
    architectures.derived(34, 5),
    architectures.derived(44, 5),
    architectures.derived(18, 1),
)


@pytest.mark.parametrize("spec", _PAPER)
def test_no_image_can_overflow_a_network_of_the_paper(spec):
    network = lowering.lower(_large(spec))
    quantized = fixed_point.quantize(network, fixed_point.PROVEN_BITS, arithmetic.Names(set()))
    assert quantized.unproven == quantized.too_large == {}
    output = quantized.ranges.of(network.graph.output)
    assert output.is_within(-(2**31), 2**31 - 1)
    # A bit more, and the largest logit would not be proven to fit.
    assert max(map(abs, output.ends())) > 2**29
    assert "#define FTBNN_PROVEN 1" in "".join(
        f"#define FTBNN_{k} {v}" for k, v in quantized.definitions().items()
    )


@pytest.mark.parametrize("spec", _PAPER)
def test_memory_is_at_most_1_2_times_the_largest_pair_of_activations(spec):
    network = lowering.lower(_large(spec))
    first, size = spec.plan()[0], 56
    # Stem and what its pool leaves, or what enters and leaves a block: float32 all.
    pairs = [(112**2 + 56**2) * spec.stem_features, 112**2 * spec.stem_features + 224**2 * 3]
    features = first.in_features
    for plan in spec.plan():
        out = size // plan.stride
        pairs.append(size**2 * features + out**2 * plan.features)
        size, features = out, plan.features
    assert network.arena_bytes <= 1.2 * 4 * max(pairs)


def test_weights_are_at_most_1_02_times_the_packed_file():
    artifact = _large(architectures.derived(44, 5))
    network = lowering.lower(artifact)
    packed = sum(tensor.nbytes for tensor in artifact.graph.tensors.values())
    numbers = arithmetic.SinglePrecision(network, arithmetic.Names(set()))
    emit.Text(network, numbers).functions()
    words = [tables.binary_weights("", product.kernels) for product in network.products]
    constants = [*words, *numbers.tables.values()]
    assert sum(table.values.nbytes for table in constants) <= 1.02 * packed


def test_the_same_artifact_gives_the_same_bytes_and_another_gives_others():
    spec, size = c_programs.NETWORKS["two-valued"]
    first, again = (networks.build(spec, size)[2] for _ in range(2))
    other = networks.build(spec, size, seed=5)[2]
    for options in (Options(), Options(20)):
        assert generate.files(first, options) == generate.files(again, options)
        assert generate.files(first, options) != generate.files(other, options)


def test_the_same_artifact_gives_the_same_bytes_under_every_hash_seed(tmp_path):
    path, fixed = str(tmp_path / "model.safetensors"), c_programs.exported("derived", True)[0]
    bits = str(fixed.fraction_bits)
    c_programs.runtime("derived").artifact.save(path)
    program = (
        "import hashlib, sys\n"
        "from ftbnn_jax.deploy import artifact\n"
        "from ftbnn_jax.deploy.c import generate\n"
        "from ftbnn_jax.deploy.c.options import Options\n"
        "loaded = artifact.load(sys.argv[1])\n"
        "loaded.save(sys.argv[2])\n"
        "files = [generate.files(loaded, Options(bits)) for bits in (None, int(sys.argv[3]))]\n"
        "print(hashlib.sha256(repr(files).encode()).hexdigest())\n"
    )
    again = str(tmp_path / "again.safetensors")
    command = [sys.executable, "-c", program, path, again, bits]
    environment = {**os.environ, "PYTHONHASHSEED": str(int.from_bytes(os.urandom(3)))}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    files = [c_programs.exported("derived", fixed)[1] for fixed in (False, True)]
    assert found.strip() == hashlib.sha256(repr(files).encode()).hexdigest()
    assert pathlib.Path(again).read_bytes() == pathlib.Path(path).read_bytes()


def test_the_program_names_layers_shapes_and_budget():
    files = generate.files(c_programs.runtime("derived").artifact)
    # 13 channels in groups of 4, 4 and 5; 26 in 8, 8 and 10.
    budget = 9 * 10 * 10 * (4 * 4 + 4 * 4 + 5 * 5)
    assert (
        "block1_1/conv: 10x10x13 -> 10x10x13, 3 groups, kernel 3x3, stride 1x1, ternary"
        in files["model.c"]
    )
    assert f"{budget:,} binary" in " ".join(files["model.c"].split())
    assert f"{9 * 5 * 5 * (8 * 8 + 8 * 8 + 10 * 10):,} binary" in " ".join(files["model.c"].split())


def _named(*names):
    return dataclasses.replace(c_programs.runtime("derived").artifact, class_names=names)


def test_class_names_of_any_kind_become_c_strings():
    # The last one is a folder's whose name is no UTF-8.
    literals = {
        'a"b\\c': r'"a\042b\134c"',
        "??/1": r'"\077\077/1"',
        "ü\n9": r'"\303\274\0129"',
        "*/ %s ftbnn_": '"*/ %s ftbnn_"',
        "": '""',
        "\udcff": r'"\377"',
    }
    for names in (tuple(literals)[:5], tuple(literals)[1:]):
        program = generate.files(_named(*names), Options(prefix="other"))["model.c"]
        assert ",\n".join(f"    {literals[name]}" for name in names) + "};" in program
    assert '    "one",\n    "class 1",\n    "class 2",' in generate.files(_named("one"))["model.c"]


@pytest.mark.parametrize("name", ["x" * 10_000, "ü" * 2_000])
def test_a_class_name_too_long_for_a_literal_is_an_array(name):
    program = generate.files(_named("short", name))["model.c"]
    values = re.search(r"char class_name_1\[\] = \{(.*?)\};", program, re.DOTALL)[1]
    *characters, end = (text.strip(" '\n") for text in values.split(","))
    found = [int(c[1:], 8) if len(c) > 1 else ord(c) for c in characters]
    assert (bytes(found).decode(), end) == (name, "0")
    assert '    "short",\n    class_name_1,\n' in program
    assert max(map(len, program.splitlines())) < 200


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("step", "7 */ #include <stdio.h>", r"step='7 \*/ #include <stdio\.h>': must be a whole number"),
        ("preprocessing.size", 37.0, r"preprocessing\.size=37\.0: must be a whole number"),
        ("preprocessing.crop", True, r"preprocessing\.crop=True: must be a whole number"),
        ("class_names", ("a", "b\0c"), r"'b\\x00c' of class 1 holds a NUL"),
        ("class_names", (b"a",), "b'a' of class 0 is no text"),
        ("class_names", ("\ud800",), r"'\\ud800' of class 0 is no text"),
    ],
)
def test_metadata_that_is_no_c_is_refused(field, value, words):
    artifact = c_programs.runtime("derived").artifact
    outer, _, inner = field.partition(".")
    if inner:
        value = dataclasses.replace(getattr(artifact, outer), **{inner: value})
    with pytest.raises(UserError, match=words):
        generate.files(dataclasses.replace(artifact, **{outer: value}))


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        *(
            (word, "must be a C identifier")
            for word in ("", "1a", "a-b", "_a", "a_", "a__b", "ü", "a b", "int")
        ),
        ("test", "the program has a test_model of its own"),
    ],
)
def test_a_prefix_that_makes_no_names_is_refused(prefix, words):
    with pytest.raises(UserError, match=f"--prefix={prefix!r}: {words}"):
        generate.files(c_programs.runtime("derived").artifact, Options(prefix=prefix))


def test_a_prefix_takes_the_place_of_another_in_every_name():
    files = generate.files(c_programs.runtime("derived").artifact, Options(20, prefix="My_net"))
    words = set(re.findall(r"\w*ftbnn\w*", "".join(files.values()), re.IGNORECASE))
    assert words == {"ftbnn", "ftbnn_jax", *(n[:-2] for n in files if n.startswith("ftbnn_"))}
    assert "#define MY_NET_MOST_FRACTION_BITS 20" in files["model.h"]
    assert "int My_net_init(void *arena" in files["model.h"]


@pytest.mark.parametrize("bits", [None, 20])
def test_a_number_that_is_not_finite_is_refused(bits):
    artifact = _changed("derived", "head/bias", _first_is(np.nan))
    with pytest.raises(UserError, match="'head/bias': holds a number that is not finite"):
        generate.files(artifact, Options(bits))


def _changed(name, tensor, change):
    """A network's artifact with one tensor of its graph changed."""
    artifact = c_programs.runtime(name).artifact
    return _with_graph(artifact, tensors={tensor: change(artifact.graph.tensors[tensor].copy())})


def _with_graph(artifact, tensors=None, **changed):
    graph = artifact.graph
    tensors = {**graph.tensors, **(tensors or {})}
    return dataclasses.replace(artifact, graph=dataclasses.replace(graph, tensors=tensors, **changed))


def _first_is(value):
    def change(tensor):
        tensor[..., 0] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("tensor", "value", "node", "bits"),
    [
        # 1e6 * 2**11 < 2**31 < 1e6 * 2**12
        ("block1_1/bn/add_constant", 1e6, "block1_1/bn/add", 11),
        ("head/bias", -1e6, "head/add", 11),
        # Sums of 4 * 9 signs: 36 * 3.2e5 * 2**7 < 2**31 < 36 * 3.2e5 * 2**8
        ("block2_1/bn/mul_constant", 3.2e5, "block2_1/bn/mul", 7),
    ],
)
def test_large_values_have_fewer_fraction_bits(tensor, value, node, bits):
    artifact = _changed("derived", tensor, _first_is(value))
    quantized = fixed_point.quantize(lowering.lower(artifact), 20, arithmetic.Names(set()))
    assert quantized.bits_of(node) == bits
    assert quantized.bits_of("stem/bn/add") == 20
    assert quantized.too_large == {}


@pytest.mark.parametrize(
    ("tensor", "value", "message"),
    [
        ("block2_1/bn/mul_constant", -1e9, "1e.09 .* no fewer would do; without --fixed_point it fits"),
        ("block1_1/act/negative_slope", 2e9, "2e.09 does not .* no fewer would do"),
    ],
)
def test_fixed_point_refuses_what_does_not_fit(tensor, value, message):
    artifact = _changed("derived", tensor, _first_is(value))
    with pytest.raises(UserError, match=f"^tensor '{tensor}': {message}"):
        generate.files(artifact, Options(20))


@pytest.mark.parametrize(
    ("largest", "multiplier", "bits"),
    [
        (1.5, 1.0, 27),  # 8 * 1.5 < 2**(31 - 27)
        (1000.0, 1.0, 18),
        (1.5, 4096.0, 17),  # 4096 * 2**17 < 2**30, of a channel that hardly ever changes
        (1e12, 1.0, 4),
    ],
)
def test_fraction_bits_leave_room_to_values_and_to_parameters(largest, multiplier, bits):
    net = _changed("none", "block1_1/bn/mul_constant", _first_is(multiplier))
    found = fixed_point.choose_fraction_bits(
        lowering.lower(net), {"stem/conv/conv": 1e20, "block2_1/add": largest}
    )
    assert found == bits


def test_a_network_that_may_overflow_is_named(capsys):
    scaled = _changed("none", "block2_1/bn/mul_constant", lambda t: t * 2**26)
    largest = np.abs(scaled.graph.tensors["block2_1/bn/mul_constant"]).max()
    saturating = reference.Reference(scaled, Options(4))
    saturating.traces(networks.images(7))
    assert saturating.losses.saturated["block2_1/bn/mul"] == 3
    # Sums of 17 * 9 signs, which is more than 2**31; after them nothing has more room.
    name, *_ = saturating.losses.too_large
    assert name == "block2_1/bn/mul"
    assert saturating.losses.too_large[name] == pytest.approx(153 * largest, rel=1e-6)
    (kind, where), (observed, which), *_ = saturating.losses.lines()
    assert (kind, observed) == ("may overflow on some image", "saturated")
    assert f"block2_1/bn/mul up to {153 * largest:.2g}" in where
    assert "block2_1/bn/mul on 3 of 3 images" in which
    assert not saturating.losses.to_json()["proven"]
    saturating.losses.warn("c")
    assert "c: fixed point: may overflow on some image: block2_1/bn/mul up" in capsys.readouterr().err


def _before_sign(network, product):
    """Name of the array whose signs a product reads."""
    node = network.nodes[product.node.inputs[0]]
    while node.op != "compare":
        node = network.nodes[node.inputs[0]]
    return node.inputs[0]


@pytest.mark.parametrize("name", ["derived", "two-valued"])
def test_signs_that_fixed_point_loses_are_counted(name, capsys):
    net = c_programs.runtime(name)
    images = networks.images(net.artifact.image_size)
    coarse = reference.Reference(net.artifact, Options(4))
    products = coarse.network.products
    logits, arrays = net.arrays(images, [_before_sign(coarse.network, p) for p in products])
    coarse.traces(images)
    expected = {}
    for product, x in zip(products, arrays, strict=True):
        # Half of 2**-4; of a sign of two values, 0 is the negative one.
        lost = (np.asarray(x) > 0) & (np.asarray(x) < 2**-5)
        if name == "derived":
            lost |= (np.asarray(x) < 0) & (np.asarray(x) > -(2**-5))
        expected[product.name] = int(lost.sum())
    found = dict(coarse.losses.lost_signs)
    assert found.pop("logits", 0) == np.sum(np.abs(logits) < 2**-5)
    assert found == expected
    assert min(expected.values()) > 0
    coarse.losses.warn("c")
    assert "warning: c: fixed point: signs that became 0: b" in capsys.readouterr().err


def test_parameters_that_fixed_point_loses_are_counted():
    net = _changed("derived", "block1_1/act/positive_slope", lambda t: np.where(t == t[3], 1e-12, t))
    quantized = fixed_point.quantize(lowering.lower(net), 20, arithmetic.Names(set()))
    assert quantized.zeroed == {"block1_1/act/positive_slope": 1}


@pytest.mark.parametrize("name", ["derived", "baseline", "prelu"])
def test_fixed_point_is_near_single_precision(name):
    net = c_programs.runtime(name)
    images = networks.images(net.artifact.image_size)
    options = c_programs.exported(name, True)[0]
    both = reference.Reference(net.artifact, options)
    single, fixed = both.traces(images)
    assert both.losses.saturated == {}
    largest = np.abs(single.logits).max()
    np.testing.assert_allclose(
        fixed.logits * 2.0**-both.fraction_bits, single.logits, atol=1e-2 * largest
    )


@pytest.mark.parametrize("shift", [0, 1, 5])
def test_shifts_round_to_the_nearest_halves_up(shift):
    values = np.arange(-100, 101)
    expected = np.floor(values / 2.0**shift + 0.5)
    np.testing.assert_array_equal(fixed_point.shifted(values, shift), expected)


def test_sums_are_taken_in_the_order_of_their_terms():
    x = np.array([[1e8, 1, -1e8, 2], [1e8, -1e8, 1, 2]], np.float32)
    found = emulator.ordered_sums(x, np.ones((4, 1), np.float32))
    # 1e8 + 1 is 1e8 in 24 bits.
    np.testing.assert_array_equal(found[:, 0], [2, 3])


def test_values_that_are_not_finite_are_refused():
    net = _changed("none", "stem/bn/mul_constant", lambda t: t * np.float32(1e38))
    for fixed in (False, True):
        with pytest.raises(UserError, match=r"^stem/bn/mul: not finite on 3 of 3 images"):
            if fixed:
                reference.calibrate(net, [networks.images(7)])
            else:
                reference.Reference(net).golden(networks.images(7))


def test_images_that_only_fill_up_are_left_out():
    batch = {"image": networks.images(12, 4), "weight": np.array([1, 0, 1, 1])}
    none = {"image": networks.images(9, 1), "weight": np.zeros(1)}
    (found,) = export.real_images([batch, none])
    np.testing.assert_array_equal(found, batch["image"][[0, 2, 3]])


@pytest.mark.parametrize("fixed", [False, True], ids=["float", "fixed"])
@pytest.mark.parametrize("name", ["derived", "two-valued"])
def test_golden_vectors_take_the_bytes_that_are_foreseen(name, fixed):
    network = lowering.lower(c_programs.runtime(name).artifact)
    content = c_programs.exported(name, fixed)[2]
    assert len(content) == 6 * 4 + 3 * golden.image_bytes(network)


def _tree(folder):
    """Every file below a folder, with what it holds."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ({"c/notes": b"mine"}, r"c: is there already and is no earlier export"),
        ({"c": b"mine"}, r"c: cannot be replaced: Not a directory"),
        ({"c/model.h": b"", "c/main.c": b"mine"}, r"c/main\.c: is from no export and would be lost"),
        ({"c/model.h": b"", "c/build/notes": b"mine"}, r"c/build/notes: is from no export"),
        ({"c/model.h": b"", "c/sub/test.o": b"mine"}, r"c/sub/test\.o: is from no export"),
    ],
)
def test_what_is_no_export_is_not_overwritten(tmp_path, there, words):
    for name, content in there.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        export.write(tmp_path / "c", {"model.h": b"new"})
    assert _tree(tmp_path) == there


def test_an_export_takes_the_place_of_an_earlier_one_and_of_nothing_else(tmp_path):
    mine = {"c.old/a": b"mine", "c.tmp": b"mine", ".export-x/a": b"mine"}
    built = ("a.o", "test_model", "classify", "build/CMakeCache.txt", "build/a", "ftbnn_older.h")
    for name, content in {**mine, **{f"c/{name}": b"" for name in ("model.h", *built)}}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "link").symlink_to("c")
    for folder, content in (("c", b"1"), ("link", b"2")):
        export.write(tmp_path / folder, {"model.h": content})
        assert _tree(tmp_path) == {**mine, "c/model.h": content}
    assert (tmp_path / "link").is_symlink()
    # As the user's umask has it.
    assert (tmp_path / "c").stat().st_mode == (tmp_path / "c.old").stat().st_mode


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), PermissionError(13, "Permission denied")])
def test_an_export_that_is_cut_off_leaves_the_earlier_one(tmp_path, monkeypatch, at, error):
    folder = tmp_path / "c"
    export.write(folder, {"model.h": b"1"})
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == at:
            raise error
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(
        UserError if isinstance(error, OSError) else KeyboardInterrupt, match=r"denied|^$"
    ):
        export.write(folder, {"model.h": b"2"})
    assert _tree(tmp_path) == {"c/model.h": b"1"}


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"file/c: cannot be written: File exists"):
        export.write(tmp_path / "file" / "c", {"model.h": b""})
