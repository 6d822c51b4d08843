"""`--target=cortex-m`: a folder that is an Arduino library, a Zephyr module and a bare-metal test."""

import importlib.resources
from collections.abc import Iterator, Mapping
from importlib.resources.abc import Traversable
from typing import NamedTuple

import ftbnn_jax

SOURCE = "src"
# One image with its result, for examples.
GOLDEN = f"{SOURCE}/@PREFIX@_golden.h"
# What stays beside the sources: programs of a computer with files, and what builds them.
_OUTSIDE = ("Makefile", "CMakeLists.txt", "classify.c", "test_model.c", "test_benchmark.h")
_BUILT = ("bare_metal/build/*/*.o", "bare_metal/build/*/*.elf")
_URL = "https://github.com/ftbnn-jax/ftbnn_jax"


class Core(NamedTuple):
    """A processor that programs are built for and run on.

    Attributes:
      name: as compilers have it.
      flags: of arm-none-eabi-gcc.
      board: that QEMU emulates; it has this core, or one that runs its programs.
    """

    name: str
    flags: str
    board: str


CORES = (
    # QEMU has no board of a Cortex-M0 with this much memory; a Cortex-M3 traps unaligned accesses too.
    Core("cortex-m0", "-mcpu=cortex-m0 -mthumb -DTRAP_UNALIGNED", "mps2-an385"),
    Core("cortex-m3", "-mcpu=cortex-m3 -mthumb", "mps2-an385"),
    Core(
        "cortex-m4",
        "-mcpu=cortex-m4 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16",
        "mps2-an386",
    ),
    Core("cortex-m7", "-mcpu=cortex-m7 -mthumb -mfloat-abi=hard -mfpu=fpv5-d16", "mps2-an500"),
)


def templates() -> dict[str, str]:
    """Returns the files that this target adds, by their paths, with fields that `arrange` fills."""
    root = importlib.resources.files(__package__).joinpath("kernels", "cortex_m")
    return dict(_texts(root, ""))


def _texts(folder: Traversable, path: str) -> Iterator[tuple[str, str]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _texts(entry, f"{path}{entry.name}/")
        else:
            yield f"{path}{entry.name}", entry.read_text()


def patterns() -> list[str]:
    """Returns patterns of the paths of all files that this target adds, and that their builds leave."""
    names = [name.replace("@PREFIX@", "*") for name in (*templates(), GOLDEN)]
    return [*names, *_BUILT]


def arrange(files: Mapping[str, str], sources: list[str], prefix: str, what: str) -> dict[str, str]:
    """Returns a program's files as this target's folder has them.

    Args:
      files: with `templates`, by name.
      sources: of the network alone, without their ending.
      prefix: of all names.
      what: the program is, without the full stop.
    """
    fields = {
        "PREFIX": prefix,
        "VERSION": ftbnn_jax.__version__,
        "URL": _URL,
        "WHAT": f"{what}.",
        "CORES": ", ".join(core.name for core in CORES),
        "CORE_FLAGS": "\n".join(
            f"FLAGS_{core.name} = {core.flags}\nBOARD_{core.name} = {core.board}" for core in CORES
        ),
        "OBJECTS": " ".join(f"{name}.o" for name in sources),
        "ZEPHYR_SOURCES": "\n".join(f"    ../{SOURCE}/{name}.c" for name in sources),
    }
    found = {}
    for path, text in files.items():
        if "/" in path:
            path, text = _filled(path, fields), _filled(text, fields)
        elif path == "library.properties":
            text = _filled(text, fields)
        elif path not in _OUTSIDE:
            path = f"{SOURCE}/{path}"
        found[path] = text
    return found


def _filled(text: str, fields: Mapping[str, str]) -> str:
    for name, value in fields.items():
        text = text.replace(f"@{name}@", value)
    return text
