"""The exported C program: integers equal under every kernel, arithmetic and level of optimisation."""

import re
import subprocess
import sys

import c_programs
import networks
import numpy as np
import pytest

from ftbnn_jax.deploy.c import build, export, fixed_point, lowering

c_programs.need_compiler()

_BUILDS = {
    "-O0 with sanitizers": c_programs.SANITIZED,
    "-O3": ("-O3", "-Werror"),
    "this processor": ("-O3", "-march=native", "-Werror"),
    "portable 64": ("-O2", "-march=native", "-DFTBNN_PORTABLE=64", "-Werror"),
    "portable 32": ("-O2", "-DFTBNN_PORTABLE=32", "-Werror"),
}


@pytest.mark.parametrize("fixed", [False, True], ids=["float", "fixed"])
@pytest.mark.parametrize("name", ["derived", "baseline", "two-valued", "prelu"])
def test_no_integer_differs(tmp_path, name, fixed):
    folder = c_programs.write(tmp_path / "c", name, fixed)
    found = c_programs.check(folder, c_programs.exported(name, fixed)[2])
    plans = c_programs.runtime(name).artifact.spec.plan()
    assert found["passed"]
    assert [block["name"] for block in found["blocks"]] == [plan.name for plan in plans]
    for block in found["blocks"]:
        assert block["compared"] > 0
        assert block["differing"] == 0
        assert not fixed or block["end_to_end"] == 0
    if not fixed:
        net = c_programs.runtime(name)
        logits, _ = net.trace(networks.images(net.artifact.image_size))
        np.testing.assert_array_equal(found["classes"], np.argmax(logits, -1))
    if fixed:
        assert found["logits_differing"] == found["saturated"] == 0


@pytest.mark.parametrize(("name", "fixed"), [("derived", False), ("baseline", True)])
def test_every_build_computes_the_same_numbers(tmp_path, name, fixed):
    folder = c_programs.write(tmp_path / "c", name, fixed)
    golden = c_programs.exported(name, fixed)[2]
    found = [c_programs.check(folder, golden, flags) for flags in _BUILDS.values()]
    assert all(result["passed"] for result in found)
    assert len({result["checksum"] for result in found}) == 1
    assert [result["kernels"] for result in found[-2:]] == ["portable, 64 bits", "portable, 32 bits"]


def test_flipped_weight_bits_are_found_and_located(tmp_path):
    _, files, golden = c_programs.exported("derived", False)
    start = files["weights.c"].index("ftbnn_block1_2_conv_bits[")
    head, tail = files["weights.c"][:start], files["weights.c"][start:]
    word = re.search("0x([0-9a-f]+)u", tail)
    flipped = f"{tail[: word.start()]}0x{int(word[1], 16) ^ 255:x}u{tail[word.end() :]}"
    folder = c_programs.write(tmp_path / "c", "derived", weights_c=head + flipped)
    found = c_programs.check(folder, golden)
    assert not found["passed"]
    assert [b["name"] for b in found["blocks"] if b["differing"]] == ["block1_2"]


def test_one_wrong_slope_of_fixed_point_is_found_end_to_end(tmp_path):
    _, files, golden = c_programs.exported("derived", True)
    changed = re.sub(
        r"(ftbnn_block1_1_act_positive_slope\[\d+\] = \{\n)-?\d+", r"\g<1>-999999999", files["weights.c"]
    )
    assert changed != files["weights.c"]
    found = c_programs.check(
        c_programs.write(tmp_path / "c", "derived", True, weights_c=changed), golden
    )
    assert not found["passed"]
    assert all(block["differing"] == 0 for block in found["blocks"])


def test_saturation_is_the_same_in_c_and_reported(tmp_path):
    net = c_programs.runtime("none")
    images = networks.images(net.artifact.image_size)
    bits = 28  # Leaves room to 8: less than the activations take.
    emulator = fixed_point.Emulator(fixed_point.quantize(lowering.lower(net.artifact), bits), net)
    emulator.trace(images)
    assert emulator.saturated > 0
    files = c_programs.generate.files(net.artifact, bits)
    folder = tmp_path / "c"
    export.write(folder, {name: text.encode() for name, text in files.items()})
    found = c_programs.check(folder, export.Reference(net, bits).golden(images), c_programs.SANITIZED)
    assert found["passed"]
    assert 0 < found["saturated"] <= found["images"]


