"""Pages for browsers: what is in their folder, and the compilers that cannot make them.

What needs a compiler, node or a browser is tested in `.ci`.
"""

import base64
import dataclasses
import json
import os
import pathlib
import re

import c_programs
import numpy as np
import pytest

from ftbnn_jax.deploy.c import export as c_export
from ftbnn_jax.deploy.c import golden, reference
from ftbnn_jax.deploy.web import build, export
from ftbnn_jax.errors import UserError

_MODULES = {name: name.encode() for name in build.MODULES}


def _program(name, fixed=False):
    options, files, vectors = c_programs.exported(name, fixed)
    artifact = c_programs.runtime(name).artifact
    encoded = {key: text.encode() for key, text in files.items()} | {"golden.bin": vectors}
    return artifact, c_export.Program(encoded, options, reference.Reference(artifact, options))


def _about(files):
    text = files["about.js"].decode()
    return json.loads(re.fullmatch(r'"use strict";\n\nconst FTBNN_ABOUT = (.*);\n', text, re.DOTALL)[1])


@pytest.mark.parametrize("fixed", [False, True], ids=["float", "fixed"])
def test_the_page_knows_its_network(fixed):
    artifact, program = _program("two-valued", fixed)
    files = export.files(artifact, program, _MODULES, "a <b> & c", 4321)
    assert files == export.files(artifact, program, _MODULES, "a <b> & c", 4321)
    page = files["index.html"].decode()
    assert "<h1>a &lt;b&gt; &amp; c</h1>" in page and "@" not in re.sub("@media|@keyframes", "", page)
    assert "10\N{MULTIPLICATION SIGN}10 pixels to 5 classes through 3 binary layers" in page.replace(
        "\n", " "
    )
    about = _about(files)
    assert about["fraction_bits"] == program.reference.fraction_bits
    assert about["packed_bytes"] == 4321
    assert about["classes"] == [f"class {i}" for i in range(5)]
    # Blocks of 12, 24 and 24 channels in 5 groups, each in words of its own; 3x3 kernels of 1 bit.
    assert [layer["words"] for layer in about["layers"]] == [5, 5, 5]
    first, second, third = (layer["groups"] for layer in about["layers"])
    assert (sum(first), sum(second), sum(third)) == (12, 12, 24)
    assert about["record_bytes"] * 3 + 24 == len(files["golden.bin"])
    assert about["rule"] == {"size": 10, "channels": 3, "mean": [120.0]}
    # A script is what a page on a disk can read.
    for name in (*_MODULES, "golden.bin"):
        text = re.fullmatch(rf'ftbnnTexts\["{name}"\] = "(.*)";\n', files[f"{name}.js"].decode())[1]
        assert base64.b64decode(text) == files[name]


def test_names_of_classes_end_no_script():
    artifact, program = _program("two-valued")
    names = ("</script><b>", "line\nbreak", "ä")
    artifact = dataclasses.replace(artifact, class_names=names)
    files = export.files(artifact, program, _MODULES, "t", 1)
    assert b"</script>" not in files["about.js"]
    assert _about(files)["classes"] == [*names, "class 3", "class 4"]


@pytest.mark.parametrize(
    ("name", "script", "message"),
    [
        ("gcc", "echo 'gcc (Debian) 12.2.0'", "gcc: is no clang"),
        ("old", "echo 'Debian clang version 11.0.1'", "old: clang 11 is too old"),
        (
            "apple",
            'case "$*" in *--version) echo "Apple clang version 17";; *) echo "  arm64 - ARM";; esac',
            "apple: cannot make WebAssembly",
        ),
        (
            "alone",
            'case "$*" in *--version) echo "clang version 19.1.0";; *targets) echo "  wasm32 - 32";; '
            "*prog-name*) echo wasm-ld;; esac",
            "alone: finds no wasm-ld",
        ),
    ],
)
def test_compilers_that_cannot(tmp_path, monkeypatch, name, script, message):
    program = tmp_path / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/nowhere")
    monkeypatch.setenv("WASM_CC", name)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        build.compiler()
    assert "apt-get install clang lld" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("command", ["", "no-such-clang", "'"])
def test_no_compiler(monkeypatch, command):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("WASM_CC", command)
    expected = {"": "clang: no such program", "'": 'WASM_CC="\'": must be a command'}
    with pytest.raises(UserError, match=re.escape(expected.get(command, f"{command}: no such program"))):
        build.compiler()


def test_only_an_earlier_page_is_replaced(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "index.html").write_text("my own")
    with pytest.raises(UserError, match="is no earlier export"):
        export.write(folder, {"index.html": b"page", **_MODULES})
    assert (folder / "index.html").read_text() == "my own"
    (folder / "ftbnn.wasm").write_bytes(b"old")
    export.write(folder, {"index.html": b"page", **_MODULES})
    assert (folder / "ftbnn.wasm").read_bytes() == b"ftbnn.wasm"
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes[.]txt: is from no export"):
        export.write(folder, {"index.html": b"page", **_MODULES})


def test_share_of_a_side_that_figures_take():
    """Two of three figures are 6 pixels high on a ground of 10, the third is 4 wide."""
    images = np.zeros((3, 10, 10, 1), np.uint8)
    images[:2, 2:8, 4:6] = 200
    images[2, 5, 3:7] = 255
    assert export.fill(images) == 0.6
    assert export.fill(255 - images) == 0.6
    assert export.fill(np.repeat(images, 3, -1)) is None
    # An image of nothing but ground has no figure; in photographs all is one.
    assert export.fill(np.zeros_like(images)) is None
    assert export.fill(np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)) is None


def test_golden_vectors_hold_their_images():
    _, program = _program("two-valued")
    images = c_programs.networks.images(10)
    found = golden.images(program.reference.network, program.files["golden.bin"])
    np.testing.assert_array_equal(found, images)


def test_no_file_of_the_page_is_left_out():
    page = pathlib.Path(export.__file__).parent / "page"
    sources = {"web.c", "memory.c", "string.h", "math.h"}
    assert {path.name for path in page.iterdir()} - sources == set(export.PAGE)
