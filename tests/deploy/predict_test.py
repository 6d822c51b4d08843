"""`python -m ftbnn_jax.predict`, and what a loaded network takes and gives in Python."""

import csv
import dataclasses
import io
import itertools
import json
import os
import pathlib
import re

import jax.numpy as jnp
import networks
import numpy as np
import pytest
from PIL import Image

from ftbnn_jax import predict, report
from ftbnn_jax.deploy import export
from ftbnn_jax.deploy import runtime as runtime_lib
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures
from ftbnn_jax.ops import decoding
from ftbnn_jax.ops.preprocessing import Preprocessing

_NAMES = ("cat", "a\nb", "dög", "x" * 60, "e")


@pytest.fixture(scope="module")
def net():
    _, _, artifact = networks.build(architectures.small((1,), 4), 8)
    # Random weights give one class all of the probability.
    tensors = dict(artifact.graph.tensors)
    tensors["head/kernel/scale"], tensors["head/bias"] = (
        tensors["head/kernel/scale"] / 50,
        np.arange(5.0),
    )
    tensors["head/bias"] = tensors["head/bias"].astype(np.float32)
    graph = dataclasses.replace(artifact.graph, tensors=tensors)
    return runtime_lib.Runtime(dataclasses.replace(artifact, graph=graph, class_names=_NAMES))


@pytest.fixture
def model(net, tmp_path):
    (tmp_path / "run").mkdir()
    net.artifact.save(tmp_path / "run" / "model.safetensors")
    return str(tmp_path / "run")


@pytest.fixture
def folder(tmp_path):
    """Four images, what is none, and what says it is one, in an order that is not the names'."""
    folder = tmp_path / "images"
    (folder / "b" / "c").mkdir(parents=True)
    pixels = networks.images(9, 4)
    for name, image in zip(("b/c/3 ü.PNG", "z.webp", "a.png", "b/two\nlines.bmp"), pixels, strict=True):
        Image.fromarray(image).save(folder / name, lossless=True)
    (folder / "b" / "broken.jpg").write_bytes(b"no image")
    for name in ("notes.txt", ".hidden.png", "b/Thumbs.db"):
        (folder / name).write_bytes(b"no image")
    os.mkfifo(folder / "pipe.png")
    (folder / "b" / "again").symlink_to("..")
    return folder


_ORDER = ("a.png", "b/c/3 ü.PNG", "b/two\nlines.bmp", "z.webp")


def _run(capfd, *arguments):
    status = predict.main(list(map(str, arguments)))
    found = capfd.readouterr()
    return status, found.out, found.err


def _expected(net, files, top):
    """Of each file the most likely classes: name, index, probability in 64 bits."""
    expected = []
    for file in files:
        logits = np.asarray(net.logits(np.asarray(Image.open(file).convert("RGB"))), np.float64)
        probabilities = np.exp(logits) / np.exp(logits).sum()
        order = np.argsort(-probabilities).tolist()[:top]
        expected.append([(_NAMES[c], c, pytest.approx(probabilities[c], abs=1e-6)) for c in order])
    return expected


def _broken(folder, count):
    formats = "JPEG, PNG, GIF, BMP, WEBP"
    return (
        f"warning: {folder}/b/broken.jpg: no image in a format of {formats}; passed over\n"
        f"error: 1 of {count} could not be read\n"
    )


def test_json_is_one_object_a_file_in_the_order_of_their_names(net, model, folder, capfd):
    status, output, errors = _run(capfd, f"{model}/model.safetensors", folder, "--json", "--top=3")
    assert (status, errors) == (1, _broken(folder, 5))
    lines = [json.loads(line) for line in output.splitlines()]
    files = [f"{folder}/{name}" for name in _ORDER]
    assert [line["file"] for line in lines] == files
    assert [[tuple(row.values()) for row in line["classes"]] for line in lines] == (
        _expected(net, files, 3)
    )
    assert {tuple(row) for line in lines for row in line["classes"]} == {
        ("class", "index", "probability")
    }


def test_csv_is_a_line_a_class(net, model, folder, capfd):
    files = [folder / "z.webp", folder / "b" / "two\nlines.bmp"]
    status, output, errors = _run(capfd, model, *files, "--csv", "--top", "9")
    assert (status, errors) == (0, "")
    rows = list(csv.DictReader(io.StringIO(output)))
    assert len(rows) == 10
    found = [(r["file"], (r["class"], int(r["index"]), float(r["probability"]))) for r in rows]
    by_file = zip(files, _expected(net, files, 5), strict=True)
    expected = [(str(file), row) for file, classes in by_file for row in classes]
    assert found == expected


