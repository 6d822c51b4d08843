"""Compiles an exported folder and runs its programs."""

import contextlib
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ftbnn_jax.deploy.c import cortex_m
from ftbnn_jax.errors import UserError

STANDARD = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-ffp-contract=off", "-fno-trapping-math")
FLAGS = ("-O3", "-march=native")

# What programs consist of, beside their own file; the others where they are there.
_COMMON = ("ftbnn_binary.c", "ftbnn_layers.c", "model.c", "weights.c")
_OPTIONAL = ("ftbnn_image.c", "ftbnn_integer.c")


def compiler() -> list[str]:
    """Returns the command of the C compiler, `$CC` or `cc`.

    Raises:
      UserError: there is no such program.
    """
    try:
        command = shlex.split(os.environ.get("CC", "")) or ["cc"]
    except ValueError as error:
        raise UserError(f"CC={os.environ['CC']!r}: must be a command as in a shell: {error}") from error
    if shutil.which(command[0]) is None:
        raise UserError(f"CC={shlex.join(command)}: no such C compiler; CC=... names another")
    return command


def sources(folder: pathlib.Path, program: str = "test_model") -> list[str]:
    """Returns the C files of `test_model` or `classify`: those of an export, whatever else is there."""
    own = own_folder(folder)
    names = [*_COMMON, *(name for name in _OPTIONAL if (own / name).is_file())]
    return [*(str(own / name) for name in names), str(folder / f"{program}.c")]


def own_folder(folder: pathlib.Path) -> pathlib.Path:
    """Returns where in an export's folder the network's own files lie."""
    return folder / cortex_m.SOURCE if (folder / cortex_m.SOURCE).is_dir() else folder


@contextlib.contextmanager
def scratch() -> Iterator[pathlib.Path]:
    """Gives a directory that is deleted at the end.

    Raises:
      UserError: there is no place for it.
    """
    try:
        directory = tempfile.TemporaryDirectory(prefix="ftbnn_")
    except OSError as error:
        raise UserError(
            f"no temporary directory can be made: {error.strerror}; TMPDIR=... names a place for it"
        ) from error
    with directory as path:
        yield pathlib.Path(path)


def build(
    folder: pathlib.Path,
    output: pathlib.Path,
    flags: Sequence[str] = FLAGS,
    program: str = "test_model",
    command: Sequence[str] = (),
) -> None:
    """Compiles one of a folder's programs.

    Args:
      folder: written by `export`.
      output: where the program goes.
      flags: beside those that the folder's Makefile always gives.
      program: "test_model" or "classify".
      command: the compiler; by default `compiler()`.

    Raises:
      UserError: there is no compiler, or it failed.
    """
    command = [*(command or compiler()), *STANDARD, *flags]
    output.unlink(missing_ok=True)
    include = f"-I{own_folder(folder)}"
    result = run([*command, include, *sources(folder, program), "-o", str(output), "-lm"])
    if result.returncode or not output.is_file():
        lines = result.stderr.strip().splitlines() or [_ending(result.returncode)]
        first = next((line for line in lines if "error" in line), lines[0])
        raise UserError(f"{shlex.join(command)}: failed in {folder}: {first}")


def preprocess(program: pathlib.Path, image: np.ndarray, scratch: pathlib.Path) -> np.ndarray:
    """Runs `classify` on an image for the pixels that enter its network.

    Args:
      program: a compiled `classify`.
      image: uint8 `[H, W, channels]`.
      scratch: a directory for files.

    Returns:
      uint8 `[image_size * image_size * channels]`.

    Raises:
      UserError: it could not.
    """
    source, output = scratch / "image.raw", scratch / "pixels"
    source.write_bytes(np.ascontiguousarray(image).tobytes())
    height, width, _ = image.shape
    size = ["--raw", str(width), str(height)]
    result = run([str(program), str(source), *size, "--pixels", str(output)])
    if result.returncode:
        message = result.stderr.strip().splitlines() or [_ending(result.returncode)]
        raise UserError(f"{program}: {message[0].removeprefix('error: ')}")
    # A PNM's head is three words and a number, of one line each or one line in all.
    return np.frombuffer(output.read_bytes().split(b"255\n", 1)[1], np.uint8)


def run(command: Sequence[str], folder: pathlib.Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a program, in a folder if one is given; its messages are in English.

    Raises:
      UserError: it cannot be run.
    """
    try:
        return subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError as error:
        raise UserError(f"{command[0]}: cannot be run: {error.strerror}") from error


def _ending(status: int) -> str:
    """Says how a program ended that said nothing itself."""
    return f"ended by signal {-status}" if status < 0 else f"exit status {status}, without a message"


def check(
    program: pathlib.Path, golden: bytes, scratch: pathlib.Path, emulator: Sequence[str] = ()
) -> dict[str, Any]:
    """Runs `test_model` on golden vectors.

    Args:
      program: a compiled `test_model`.
      golden: from `golden.pack`.
      scratch: a directory for them.
      emulator: what runs the program, if this machine does not by itself.

    Returns:
      What it printed.

    Raises:
      UserError: it could not run to its end.
    """
    report, status = _report(program, golden, scratch, emulator, (0, 1))
    return {**report, "passed": status == 0}


def benchmark(
    program: pathlib.Path, golden: bytes, scratch: pathlib.Path, emulator: Sequence[str] = ()
) -> dict[str, Any]:
    """Runs `test_model --benchmark --json`.

    Args:
      program: a compiled `test_model`; with FTBNN_PROFILE it has the time of every loop.
      golden: from `golden.pack`.
      scratch: a directory for them.
      emulator: what runs the program, if this machine does not by itself.

    Returns:
      What it printed.

    Raises:
      UserError: it could not run to its end.
    """
    return _report(program, golden, scratch, emulator, (0,), "--benchmark", "--json")[0]


def _report(program, golden, scratch, emulator, passed, *arguments) -> tuple[dict[str, Any], int]:
    """Runs `test_model`; returns the JSON that it prints, and its exit status, one of `passed`."""
    path = scratch / "golden.bin"
    try:
        path.write_bytes(golden)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    return _printed([*emulator, str(program), *arguments, str(path)], program, passed)


def _printed(command, program, passed=(0,)) -> tuple[dict[str, Any], int]:
    """Runs `test_model`, by an emulator or not; returns its JSON and exit status, one of `passed`."""
    result = run(command)
    if result.returncode not in passed:
        message = result.stderr.strip().splitlines() or [_ending(result.returncode)]
        raise UserError(f"{program}: {message[0].removeprefix('error: ')}")
    try:
        return dict(json.loads(result.stdout)), result.returncode
    except (ValueError, TypeError) as error:
        raise UserError(f"{program}: printed no report of a test: {result.stdout[:40]!r}") from error


def timed(program: pathlib.Path, golden: pathlib.Path, what: str = "--benchmark") -> dict[str, Any]:
    """Returns what `test_model --benchmark` or `--profile` says, on the first image of golden vectors.

    Raises:
      UserError: it could not run to its end.
    """
    return _printed([str(program), what, "--json", str(golden)], program)[0]