def test_golden_vectors_of_another_network_or_cut_short_are_refused(tmp_path):
    folder = c_programs.write(tmp_path / "c", "derived")
    golden = c_programs.exported("derived", False)[2]
    program = tmp_path / "test_model"
    build.build(folder, program, c_programs.SANITIZED)
    for content, words in (
        (c_programs.exported("baseline", False)[2], "another network"),
        (golden[:-1], "end early"),
        (golden[:10], "end early"),
        (golden + b"x", "behind their end"),
    ):
        with pytest.raises(c_programs.UserError, match=words):
            build.check(program, content, tmp_path)


def test_two_networks_are_one_program_of_cpp(tmp_path, repository):
    main = repository / "tests" / "deploy" / "two_networks.cpp"
    expected, objects = [], []
    for prefix, name, fixed in (("one", "derived", False), ("Two", "baseline", True)):
        folder = c_programs.write(tmp_path / prefix.lower(), name, fixed, prefix)
        net, bits = c_programs.runtime(name), c_programs.exported(name, fixed)[0]
        images = networks.images(net.artifact.image_size)
        (tmp_path / f"{prefix.lower()}.images").write_bytes(images.tobytes())
        network = lowering.lower(net.artifact)
        trace = (
            fixed_point.Emulator(fixed_point.quantize(network, bits), net).trace if fixed else net.trace
        )
        expected.append(np.asarray(trace(images)[0], np.float64))
        sources = [path for path in build.sources(folder) if not path.endswith("test_model.c")]
        command = [*build.compiler(), *build.STANDARD, *c_programs.STRICT, "-c", *sources]
        subprocess.run(command, cwd=folder, check=True)
        objects += sorted(folder.glob("*.o"))
    command = ["c++", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I.", main]
    subprocess.run([*command, "-std=c++17", "-fsyntax-only"], cwd=tmp_path, check=True)
    subprocess.run([*command, "-std=c++11", *objects, "-o", "both"], cwd=tmp_path, check=True)

    ran = [tmp_path / "both", tmp_path / "one.images", tmp_path / "two.images"]
    lines = subprocess.run(ran, capture_output=True, text=True, check=True).stdout.splitlines()
    found = np.array([line.split() for line in lines], np.float64)
    ours, theirs = np.split(found, [expected[0].shape[1]], axis=1)
    np.testing.assert_allclose(ours, expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(theirs, expected[1])

    listed = subprocess.run(["nm", "-g", "--defined-only", *objects], capture_output=True, check=True)
    symbols = re.findall(rb"^[0-9a-f]+ \w (\w+)$", listed.stdout, re.MULTILINE)
    assert len(set(symbols)) == len(symbols) > 50
    assert {symbol.split(b"_")[0] for symbol in symbols} == {b"one", b"Two"}


def test_code_is_small(tmp_path):
    folder = c_programs.write(tmp_path / "c", "derived")
    sources = [s for s in build.sources(folder) if not s.endswith(("weights.c", "test_model.c"))]
    assert len(sources) == 4
    command = [*build.compiler(), *build.STANDARD, *build.FLAGS, "-c", *sources]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.o")) < 64 * 1024


_CMAKE = (sys.executable, "-m", "cmake")


@pytest.mark.parametrize(
    "commands",
    [
        [("make", "-s", "-j2", "-C", "with space/c", "check")],
        [
            (*_CMAKE, "-S", "with space/c", "-B", "other place", "-DCMAKE_C_FLAGS=-Werror"),
            (*_CMAKE, "--build", "other place"),
            (*_CMAKE, "--build", "other place", "--target", "test", "--", "ARGS=--verbose"),
        ],
    ],
    ids=["make", "cmake"],
)
def test_the_folder_builds_and_checks_itself(tmp_path, commands):
    c_programs.write(tmp_path / "with space" / "c", "two-valued")
    for command in commands:
        made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr
        assert made.stderr == ""
    assert '"differing": 0' in made.stdout
