"""`--mode=export --format=c` and `--mode=verify --runtime=c`, from the artifact to the exit status."""

import json
import re
import shutil
import tempfile

import c_programs
import networks
import numpy as np
import pytest

from ftbnn_jax.deploy import runtime
from ftbnn_jax.deploy.c import build, export, golden, verify
from ftbnn_jax.deploy.c.options import DEFAULT, Options
from ftbnn_jax.errors import UserError

c_programs.need_compiler()


@pytest.fixture(scope="module", params=[False, True], ids=["float", "fixed"])
def exported(tmp_path_factory, request):
    """Path of the artifact and of the folder."""
    directory = tmp_path_factory.mktemp("run")
    path, folder = str(directory / "model.safetensors"), directory / "c"
    c_programs.runtime("two-valued").artifact.save(path)
    # The prefix is read back from the folder.
    options = Options(prefix="my_net") if request.param else DEFAULT
    assert export.run(path, str(folder), [_batch()], request.param, options) == 0
    return path, folder


def _batch():
    # The last image is a repeated one that only fills up the batch.
    return {"image": networks.images(10, 3), "weight": np.array([1, 1, 0])}


def _verify(path, folder):
    artifact = c_programs.runtime("two-valued").artifact
    described = runtime.Description(artifact.spec, 5, {}, artifact.preprocessing)
    return verify.run(path, str(folder), described, [_batch()], as_json=True)


def test_an_export_is_verified(exported, capsys):
    assert _verify(*exported) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["images"], report["agreeing"], report["passed"]) == (2, 2, True)
    # 10x10, then two of 5x5 with twice the channels.
    assert [layer["compared"] for layer in report["layers"]] == [2 * 100 * 12, 2 * 25 * 24, 2 * 25 * 24]
    assert [layer["differing"] for layer in report["layers"]] == [0, 0, 0]


def test_a_profile_is_in_the_report(exported, capsys):
    artifact = c_programs.runtime("two-valued").artifact
    described = runtime.Description(artifact.spec, 5, {}, artifact.preprocessing)
    arguments = (exported[0], str(exported[1]), described, [_batch()])
    assert verify.run(*arguments, as_json=True, with_profile=True) == 0
    profile = json.loads(capsys.readouterr().out)["profile"]
    assert verify.run(*arguments, with_profile=True) == 0
    printed = capsys.readouterr().out
    # The stem's sums have 3x3x3 terms each, at 10x10 positions of 12 channels.
    stem = next(loop for loop in profile["loops"] if loop["layer"] == "stem/conv")
    assert stem["real_multiply_adds"] == 27 * 100 * 12
    assert all(loop["layer"] in printed for loop in profile["loops"])
    assert "the quickest of" in printed


def test_pixels_are_compared_from_the_stored_images_on(exported):
    net = c_programs.runtime("two-valued")
    rng = np.random.default_rng(3)
    decoded = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((10, 10), (30, 50), (255, 255))]
    batch = {"image": net.pixels(decoded), "decoded": decoded, "weight": np.ones(3)}
    result = verify.compare(exported[1], net, [batch], c_programs.STRICT)
    assert (result.pixels, result.pixels_differing, list(result.failures())) == (900, 0, [])
    batch["image"][1, 4, 4, 0] ^= 1
    (failure,) = verify.compare(exported[1], net, [batch], c_programs.STRICT).failures()
    assert "1 of 900 pixel values" in failure


def test_a_difference_is_exit_status_1(exported, monkeypatch, capsys):
    real = golden.pack

    def wrong(*arguments):
        content = bytearray(real(*arguments))
        content[-4 * 5 - 2] ^= 1  # The last integer of the last layer, before five logits.
        return bytes(content)

    monkeypatch.setattr(golden, "pack", wrong)
    assert _verify(*exported) == 1
    assert (
        "block2_2/conv: 1 of 1,200 integers differ from the packed runtime's" in capsys.readouterr().err
    )


def _unchecked(monkeypatch, folder, name, old, new):
    """Lets a changed program pass for the artifact's."""
    content = (folder / name).read_text()
    assert content.count(old) == 1
    monkeypatch.setattr(build, "sources", _with(folder, name, content.replace(old, new)))


def _with(folder, name, text):
    changed = folder.parent / "changed"
    shutil.rmtree(changed, ignore_errors=True)
    shutil.copytree(folder, changed)
    (changed / name).write_text(text)
    real = build.sources
    return lambda _, program: real(changed, program)


