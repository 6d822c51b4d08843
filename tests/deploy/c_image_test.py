"""The command-line program and what it does with images that are none."""

import dataclasses
import io
import re
import subprocess

import c_programs
import networks
import numpy as np
import pytest

from ftbnn_jax.deploy.c import build, generate
from ftbnn_jax.ops.preprocessing import Preprocessing

c_programs.need_compiler()

_BAD, _CHANNELS = -10, -11


# Too long for a literal; what could end a comment, string, line or print; nothing; two bytes; no UTF-8.
_NAMES = ("x" * 10_000, '*/ "\\ %s ??/ \n\x1b', "", "ü", "\udcff")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    artifact = dataclasses.replace(c_programs.runtime("baseline").artifact, class_names=_NAMES)
    model_c = generate.files(artifact)["model.c"]
    return c_programs.write(tmp_path_factory.mktemp("exported") / "c", "baseline", model_c=model_c)


@pytest.fixture(scope="module")
def classify(folder):
    """Runs `classify`; returns status, output, errors."""
    program = folder.parent / "classify"
    build.build(folder, program, c_programs.SANITIZED, "classify")

    def run(*arguments):
        found = subprocess.run(
            [program, *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
        )
        return found.returncode, found.stdout, found.stderr

    return run


@pytest.fixture(scope="module")
def driver(folder, repository):
    """`image_cases.c` in the place of the folder's own programs."""
    sources = [repository / "tests" / "deploy" / "image_cases.c", *build.sources(folder)]
    sources = [source for source in sources if not str(source).endswith("test_model.c")]
    program = folder.parent / "image_cases"
    command = [*build.compiler(), *build.STANDARD, *c_programs.SANITIZED, f"-I{folder}"]
    subprocess.run([*command, *sources, "-o", program], check=True)
    return program


def _ppm(pixels):
    height, width, channels = pixels.shape
    return f"P{6 if channels == 3 else 5} {width} {height} 255\n".encode() + pixels.tobytes()


_CLASS = re.compile(r"^(\d)\. (.*) \(class (\d), probability (\S+)\)$", flags=re.MULTILINE)


def test_the_most_likely_classes_are_the_runtimes(classify, tmp_path):
    net = c_programs.runtime("baseline")
    image = networks.images(33, 1)
    logits = np.asarray(net.logits(image))[0]
    (tmp_path / "a.ppm").write_bytes(_ppm(image[0]))
    (tmp_path / "a.raw").write_bytes(image.tobytes())
    for arguments in (["a.ppm"], ["--repeat", "2", "--raw", "33", "33", "a.raw"]):
        status, output, errors = classify(*arguments[:-1], tmp_path / arguments[-1])
        assert (status, errors) == (0, "")
        order = np.argsort(-logits).tolist()
        shown = [re.sub(r"[\n\x1b]", "?", name) for name in _NAMES]
        assert [(int(rank), name, int(c)) for rank, name, c, _ in _CLASS.findall(output)] == [
            (rank + 1, shown[c], c) for rank, c in enumerate(order)
        ]
        powers = np.exp(logits.astype(np.float64) - logits.max())
        expected = (powers / powers.sum())[order]
        found = [float(probability) for *_, probability in _CLASS.findall(output)]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert re.search(r"^\d+\.\d{3} ms, ", output, flags=re.MULTILINE)


def test_several_images_come_one_after_the_other_and_bad_ones_are_passed_over(classify, tmp_path):
    images = networks.images(33, 2)
    # The first name moves the cursor and breaks the line.
    names = ["a\x1b[2J\n.ppm", "-b.ppm", "bad", "none"]
    for name, image in zip(names, images, strict=False):
        (tmp_path / name).write_bytes(_ppm(image))
    (tmp_path / "bad").write_bytes(b"P6")
    paths = [tmp_path / name for name in (names[0], "bad", "none", names[1])]
    status, output, errors = classify("--top", "2", "--", *paths)
    assert status == 1
    assert errors.splitlines() == [
        f"error: {tmp_path}/bad: no whole binary PPM or PGM of 8 bits",
        f"error: {tmp_path}/none: cannot be read",
    ]
    expected = np.argsort(-np.asarray(c_programs.runtime("baseline").logits(images)))[:, :2]
    assert [int(c) for _, _, c, _ in _CLASS.findall(output)] == expected.reshape(-1).tolist()
    lines = output.splitlines()
    assert (lines[0], lines[4]) == (f"{tmp_path}/a?[2J?.ppm:", f"{tmp_path}/-b.ppm:")
    assert len(lines) == 8


def test_help_names_every_option(classify):
    status, output, errors = classify("bad", "--help")
    assert (status, errors) == (0, "")
    assert set(re.findall(r"^  (--\w*)", output, re.MULTILINE)) == {
        *("--top", "--raw", "--repeat", "--pixels", "--help", "--")
    }


def test_the_pixels_that_enter_the_network_are_written(classify, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    (tmp_path / "a.ppm").write_bytes(_ppm(image))
    status, *_ = classify(tmp_path / "a.ppm", "--pixels", tmp_path / "b.ppm")
    artifact = c_programs.runtime("baseline").artifact
    assert status == 0
    assert (tmp_path / "b.ppm").read_bytes() == _ppm(artifact.preprocessing.pixels(image))


def _preprocessing_cases(rng):
    """Width, height, channels, size, crop, antialiasing: images that grow, shrink, both, or neither."""
    edges = [1, 2, 3, 7, 8, 9, 16, 33, 64]
    for n in range(300):
        width, height, size = (int(side) for side in rng.choice(edges, 3))
        if n % 3 == 0:
            width, height, size = (int(side) for side in rng.integers(1, 70, 3))
        crop = int(rng.choice([0, 1, 128, 224, 255, 256]))
        yield width, height, 3 if n % 2 else 1, size, crop, n // 2 % 2
    # The sides and sums of weights that are largest; an image as it is.
    for antialias in (0, 1):
        for width, height in ((16384, 1), (1, 16384), (16384, 2), (700, 500), (30, 50)):
            yield width, height, 1, 1, 0, antialias
            yield width, height, 3, 32, 224, antialias
            yield width, height, 3, 5, 0, antialias
        yield 33, 33, 3, 33, 0, antialias


def test_pixels_are_the_same_integers_as_in_python(driver, tmp_path):
    rng = np.random.default_rng(0)
    cases, expected = [], []
    for width, height, channels, size, crop, antialias in _preprocessing_cases(rng):
        image = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
        head = np.array([width, height, channels, size, crop, antialias], "<u4")
        cases.append(head.tobytes() + image.tobytes())
        rule = Preprocessing(size, channels, crop, bool(antialias), (0.0,), (1.0,))
        expected.append(rule.pixels(image).tobytes())
    (tmp_path / "cases").write_bytes(b"".join(cases))
    subprocess.run([driver, tmp_path / "cases", tmp_path / "pixels"], check=True)
    found = io.BytesIO((tmp_path / "pixels").read_bytes())
    assert all(found.read(len(pixels)) == pixels for pixels in expected)
    assert not found.read()


@pytest.mark.parametrize(
    ("content", "arguments", "expected", "words"),
    [
        (b"", [], 1, "no whole binary PPM"),
        (b"P6 2 2 255\n" + bytes(11), [], 1, "no whole binary PPM"),
        (b"P3 1 1 255\n0 0 0", [], 1, "no whole binary PPM"),
        (b"P5 2 2 255\n" + bytes(4), [], 1, "colour image"),
        (bytes(12), ["--raw", "2", "3"], 1, "not of that size"),
        (None, [], 1, "cannot be read"),
        (bytes(12), ["--raw", "2", "0"], 2, "width and height"),
        (bytes(12), ["--raw", "2"], 2, "no option, or without its value"),
        (bytes(12), ["--no\nsuch"], 2, "--no?such: no option"),
        (bytes(12), ["--repeat", "x"], 2, "--repeat"),
        (bytes(12), ["--top", "0"], 2, "--top"),
        (bytes(12), ["other", "--pixels", "out"], 2, "a single FILE"),
        (bytes(3), ["--raw", "1", "1", "--pixels", "/"], 2, "cannot be written"),
    ],
)
def test_a_mistake_is_one_line(classify, tmp_path, content, arguments, expected, words):
    path = tmp_path / "image"
    if content is not None:
        path.write_bytes(content)
    status, output, errors = classify(path, *arguments)
    assert (status, output) == (expected, "")
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert words in errors


def test_without_a_file_there_is_nothing_to_do(classify):
    assert classify() == (2, "", "error: classify: a FILE expected; --help says more\n")


def _status(content: bytes) -> int:
    """What a program for colour images should answer, by a regular expression."""
    space = rb"(?:[ \t\n\v\f\r]|#[^\n]*\n)+"
    head = re.match(rb"P([56])" + 3 * (space + rb"(\d+)") + rb"[ \t\n\v\f\r]", content)
    if not head:
        return _BAD
    width, height, most = (int(number) for number in head.groups()[1:])
    channels = 3 if head[1] == b"6" else 1
    if not (1 <= width <= 16384 and 1 <= height <= 16384 and most == 255):
        return _BAD
    if len(content) - head.end() != width * height * channels:
        return _BAD
    return 0 if channels == 3 else _CHANNELS


def _cases(rng) -> list[bytes]:
    """Images whole, cut, grown, and with a few bytes changed, most of them in the head."""
    cases = [b"", b"P", b"P6", b"P6 ", b"P6#", b"P6 1 1 255", b"P6 1 1 255\n", b"P6 1 1 255\nabc"]
    cases += [b"P6 99999999999999999999 1 255\n", b"P6 16384 16384 255\n", b"P6 -1 1 255\nabc"]
    cases += [b"P6 0 1 255\n", b"P6 1 1 256\nabc", b"P6#c\n1 1#\n255\nabc", b"P6 1 1 0255\nabc"]
    while len(cases) < 1000:
        shape = (*rng.integers(1, 6, 2), 3 if rng.random() < 0.8 else 1)
        content = bytearray(_ppm(rng.integers(0, 256, shape, dtype=np.uint8)))
        kind = rng.integers(4)
        if kind == 1:
            del content[rng.integers(len(content)) :]
        elif kind == 2:
            content += bytes(int(rng.integers(1, 5)))
        elif kind == 3:
            for at in rng.integers(0, min(14, len(content)), rng.integers(1, 3)):
                content[at] = rng.choice(np.frombuffer(b"0123456789 #\nP\x00\xff", np.uint8))
        cases.append(bytes(content))
    return cases


def test_a_thousand_images_are_taken_or_refused_without_a_wrong_access(driver, tmp_path):
    cases = _cases(np.random.default_rng(0))
    (tmp_path / "cases").write_bytes(b"".join(len(c).to_bytes(4, "little") + c for c in cases))
    found = subprocess.run([driver, tmp_path / "cases"], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    *statuses, api = found.stdout.splitlines()
    expected = [_status(case) for case in cases]
    assert [int(status) for status in statuses] == expected
    assert min(expected.count(status) for status in (0, _BAD, _CHANNELS)) > 30
    null, size, alignment, uninitialized = -1, -2, -3, -4
    assert [int(word) for word in api.split()] == [
        *(uninitialized, uninitialized),
        *(null, 1, null, size, alignment, 0),
        *(null, null, null, size, size, 0),
        *(null, _BAD, _BAD, _BAD),
        *(_BAD, _BAD, _BAD, _BAD, _CHANNELS),
    ]
