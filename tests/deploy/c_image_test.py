"""The command-line program and what it does with images that are none."""

import re
import subprocess

import c_programs
import networks
import numpy as np
import pytest

from ftbnn_jax.deploy.c import build

c_programs.need_compiler()

_BAD, _CHANNELS = -10, -11


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return c_programs.write(tmp_path_factory.mktemp("exported") / "c", "baseline")


@pytest.fixture(scope="module")
def classify(folder):
    """Runs `classify`; returns status, output, errors."""
    program = folder.parent / "classify"
    build.build(folder, program, c_programs.SANITIZED, "classify")

    def run(*arguments):
        found = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
        return found.returncode, found.stdout, found.stderr

    return run


def _ppm(pixels):
    height, width, channels = pixels.shape
    return f"P{6 if channels == 3 else 5} {width} {height} 255\n".encode() + pixels.tobytes()


def test_the_five_most_likely_classes_are_the_runtimes(classify, tmp_path):
    net = c_programs.runtime("baseline")
    image = networks.images(33, 1)
    logits = np.asarray(net.logits(image))[0]
    (tmp_path / "a.ppm").write_bytes(_ppm(image[0]))
    (tmp_path / "a.raw").write_bytes(image.tobytes())
    for arguments in (["a.ppm"], ["a.raw", "--raw", "33", "33", "--repeat", "2"]):
        status, output, errors = classify(tmp_path / arguments[0], *arguments[1:])
        assert (status, errors) == (0, "")
        found = re.findall(
            r"^(\d)\. class (\d) \(class (\d), logit (\S+)\)$", output, flags=re.MULTILINE
        )
        order = np.argsort(-logits).tolist()
        assert [(int(a), int(b), int(c)) for a, b, c, _ in found] == [
            (rank + 1, c, c) for rank, c in enumerate(order)
        ]
        shown = [float(logit) for *_, logit in found]
        np.testing.assert_allclose(shown, logits[order], atol=1e-3 * np.abs(logits).max())
        assert re.search(r"^\d+\.\d{3} ms, ", output, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        (b"", [], "no whole binary PPM"),
        (b"P6 2 2 255\n" + bytes(11), [], "no whole binary PPM"),
        (b"P3 1 1 255\n0 0 0", [], "no whole binary PPM"),
        (b"P5 2 2 255\n" + bytes(4), [], "colour image"),
        (bytes(12), ["--raw", "2", "3"], "not of that size"),
        (bytes(12), ["--raw", "2", "0"], "width and height"),
        (bytes(12), ["--raw", "2"], "unexpected"),
        (bytes(12), ["--repeat", "x"], "--repeat"),
        (bytes(12), ["other"], "unexpected"),
        (None, [], "cannot be read"),
    ],
)
def test_a_mistake_is_one_line(classify, tmp_path, content, arguments, words):
    path = tmp_path / "image"
    if content is not None:
        path.write_bytes(content)
    status, output, errors = classify(path, *arguments)
    assert (status, output) == (2, "")
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert words in errors


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


def test_a_thousand_images_are_taken_or_refused_without_a_wrong_access(folder, repository, tmp_path):
    cases = _cases(np.random.default_rng(0))
    (tmp_path / "cases").write_bytes(b"".join(len(c).to_bytes(4, "little") + c for c in cases))
    driver = tmp_path / "driver"
    # The driver takes the place of the folder's own program.
    names = ("model.c", "weights.c", "ftbnn_binary.c", "ftbnn_layers.c", "ftbnn_image.c")
    sources = [repository / "tests" / "deploy" / "image_cases.c", *(folder / name for name in names)]
    command = [*build.compiler(), *build.STANDARD, *c_programs.SANITIZED, f"-I{folder}"]
    subprocess.run([*command, *sources, "-lm", "-o", driver], check=True)
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
    ]
