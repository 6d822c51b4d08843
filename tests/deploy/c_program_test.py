"""The exported C program: integers equal under every kernel, arithmetic and level of optimisation."""

import re
import subprocess
import sys

import c_programs
import networks
import numpy as np
import pytest

from ftbnn_jax.deploy.c import build, export, reference
from ftbnn_jax.deploy.c.options import Options

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
    products = c_programs.runtime(name).artifact.graph.binary_products()
    assert found["passed"]
    assert [block["name"] for block in found["blocks"]] == [product.layer for product in products]
    for block in found["blocks"]:
        assert block["compared"] > 0
        assert block["differing"] == block["end_to_end"] == 0
    assert found["logits_differing"] == found["saturated"] == 0
    if not fixed:
        net = c_programs.runtime(name)
        logits = net.forward(networks.images(net.artifact.image_size))
        np.testing.assert_array_equal(found["classes"], np.argmax(logits, -1))


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
    assert [b["name"] for b in found["blocks"] if b["differing"]] == ["block1_2/conv"]


def _next_value(tensor: str, change, index: int = 0):
    """Changes one value of a tensor in weights.c, by default the first."""

    def apply(text):
        before = rf"ftbnn_{tensor}\[\d+\] = \{{\n(?:[^,}}]+,){{{index}}}"
        found = re.search(rf"({before})([^,}}]+)", text)
        return f"{text[: found.start(2)]}{change(found[2])}{text[found.end(2) :]}"

    return "weights.c", apply


def _swapped_stem_weights(text):
    found = re.search(r"ftbnn_stem_conv_kernel\[\d+\] = \{\n([^,]+), ([^,]+)", text)
    return f"{text[: found.start(1)]}{found[2]}, {found[1]}{text[found.end(2) :]}"


# In weights, or in the arithmetic of a layer; the first ones leave every integer as it is.
_DAMAGES = {
    "one weight of the head": _next_value("head_kernel_int16", lambda v: str(int(v) + 1), 5),
    "scale of the head": _next_value("head_kernel_scale", lambda _: "0"),
    "bias of the head": _next_value("head_bias", lambda v: f"({v} + 1)"),
    "order of a sum in the head": (
        "ftbnn_arithmetic.h",
        lambda text: text.replace(
            "(float)(a * first);\n      sum += (float)(b * second)",
            "(float)(b * second);\n      sum += (float)(a * first)",
        ),
    ),
    "slope": _next_value("block2_1_act_positive_slope", lambda _: "-999999999", 1),
    "stem": ("weights.c", _swapped_stem_weights),
    "norm of a shortcut": _next_value("block2_1_shortcut_bn_add_constant", lambda v: f"({v} + 1)", 1),
    "mean of a shortcut": (
        "model.c",
        lambda text: text.replace("v0 / 0x1.000000p+2f", "v0 / 0x1.800000p+2f"),
    ),
}


@pytest.mark.parametrize(
    ("fixed", "damage"),
    [(False, damage) for damage in _DAMAGES] + [(True, d) for d in ("one weight of the head", "slope")],
)
def test_damage_that_no_convolution_sees_is_found_end_to_end(tmp_path, damage, fixed):
    _, files, golden = c_programs.exported("two-valued", fixed)
    name, change = _DAMAGES[damage]
    changed = change(files[name])
    assert changed != files[name]
    folder = c_programs.write(tmp_path / "c", "two-valued", fixed, **{name.replace(".c", "_c"): changed})
    found = c_programs.check(folder, golden)
    assert not found["passed"]
    assert found["logits_differing"] > 0
    for block in found["blocks"]:
        assert block["differing"] == 0
        assert block["end_to_end"] == 0 or not damage.endswith(" head")


@pytest.mark.parametrize(
    "flags",
    ["-ffast-math", "-Ofast", "-ffinite-math-only", "-funsafe-math-optimizations"],
)
def test_arithmetic_that_is_not_exact_is_one_line(tmp_path, flags):
    folder = c_programs.write(tmp_path / "c", "two-valued")
    with pytest.raises(c_programs.UserError, match="float arithmetic must keep its order") as caught:
        build.build(folder, tmp_path / "program", ("-O1", flags))
    assert "\n" not in str(caught.value)


def test_fused_additions_that_no_macro_shows_are_found(tmp_path):
    macros = subprocess.run(
        [*build.compiler(), "-march=native", "-dM", "-E", "-x", "c", "/dev/null"],
        capture_output=True,
        text=True,
        check=True,
    )
    if "__FMA__" not in macros.stdout:
        pytest.skip("this processor has no fused multiply-add")
    folder = c_programs.write(tmp_path / "c", "derived")
    golden = c_programs.exported("derived", False)[2]
    found = c_programs.check(folder, golden, ("-O2", "-march=native", "-ffp-contract=fast"))
    assert not found["passed"]
    assert found["logits_differing"] > 0


def test_saturation_is_the_same_in_c_and_reported(tmp_path):
    net = c_programs.runtime("none")
    images = networks.images(net.artifact.image_size)
    options = Options(28)  # Leaves room to 8: less than the activations take.
    expected = reference.Reference(net.artifact, options)
    golden = expected.golden(images)
    assert expected.losses.saturated
    files = c_programs.generate.files(net.artifact, options)
    folder = tmp_path / "c"
    export.write(folder, {name: text.encode() for name, text in files.items()})
    found = c_programs.check(folder, golden, c_programs.SANITIZED)
    assert found["passed"]
    assert found["saturated"] == int(expected.traces(images)[1].any_outside().sum())


def test_golden_vectors_of_another_network_or_cut_short_are_refused(tmp_path):
    folder = c_programs.write(tmp_path / "c", "derived")
    golden = c_programs.exported("derived", False)[2]
    program = tmp_path / "test_model"
    build.build(folder, program, c_programs.SANITIZED)
    head, images = golden[:20], golden[24:]
    for content, words in (
        (c_programs.exported("baseline", False)[2], "another network"),
        (c_programs.exported("derived", True)[2], "another network"),
        (b"", "end early"),
        (golden[:10], "end early"),
        (golden[:24], "end early"),
        (golden[:-1], "end early"),
        (head + b"\xff\xff\xff\xff" + images, "end early"),
        (head + bytes(4) + images, "no golden vectors"),
        (golden + b"x", "behind their end"),
        (b"\x89PNG\r\n" + bytes(1000), "another network"),
    ):
        with pytest.raises(c_programs.UserError, match=rf"test_model: .*golden\.bin: .*{words}"):
            build.check(program, content, tmp_path)
    found = subprocess.run([program, tmp_path], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr.count("\n")) == (2, "", 1)


def test_two_networks_are_one_program_of_cpp(tmp_path, repository):
    main = repository / "tests" / "deploy" / "two_networks.cpp"
    expected, objects = [], []
    for prefix, name, fixed in (("one", "derived", False), ("Two", "baseline", True)):
        folder = c_programs.write(tmp_path / prefix.lower(), name, fixed, prefix)
        net, options = c_programs.runtime(name), c_programs.exported(name, fixed)[0]
        images = networks.images(net.artifact.image_size)
        (tmp_path / f"{prefix.lower()}.images").write_bytes(images.tobytes())
        expected.append(reference.Reference(net.artifact, options).traces(images)[1].logits)
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
    np.testing.assert_allclose(ours, expected[0], rtol=1e-5)
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
