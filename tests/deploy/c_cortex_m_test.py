"""What `--target=cortex-m` writes, and the memory that it says a program takes."""

import pathlib
import re

import c_programs
import numpy as np
import pytest

from ftbnn_jax import command
from ftbnn_jax.deploy.c import emulated, export, generate, golden, lowering, memory_map, reference
from ftbnn_jax.deploy.c.options import Options
from ftbnn_jax.errors import UserError

_OPTIONS = Options(target="cortex-m", prefix="leaf")


@pytest.fixture(scope="module")
def artifact():
    return c_programs.runtime("none").artifact


@pytest.fixture(scope="module")
def program(artifact):
    images = c_programs.networks.images(artifact.image_size)
    files = generate.files(artifact, _OPTIONS)
    found = reference.Reference(artifact, _OPTIONS)
    content = found.golden(images)
    files |= generate.example(found.network, content, _OPTIONS)
    return {name: text.encode() for name, text in files.items()} | {"golden.bin": content}


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(memory_map.shutil, "which", lambda name: None)


def _map(artifact, program):
    text = {name: data.decode() for name, data in program.items() if name.endswith((".c", ".h"))}
    return memory_map.measure(text, lowering.lower(artifact), "leaf")


def _files(folder: pathlib.Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_the_network_alone_lies_in_the_library(program):
    sources = {name for name in program if name.startswith("src/") and name.endswith(".c")}
    names = ("model", "weights", "ftbnn_binary", "ftbnn_layers")
    assert {f"src/{name}.c" for name in names} <= sources
    assert not any("int main(" in program[name].decode() for name in sources)
    assert {
        "examples/Classify/Classify.ino",
        "library.properties",
        "zephyr/module.yml",
    } <= program.keys()
    # Every name has the prefix, every field is filled, and files keep the names that include them.
    for name, data in program.items():
        if name != "golden.bin":
            assert not re.search(r"@[A-Z_]+@", data.decode()), name
            assert not re.search(r"\b(ftbnn_(init|predict|net)|FTBNN_OK)\b", data.decode()), name
    assert {"src/leaf_model.h", "src/leaf_golden.h"} <= program.keys()


def test_the_example_is_the_first_image_and_its_result(artifact, program):
    images = c_programs.networks.images(artifact.image_size)
    text = program["src/leaf_golden.h"].decode()
    pixels, logits = (body.split(",") for body in re.findall(r"= \{\n(.*?)\};", text, re.DOTALL))
    np.testing.assert_array_equal([int(p) for p in pixels], images[0].reshape(-1))
    expected = reference.Reference(artifact, _OPTIONS).traces(images)[1].logits[0]
    bits = np.array([int(word.strip().rstrip("u"), 16) for word in logits], np.uint32)
    np.testing.assert_array_equal(bits.view(np.float32), expected)


def test_an_export_for_another_target_takes_its_place(tmp_path, artifact, program):
    folder = tmp_path / "c"
    host = {name: text.encode() for name, text in generate.files(artifact).items()}
    host["golden.bin"] = b""
    for files in (host, program, host, program):
        export.write(folder, files)
        assert _files(folder) == files.keys()
    (folder / "bare_metal/build/cortex-m4").mkdir(parents=True)
    for name in ("bare_metal/build/cortex-m4/model.o", "src/model.o", "test_model"):
        (folder / name).write_bytes(b"")
    export.write(folder, program)
    assert _files(folder) == program.keys()
    assert export.read_options(folder) == _OPTIONS


@pytest.mark.parametrize("name", ["src/own.c", "examples/Mine/Mine.ino", "bare_metal/build/x/notes"])
def test_files_of_others_in_folders_of_an_export_are_kept(tmp_path, program, name):
    folder = tmp_path / "c"
    export.write(folder, program)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"mine")
    with pytest.raises(UserError, match=rf"{re.escape(name)}: is from no export and would be lost"):
        export.write(folder, program)
    assert (folder / name).read_bytes() == b"mine"