def test_a_build_with_a_garbage_head_is_exit_status_1(exported, monkeypatch, capsys):
    name = "ftbnn_arithmetic.h"
    if "row[o]" in (exported[1] / name).read_text():
        _unchecked(monkeypatch, exported[1], name, "row[o]", "row[many - 1 - o]")
    else:
        _unchecked(monkeypatch, exported[1], name, "y[o] = sum +", "y[features - 1 - o] = sum +")
    assert _verify(*exported) == 1
    found = capsys.readouterr()
    assert json.loads(found.out)["passed"] is False
    # Of two images with five classes, but for the one in the middle.
    assert "8 of 10 logits differ from the emulation's" in found.err
    assert found.err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda logits, x: (logits * 1.01, x),
            "logits differ from the packed runtime's .* 2 of 2 images",
        ),
        (
            lambda logits, x: (logits, x * 1.01),
            "block1_1/conv: its inputs differ .* 2 of 2",
        ),
        (lambda logits, x: (logits * np.nan, x), "values are not finite on 2 of 2 images"),
        (lambda logits, x: (logits, x * np.nan), "block1_1/conv: its inputs differ .* 2 of 2 images"),
    ],
)
def test_an_emulation_that_is_not_the_packed_runtime_is_exit_status_1(
    exported, monkeypatch, capsys, change, message
):
    real = runtime.Runtime.arrays

    def wrong(self, images, names):
        logits, (x, *rest) = real(self, images, names)
        logits, x = change(logits, x)
        return logits, [x, *rest]

    monkeypatch.setattr(runtime.Runtime, "arrays", wrong)
    assert _verify(*exported) == 1
    found = capsys.readouterr()
    json.loads(found.out, parse_constant=pytest.fail)
    assert re.search(message, found.err)


def test_what_rounding_turns_is_counted_and_not_wrong(exported, monkeypatch, capsys):
    real = runtime.Runtime.arrays

    def rounded(self, images, names):
        logits, arrays = real(self, images, names)
        # All that follows on this image is another computation's.
        first = names.index("block1_1/conv/concatenate")
        arrays[first] = arrays[first].at[0, 0, 0, 0].add(2)
        return logits.at[0].add(1.0), arrays

    monkeypatch.setattr(runtime.Runtime, "arrays", rounded)
    assert _verify(*exported) == 0
    report = json.loads(capsys.readouterr().out)
    assert [layer["rounded"] for layer in report["layers"]] == [1, 0, 0]
    # The other image's logits are compared still.
    assert (report["logits_bounded"], report["logits_unexplained"]) == (1, 0)


def test_a_changed_file_is_refused(exported):
    path, folder = exported
    program = folder / "ftbnn_binary.c"
    content = program.read_bytes()
    program.write_bytes(content + b"\n")
    try:
        with pytest.raises(UserError, match=r"ftbnn_binary\.c: not what the artifact gives"):
            _verify(path, folder)
    finally:
        program.write_bytes(content)


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("no-such-compiler -O2", r"^CC=no-such-compiler -O2: no such C compiler"),
        ("cc --no-such-option", r"^cc --no-such-option .*failed in .*error"),
        ("cc 'unclosed", r"^CC=.cc 'unclosed.: must be a command .*: No closing quotation"),
        ("true", r"^true .*failed in .*exit status 0, without a message"),
        ("{directory}", r"no such C compiler"),
        ("{directory}/text", r"text: cannot be run: Exec format error"),
    ],
)
def test_a_compiler_that_fails_gets_one_line(exported, monkeypatch, tmp_path, compiler, message):
    (tmp_path / "text").write_bytes(b"\x00\x01")
    (tmp_path / "text").chmod(0o755)
    monkeypatch.setenv("CC", compiler.format(directory=tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        _verify(*exported)
    assert "\n" not in str(caught.value)


def test_no_place_for_what_is_built_is_one_line(exported, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"^no temporary directory can be made: No such file.*TMPDIR"):
        _verify(*exported)


def test_other_c_files_in_the_folder_are_left_alone(exported, monkeypatch, capsys):
    monkeypatch.setenv("CC", "  ")
    (exported[1] / "mine.c").write_text("#error")
    try:
        assert _verify(*exported) == 0
    finally:
        (exported[1] / "mine.c").unlink()


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (None, "no exported C program; --mode=export --format=c"),
        ("", r"model\.h: no header of an exported C program"),
        ("#define A_MOST_FRACTION_BITS x\nint a_init(", "MOST_FRACTION_BITS x: a number expected"),
        ("int for_init(void", "--prefix='for': must be a C identifier"),
        ("int a_init(void", r"CMakeLists\.txt: not what the artifact gives"),
    ],
)
def test_a_folder_that_is_none_is_named(exported, tmp_path, header, words):
    if header is not None:
        (tmp_path / "model.h").write_text(header)
    with pytest.raises(UserError, match=words):
        _verify(exported[0], tmp_path)


def test_an_export_without_images_is_refused(exported, tmp_path):
    with pytest.raises(UserError, match="no test image"):
        export.run(exported[0], str(tmp_path / "c"), [])