def test_in_a_pipe_a_file_is_a_line(net, model, folder, capfd):
    given = [folder / name for name in ("b/two\nlines.bmp", "b/broken.jpg", "b/c", "a.png")]
    status, output, errors = _run(capfd, model, *given, "--top=2")
    assert (status, errors) == (1, _broken(folder, 4))
    lines = output.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        *(f"{folder}/b/two\\nlines.bmp", f"{folder}/b/c/3 ü.PNG", f"{folder}/a.png")
    ]
    ((first, _, p), (second, _, q)) = _expected(net, [folder / "a.png"], 2)[0]
    shown = [name.replace("\n", "\\n") for name in (first, second)]
    assert lines[-1].endswith(f": {shown[0]} {p.expected:.2%}, {shown[1]} {q.expected:.2%}")


@pytest.mark.parametrize("width", [20, 80])
def test_on_a_terminal_a_file_is_a_table_under_a_bar(net, model, folder, capfd, monkeypatch, width):
    stream = io.StringIO()
    console = report.make_console(file=stream, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(report, "console", console)
    assert _run(capfd, model, folder)[0] == 1
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    # Every probability and every character of a name, however narrow.
    for classes in _expected(net, [folder / name for name in _ORDER], 5):
        for *_, probability in classes:
            assert f"{probability.expected:.2%}" in shown
    assert shown.count("x") >= 4 * 60
    assert "predict" in shown and "5/5" in shown


def test_classes_without_names_have_numbers(net, folder, tmp_path, capfd):
    unnamed = dataclasses.replace(net.artifact, class_names=("cat",))
    unnamed.save(tmp_path / "model.safetensors")
    _, output, _ = _run(capfd, tmp_path, folder / "a.png", "--json")
    names = {row["index"]: row["class"] for row in json.loads(output)["classes"]}
    assert [names[i] for i in range(5)] == ["cat", "class 1", "class 2", "class 3", "class 4"]
    assert runtime_lib.Runtime(unnamed).class_names == tuple(names[i] for i in range(5))


def test_a_folder_without_images_is_named_and_passed_over(model, folder, tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    status, output, errors = _run(capfd, model, tmp_path / "empty", folder / "a.png")
    assert status == 1
    assert errors.startswith(f"warning: {tmp_path}/empty: holds no image (.jpg, ")
    assert errors.splitlines()[1:] == ["error: 1 of 2 could not be read"]
    assert output.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["none.png"], "error: none.png: no such file or folder"),
        (["-"], "error: -: standard input is not read; give files or folders"),
        (["a\nb"], r"error: a\nb: no such file or folder"),
        ([], "error: the following arguments are required: FILE|FOLDER"),
        ([".", "--top=0"], "error: --top: '0' is not a whole number of at least 1"),
        ([".", "--json", "--csv"], "error: --csv: not allowed with argument --json"),
        ([".", "--tpo=3"], "error: unrecognized arguments: --tpo, the nearest is --top"),
        (["."], "error: MODEL/model.safetensors: no such file; --mode=export writes it"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tmp_path, capfd, arguments, told):
    status, output, errors = _run(capfd, tmp_path, *arguments)
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith(told.replace("MODEL", str(tmp_path)))


@pytest.mark.parametrize(
    ("example", "rule", "told"),
    [
        (np.ones((1, 3), np.float32), None, "this network was packed without preprocessing"),
        (
            np.ones((1, 8, 8, 3), np.uint8),
            Preprocessing(8, 3, 0, False, (0.0,), (1.0,)),
            "gives [8, 8, 3] numbers for an image, not one a class",
        ),
    ],
)
def test_a_network_that_classifies_no_images_is_told_before_they_are_read(
    tmp_path, capfd, example, rule, told
):
    def function(_, x):
        return jnp.where(x >= 1, 1.0, -1.0)

    export.pack(function, {}, example, preprocessing=rule).save(tmp_path / "model.safetensors")
    (tmp_path / "bad.png").write_bytes(b"")
    status, output, errors = _run(capfd, tmp_path, tmp_path / "bad.png")
    assert (status, output) == (2, "")
    assert errors.startswith(f"error: {tmp_path}/model.safetensors: {told}")


def test_few_images_are_ahead_of_what_is_printed(net, folder, monkeypatch):
    monkeypatch.setattr(runtime_lib, "_SLICE", 4)
    count = itertools.count()
    files = (str(folder / "a.png") for _ in zip(range(100), count, strict=False))
    predictions = predict._predictions(net, files)
    next(predictions)
    # The batch that has run and the next one.
    assert next(count) <= 9
    predictions.close()
    assert next(count) <= 10


def test_one_image_and_several_in_every_form(net, folder):
    files = [folder / name for name in _ORDER]
    images = [Image.open(file) for file in files]
    arrays = [np.asarray(image.convert("RGB")) for image in images]
    expected = np.asarray(net.logits(arrays))
    probabilities = np.exp(expected.astype(np.float64))
    probabilities /= probabilities.sum(-1, keepdims=True)
    for several in (files, list(map(str, files)), images, arrays, tuple(arrays), np.stack(arrays)):
        found = net.predict(several)
        assert (found.dtype, found.shape) == (np.int32, (4,))
        np.testing.assert_array_equal(found, expected.argmax(-1))
        np.testing.assert_array_equal(net.pixels(several), net.pixels(arrays))
        found = net.probabilities(several)
        assert (found.dtype, found.shape) == (np.float32, (4, 5))
        np.testing.assert_allclose(found, probabilities, atol=1e-6)
    np.testing.assert_array_equal(net.pixels([files[0], images[1], arrays[2]]), net.pixels(arrays[:3]))
    for one in (files[3], str(files[3]), images[3], arrays[3]):
        found = net.predict(one)
        assert type(found) is np.int32 and net.class_names[found] == _NAMES[expected[3].argmax()]
        assert net.probabilities(one).shape == net.logits(one).shape == (5,)
        np.testing.assert_allclose(net.probabilities(one), probabilities[3], atol=1e-6)
        assert net.pixels(one).shape == (8, 8, 3)
    assert net.probabilities([]).shape == (0, 5) and net.predict([]).dtype == np.int32


def test_a_pillow_image_becomes_what_its_file_does_and_stays_as_it_was(net, tmp_path):
    image = Image.fromarray(networks.images(9, 1)[0]).quantize(16)
    image.info["transparency"] = bytes(range(16))
    image.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(net.pixels(image), net.pixels(tmp_path / "palette.png"))
    assert (image.mode, image.info["transparency"]) == ("P", bytes(range(16)))


def test_the_way_up_in_exif_is_passed_over_as_evaluation_does(tmp_path):
    image = Image.fromarray(networks.images(9, 1)[0][:5])
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as stored:
        assert stored.getexif()[0x0112] == 6
    np.testing.assert_array_equal(decoding.from_file(tmp_path / "turned.png", 3), np.asarray(image))


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ("none.png", "^none.png: No such file or directory"),
        (pathlib.Path("/"), "^/: Is a directory"),
        (["/dev/null"], "^/dev/null: an image of 0 bytes"),
        ("foo://x", "foo://x: must be"),
        ("a\0b", "character 0"),
        (Image.new("RGB", (0, 3)), "^a Pillow image of mode RGB: an image without a pixel"),
        (Image.new("1", (2**14, 2**13)), "mode 1: an image of more than 67,108,864 pixels"),
    ],
)
def test_what_cannot_be_decoded_is_named(net, image, told):
    for method in (net.predict, net.probabilities, net.logits, net.pixels):
        with pytest.raises(UserError, match=told):
            method(image)


def test_a_file_without_an_end_is_read_no_further_than_an_image_can_be(monkeypatch):
    monkeypatch.setattr(decoding, "_MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="a file of more than 1,000 bytes"):
        decoding.from_file("/dev/zero", 3)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([3e38, 0, -3e38], [1, 0, 0]),
        ([1e4, 1e4], [0.5, 0.5]),
        ([-1e4, -1e4 + np.log(3)], [0.25, 0.75]),
        ([0, np.log(2), np.log(5)], [1 / 8, 2 / 8, 5 / 8]),
        ([-np.inf, 0], [0, 1]),
    ],
)
def test_probabilities_of_logits_of_any_size(logits, expected):
    found = runtime_lib.softmax(np.array([logits], np.float32))
    assert found.dtype == np.float32
    # Of ten thousands float32 has three digits behind the point.
    np.testing.assert_allclose(found, [expected], atol=1e-3 if max(map(abs, logits)) > 1e3 else 1e-7)
