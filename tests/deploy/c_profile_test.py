"""How long each loop of a C program takes: what is counted, and that nothing is where nobody asks."""

import json
import subprocess

import c_programs
import pytest

from ftbnn_jax.deploy.c import build

c_programs.need_compiler()

_PROFILE = ("-O1", "-Werror", "-DFTBNN_PROFILE")
# A clock that goes on by one whenever it is read.
_COUNTING = """
#include <stdio.h>
#include "model.h"
static ftbnn_net memory;
static uint64_t reads;
uint64_t ftbnn_clock(void) { return reads++; }
int main(void) {
  static ftbnn_pixel pixels[FTBNN_PIXEL_BYTES];
  static ftbnn_value logits[FTBNN_CLASSES];
  ftbnn_net *net;
  ftbnn_init(&memory, sizeof memory, &net);
  for (int i = 0; i < 3; i++) ftbnn_predict(net, pixels, sizeof pixels, logits, FTBNN_CLASSES);
  for (int i = 0; i < FTBNN_LOOPS; i++) printf("%d ", (int)ftbnn_ticks[i]);
  return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A folder, and its `test_model` with a clock around every loop."""
    directory = tmp_path_factory.mktemp("profile")
    folder = c_programs.write(directory / "c", "two-valued")
    build.build(folder, directory / "test_profile", _PROFILE)
    return folder, directory / "test_profile"


def _run(program, *arguments):
    folder, path = program
    command = [str(path), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _multiply_adds(channels, groups, features, taps, positions):
    """Each group has its own channels; the last one takes what is left over."""

    def parts(n):
        return [*[n // groups] * (groups - 1), n // groups + n % groups]

    return sum(a * b for a, b in zip(parts(channels), parts(features), strict=True)) * taps * positions


def test_every_loop_tells_what_it_does(program):
    found = json.loads(_run(program, "--profile", "--json").stdout)
    loops = found["loops"]
    # 10x10 in the first stage, 5x5 with twice the channels in the second, 5 groups throughout.
    counts = [
        _multiply_adds(12, 5, 12, 9, 100),
        _multiply_adds(12, 5, 24, 9, 25),
        _multiply_adds(24, 5, 24, 9, 25),
    ]
    binary = [loop for loop in loops if loop["parts"].startswith("binary product")]
    assert [loop["binary_multiply_adds"] for loop in binary] == counts
    assert [loop["layer"] for loop in binary] == ["block1_1/conv", "block2_1/conv", "block2_2/conv"]
    assert [loop["elements"] for loop in binary] == [1200, 600, 600]
    # Signs of what each of the three reads.
    assert sum(loop["packed"] for loop in loops) == 10 * 10 * 12 + 10 * 10 * 12 + 5 * 5 * 24
    assert all(("packing" in loop["parts"].split(", ")) == (loop["packed"] > 0) for loop in loops)
    real = {loop["layer"]: loop["real_multiply_adds"] for loop in loops if loop["real_multiply_adds"]}
    assert real["stem/conv"] == 100 * 9 * 3 * 12
    assert real["head"] == 24 * 5
    assert sum(loop["ns"] for loop in loops) <= found["ns"] <= found["median_ns"]


def test_a_table_adds_up_to_the_whole(program):
    result = _run(program, "--profile")
    assert result.returncode == 0
    lines = result.stdout.split("\n\n")[1].splitlines()
    shares = [float(word[:-1]) for line in lines for word in line.split() if word.endswith("%")]
    assert shares[-1] == 100
    assert sum(shares[:-1]) == pytest.approx(100, abs=0.05 * len(shares))


def test_products_are_timed_alone(program):
    found = json.loads(_run(program, "--benchmark", "--json").stdout)
    first = found["products"][0]
    assert (first["form"], first["groups"], first["kernel"]) == ("xnor", 5, [3, 3])
    assert first["in_features"] == first["features"] == [2, 2, 2, 2, 4]
    assert [p["binary_multiply_adds"] for p in found["products"]] == [
        loop["binary_multiply_adds"] for loop in found["loops"] if loop["binary_multiply_adds"]
    ]


def test_each_loop_is_timed_once_a_prediction(program, tmp_path):
    folder, _ = program
    (tmp_path / "main.c").write_text(_COUNTING)
    files = [*build.sources(folder)[:-1], str(tmp_path / "main.c")]
    flags = [*build.STANDARD, *_PROFILE, f"-I{folder}", "-o", str(tmp_path / "program")]
    subprocess.run([*build.compiler(), *flags, *files, "-lm"], check=True)
    output = subprocess.run([tmp_path / "program"], capture_output=True, text=True, check=True).stdout
    loops = json.loads(_run(program, "--profile", "--json").stdout)["loops"]
    assert output.split() == ["3"] * len(loops)


def test_nothing_of_it_is_in_other_builds(program, tmp_path):
    folder, _ = program
    for source in build.sources(folder)[:-1]:
        command = [*build.compiler(), *build.STANDARD, "-E", "-P", source]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert not any(word in text for word in ("ftbnn_clock", "ftbnn_ticks", "ftbnn_loop", "TIMED"))
    build.build(folder, tmp_path / "test_model", ("-O0",))
    refused = _run((folder, tmp_path / "test_model"), "--profile")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --profile: this build counts no time")
    assert "loops" not in json.loads(
        _run((folder, tmp_path / "test_model"), "--benchmark", "--json").stdout
    )


@pytest.mark.parametrize("wrong", [["--json"], ["--profil"], ["golden.bin", "more.bin"]])
def test_a_wrong_command_line_is_one_line(program, wrong):
    result = _run(program, *wrong)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
