"""Compiles an exported folder and runs its programs."""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from ftbnn_jax.errors import UserError

STANDARD = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-ffp-contract=off", "-fno-trapping-math")
FLAGS = ("-O3", "-march=native")

_PROGRAMS = ("test_model", "classify")


def compiler() -> list[str]:
    """Returns the command of the C compiler, `$CC` or `cc`.

    Raises:
      UserError: there is no such program.
    """
    try:
        command = shlex.split(os.environ.get("CC", "")) or ["cc"]
    except ValueError as error:
        raise UserError(f"CC={os.environ['CC']}: must be a command as in a shell: {error}") from error
    if shutil.which(command[0]) is None:
        raise UserError(f"CC={shlex.join(command)}: no such C compiler; CC=... names another")
    return command


def sources(folder: pathlib.Path, program: str = "test_model") -> list[str]:
    """Returns the C files of `test_model` or `classify`."""
    other = {f"{name}.c" for name in _PROGRAMS if name != program}
    return sorted(str(path) for path in folder.glob("*.c") if path.name not in other)


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
    result = subprocess.run(
        [*command, *sources(folder, program), "-o", str(output)],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["no message"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise UserError(f"{shlex.join(command)}: failed in {folder}: {first}")


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
    path = scratch / "golden.bin"
    path.write_bytes(golden)
    result = subprocess.run(
        [*emulator, str(program), str(path)], capture_output=True, text=True, check=False
    )
    if result.returncode not in (0, 1):
        message = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise UserError(f"{program}: {message[0]}")
    return {**json.loads(result.stdout), "passed": result.returncode == 0}