def test_weights_and_arena_are_known_without_a_compiler(artifact, program, no_compiler):
    found = _map(artifact, program)
    # Words of bits, each product's with a slack of 16, and real numbers.
    declared = re.findall(r"const (\w+) \w+\[(\d+)\];", program["src/weights.h"].decode())
    sizes = {"uint32_t": 4, "float": 4, "int32_t": 4, "int16_t": 2}
    assert sum(found.weights.values()) == sum(sizes[kind] * int(count) for kind, count in declared)
    network = lowering.lower(artifact)
    bits = {p.name: 4 * (sum(k.size for k in p.kernels) // 32 + 16) for p in network.products}
    for layer, least in bits.items():
        assert found.weights[layer] >= least
    assert found.arena == network.arena_bytes
    # An image of one byte a value, and a result of four bytes a class.
    assert found.buffers == np.prod(network.graph.shape[1:]) + 4 * network.results
    assert found.ram(None) == found.arena + found.buffers
    assert (
        "code and stack",
        "not known without arm-none-eabi-gcc, which is not installed",
    ) in found.rows()


@pytest.mark.parametrize("option", ["flash", "ram"])
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path, artifact, program, no_compiler, option
):
    found = _map(artifact, program)
    needs = getattr(found, option)(None)
    found.check(memory_map.Limits(**{option: needs}))
    with pytest.raises(UserError, match=rf"--{option}={needs - 1}: the program takes {needs:,} bytes"):
        found.check(memory_map.Limits(**{option: needs - 1}))


_GRAPH = """graph: { title: "model.c"
node: { title: "leaf_predict" label: "leaf_predict\\nmodel.c:1:1\\n40 bytes (static)\\n0 objects" }
node: { title: "model.c:run" label: "run\\nmodel.c:9:1\\n8 bytes (static)" }
node: { title: "leaf_convolve" label: "leaf_convolve\\nleaf.h:2:1" shape : ellipse }
edge: { sourcename: "leaf_predict" targetname: "model.c:run" label: "model.c:2:3" }
edge: { sourcename: "model.c:run" targetname: "leaf_convolve" label: "model.c:3:3" }
edge: { sourcename: "model.c:run" targetname: "memcpy" label: "model.c:4:3" }
}
"""
_OTHER = """node: { title: "leaf_convolve" label: "leaf_convolve\\nx.c:7:1\\n100 bytes (static)" }
"""


def test_the_deepest_path_of_calls_is_the_stack():
    assert memory_map.stack_of([_GRAPH, _OTHER], "leaf_predict") == 40 + 8 + 100
    assert memory_map.stack_of([_GRAPH, _OTHER], "model.c:run") == 8 + 100


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ('edge: { sourcename: "leaf_convolve" targetname: "leaf_predict" }', "may call itself"),
        ('node: { title: "x" label: "x\\nx.c:1:1\\n8 bytes (dynamic)" }', "more of the stack"),
    ],
)
def test_a_stack_without_a_bound_is_refused(more, words):
    with pytest.raises(UserError, match=words):
        memory_map.stack_of([_GRAPH, _OTHER + more], "leaf_predict")


def test_code_is_counted_by_file_where_the_linker_keeps_it():
    text = """Discarded input sections
 .text.unused   0x0000000000000000       0x70 model.o
Linker script and memory map
 .text.leaf_init
                0x0000000000008000       0x30 model.o
 .rodata.conv_0
                0x0000000000008030       0x0c model.o
 .text          0x0000000000008040       0x10 /usr/lib/gcc/libgcc.a(_udivsi3.o)
 .text.x        0x0000000000008050        0x8 ftbnn_binary.o
 .bss.y         0x0000000000008060       0x99 ftbnn_binary.o
"""
    assert memory_map.code_of(text) == {"model.c": 0x3C, "libraries": 0x10, "ftbnn_binary.c": 8}


@pytest.mark.parametrize(
    ("text", "count"), [("65536", 65536), ("64K", 65536), ("1m", 2**20), ("2KB", 2048)]
)
def test_sizes_of_memory(text, count):
    assert command.size(text) == count


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5M", "64 K", "K", "1T"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(command.argparse.ArgumentTypeError, match="is no size in bytes"):
        command.size(text)


def test_golden_vectors_are_cut_to_the_first_image(artifact, program):
    network = lowering.lower(artifact)
    whole = program["golden.bin"]
    short = golden.shortened(network, whole)
    images = int.from_bytes(whole[20:24], "little")
    assert images > 1
    assert len(short) - 24 == (len(whole) - 24) // images
    assert short[:20] == whole[:20] and short[20:24] == (1).to_bytes(4, "little")
    assert short[24:] == whole[24 : len(short)]


def test_without_tools_nothing_is_emulated(artifact, program, no_compiler):
    assert emulated.count(program, lowering.lower(artifact)) is None
