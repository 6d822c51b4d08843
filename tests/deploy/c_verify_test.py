"""`--mode=export --format=c` and `--mode=verify --runtime=c`, from the artifact to the exit status."""

import json

import c_programs
import networks
import numpy as np
import pytest

from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.deploy.c import export, verify
from ftbnn_jax.errors import UserError

c_programs.need_compiler()


@pytest.fixture(scope="module", params=[False, True], ids=["float", "fixed"])
def exported(tmp_path_factory, request):
    """Path of the artifact and of the folder."""
    directory = tmp_path_factory.mktemp("run")
    path, folder = str(directory / "model.safetensors"), directory / "c"
    artifact_lib.save(path, c_programs.runtime("two-valued").artifact)
    # The prefix is read back from the folder.
    assert export.run(path, str(folder), [_batch()], request.param, *(["my_net"] * request.param)) == 0
    return path, folder


def _batch():
    # The last image is a repeated one that only fills up the batch.
    return {"image": networks.images(10, 3), "weight": np.array([1, 1, 0])}


def _verify(path, folder):
    artifact = c_programs.runtime("two-valued").artifact
    return verify.run(path, str(folder), artifact.spec, artifact.num_classes, [_batch()], as_json=True)


def test_an_export_is_verified(exported, capsys):
    assert _verify(*exported) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["images"], report["agreeing"], report["passed"]) == (2, 2, True)
    # 10x10, then two of 5x5 with twice the channels.
    assert [layer["compared"] for layer in report["layers"]] == [2 * 100 * 12, 2 * 25 * 24, 2 * 25 * 24]
    assert [layer["differing"] for layer in report["layers"]] == [0, 0, 0]


def test_a_difference_is_exit_status_1(exported, monkeypatch, capsys):
    real = export.Reference.golden

    def wrong(self, images):
        golden = bytearray(real(self, images))
        golden[-4 * 5 - 2] ^= 1  # The last integer of the last layer, before five logits.
        return bytes(golden)

    monkeypatch.setattr(export.Reference, "golden", wrong)
    assert _verify(*exported) == 1
    assert "block2_2: 1 of 1,200 integers differ" in capsys.readouterr().err


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


def test_a_machine_without_a_compiler_gets_one_line(exported, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    with pytest.raises(UserError, match=r"^CC=no-such-compiler -O2: no such C compiler"):
        _verify(*exported)


def test_a_compiler_that_fails_gets_one_line(exported, monkeypatch):
    monkeypatch.setenv("CC", "cc --no-such-option")
    with pytest.raises(UserError, match=r"failed in .*error") as caught:
        _verify(*exported)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (None, "no exported C program; --mode=export --format=c"),
        ("", r"model\.h: no header of an exported C program"),
        ("#define A_FRACTION_BITS x\nint a_init(", "FRACTION_BITS x: a number expected"),
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
