"""Compiles an exported program to WebAssembly, with clang and lld."""

import importlib.resources
import os
import pathlib
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence

from ftbnn_jax.deploy.c import build as c_build
from ftbnn_jax.deploy.c import generate
from ftbnn_jax.errors import UserError

# The first clang whose names of SIMD instructions are those of the standard.
_OLDEST = 14
_NEEDS = (
    f"--format=web needs clang {_OLDEST} or later with WebAssembly, and lld: apt-get install clang lld, "
    "dnf install clang lld, or brew install llvm lld; WASM_CC=... names the compiler"
)
# What comes from the package; headers take the place of a C library's.
_SOURCES = ("web.c", "memory.c")
_HEADERS = ("string.h", "math.h")
_FLAGS = (
    *("--target=wasm32", "-nostdlib", "-ffreestanding", "-O3"),
    # A multiplication and an addition stay two roundings, equal on all processors.
    *("-std=c99", "-Wall", "-Wextra", "-ffp-contract=off", "-fno-trapping-math"),
    # Clang 14 moves the reading of a number into all lanes of a vector behind a store to its place. What
    # takes time is written with vectors already; loops that are not stay as they are.
    *("-fno-vectorize", "-fno-slp-vectorize"),
)
_LINKED = (
    # A stack that overflows ends the program instead of running into what lies below it.
    *("-Wl,--no-entry", "-Wl,--stack-first", "-Wl,-z,stack-size=262144", "-Wl,--strip-all"),
)
# Which instructions each module may have: what every browser of 2023 and later knows, and what the first
# one with WebAssembly did.
MODULES = {
    "ftbnn.wasm": ("-mcpu=mvp", "-msimd128", "-mbulk-memory", "-msign-ext", "-mnontrapping-fptoint"),
    "ftbnn_plain.wasm": ("-mcpu=mvp",),
}


def compiler() -> list[str]:
    """Returns the command of a compiler that makes WebAssembly, `$WASM_CC` or `clang`.

    Raises:
      UserError: there is none, it is no clang or too old, or there is no lld that it finds.
    """
    text = os.environ.get("WASM_CC", "")
    try:
        command = shlex.split(text) or ["clang"]
    except ValueError as error:
        raise UserError(f"must be a command as in a shell: {error}", f"WASM_CC={text!r}") from error
    shown, found_at = shlex.join(command), shutil.which(command[0])
    if found_at is None:
        raise UserError(f"no such program; {_NEEDS}", shown)
    # It runs in a folder of its own.
    command[0] = os.path.abspath(found_at)
    version = c_build.run([*command, "--version"]).stdout
    found = re.search(r"clang version (\d+)", version)
    if not found:
        raise UserError(f"is no clang; {_NEEDS}", shown)
    if int(found[1]) < _OLDEST:
        raise UserError(f"clang {found[1]} is too old; {_NEEDS}", shown)
    targets = c_build.run([*command, "--print-targets"]).stdout
    if not re.search(r"^ *wasm32 ", targets, re.MULTILINE):
        raise UserError(f"cannot make WebAssembly; {_NEEDS}", shown)
    linker = c_build.run([*command, "--target=wasm32", "--print-prog-name=wasm-ld"]).stdout.strip()
    if not linker or shutil.which(linker) is None:
        raise UserError(f"finds no wasm-ld, which is lld's; {_NEEDS}", shown)
    return command


def modules(files: Mapping[str, bytes], command: Sequence[str]) -> dict[str, bytes]:
    """Compiles a program once for each entry of `MODULES`.

    Args:
      files: of an exported program, by name.
      command: from `compiler`.

    Returns:
      The modules, by name; the same files give the same bytes with the same compiler.

    Raises:
      UserError: the compiler failed.
    """
    page = importlib.resources.files(__package__).joinpath("page")
    own = {name: page.joinpath(name).read_bytes() for name in (*_SOURCES, *_HEADERS)}
    code = {name: x for name, x in files.items() if name.endswith((".c", ".h"))}
    with c_build.scratch() as scratch:
        for name, content in {**code, **own}.items():
            (scratch / name).write_bytes(content)
        # What has a `main` is for a machine with files and a terminal.
        sources = sorted(
            name
            for name in (*code, *_SOURCES)
            if name.endswith(".c") and name[:-2] not in generate.PROGRAMS
        )
        return {name: _module(scratch, sources, command, flags) for name, flags in MODULES.items()}


def _module(
    folder: pathlib.Path, sources: Sequence[str], command: Sequence[str], flags: Sequence[str]
) -> bytes:
    objects = []
    for name in sources:
        # A loop that copies bytes would become a call of the function that it is in.
        own = ["-fno-builtin"] if name == "memory.c" else []
        objects.append(f"{name}.o")
        _compile([*command, *_FLAGS, *flags, *own, "-I.", "-c", name, "-o", objects[-1]], folder)
    _compile([*command, "--target=wasm32", "-nostdlib", *_LINKED, *objects, "-o", "module"], folder)
    return (folder / "module").read_bytes()


def _compile(command: Sequence[str], folder: pathlib.Path) -> None:
    result = c_build.run(command, folder)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise UserError(f"failed: {first}", shlex.join(command[:1]))
