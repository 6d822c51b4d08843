"""Flash, RAM and stack that a program takes on a microcontroller, before it is written there.

Weights and arena are known from the text of the program. With arm-none-eabi-gcc its code is compiled and
linked as a firmware would be, without the weights, for several cores, and the deepest path through
its calls gives the stack.
"""

import dataclasses
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ftbnn_jax.deploy.c import build, cortex_m, golden, profile, schedule
from ftbnn_jax.errors import UserError

COMPILER = "arm-none-eabi-gcc"
_COMPILED = (
    *("-std=c99", "-O2", "-ffreestanding", "-ffp-contract=off", "-fno-trapping-math"),
    *("-ffunction-sections", "-fdata-sections", "-fcallgraph-info=su"),
)
# The functions that whoever calls the network calls, behind the prefix.
_ENTRIES = ("predict", "init")
_BYTES = {
    "float": 4,
    "uint8_t": 1,
    "int8_t": 1,
    "uint16_t": 2,
    "int16_t": 2,
    "uint32_t": 4,
    "int32_t": 4,
}
# Cores of the map: the smallest, and those with a floating point unit.
_MEASURED = ("cortex-m0", "cortex-m4", "cortex-m7")


class Limits(NamedTuple):
    """Bytes of flash and of RAM that a program may take; None where that is not said."""

    flash: int | None = None
    ram: int | None = None


@dataclasses.dataclass(frozen=True)
class OnCore:
    """What one core's compiler makes of a program.

    Attributes:
      name: of the core.
      code: bytes of the program's code and small constants by source file; under "libraries" what the
        compiler adds, such as floating point where the core has none.
      stack: bytes that a prediction takes of it, but for the libraries' functions.
    """

    name: str
    code: dict[str, int]
    stack: int


@dataclasses.dataclass(frozen=True)
class MemoryMap:
    """What a program takes, in bytes.

    Attributes:
      weights: by layer, in the order of the program.
      arena: `ftbnn_net`.
      buffers: an image, and its results.
      cores: empty where there is no compiler for them.
    """

    weights: dict[str, int]
    arena: int
    buffers: int
    cores: tuple[OnCore, ...]

    def flash(self, core: OnCore | None) -> int:
        """Returns what lies in flash, its code too where a core is given."""
        return sum(self.weights.values()) + (sum(core.code.values()) if core else 0)

    def ram(self, core: OnCore | None) -> int:
        """Returns what lies in RAM, the stack of a prediction too where a core is given."""
        return self.arena + self.buffers + (core.stack if core else 0)

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yields the lines of a table."""
        yield "weights, in flash", f"{sum(self.weights.values()):,} bytes"
        for layer, count in self.weights.items():
            yield f"  {layer}", f"{count:,}"
        yield "arena, in RAM", f"{self.arena:,} bytes"
        yield "image and results, in RAM", f"{self.buffers:,} bytes"
        for core in self.cores:
            files = ", ".join(f"{name} {count:,}" for name, count in core.code.items())
            yield f"code on a {core.name}", f"{sum(core.code.values()):,} bytes: {files}"
            yield "  all in flash", f"{self.flash(core):,} bytes"
            yield "  all in RAM", f"{self.ram(core):,} bytes, of which stack {core.stack:,}"
        if not self.cores:
            yield "code and stack", f"not known without {COMPILER}, which is not installed"

    def as_json(self) -> dict[str, Any]:
        """Returns everything for JSON."""
        return {
            "weights_bytes": self.weights,
            "arena_bytes": self.arena,
            "buffer_bytes": self.buffers,
            "cores": {
                core.name: {
                    "code_bytes": core.code,
                    "stack_bytes": core.stack,
                    "flash_bytes": self.flash(core),
                    "ram_bytes": self.ram(core),
                }
                for core in self.cores
            },
        }

    def check(self, limits: Limits) -> None:
        """Raises a UserError where the program fits on no core."""
        cores: Sequence[OnCore | None] = self.cores or (None,)
        layer = max(self.weights, key=self.weights.__getitem__)
        weights = f"{sum(self.weights.values()):,} are weights, {self.weights[layer]:,} of {layer} alone"
        for option, limit, needs, unknown, of_which in (
            ("flash", limits.flash, self.flash, "code", weights),
            ("ram", limits.ram, self.ram, "stack", f"{self.arena:,} are the arena"),
        ):
            least = min(cores, key=needs)
            if limit is not None and needs(least) > limit:
                what = f"on a {least.name}" if least else f"without its {unknown}"
                raise UserError(
                    f"the program takes {needs(least):,} bytes {what}, of which {of_which}",
                    f"--{option}={limit}",
                )


def measure(files: Mapping[str, str], network: schedule.Network, prefix: str) -> MemoryMap:
    """Returns what a program of `--target=cortex-m` takes.

    Args:
      files: of the program, by path.
      network: that it is.
      prefix: of its names.

    Raises:
      UserError: the compiler fails.
    """
    start = f"{cortex_m.SOURCE}/"
    own = {p.removeprefix(start): text for p, text in files.items() if p.startswith(start)}
    buffers = golden.pixel_bytes(network) + 4 * network.results
    cores: list[OnCore] = []
    if shutil.which(COMPILER):
        with build.scratch() as scratch:
            for name, text in own.items():
                (scratch / name).write_text(text)
            cores = [
                _on_core(core, scratch, own, prefix) for core in cortex_m.CORES if core.name in _MEASURED
            ]
    return MemoryMap(_weights(own, network), network.arena_bytes, buffers, tuple(cores))


def _weights(own: Mapping[str, str], network: schedule.Network) -> dict[str, int]:
    """Returns bytes of weights by layer: an array belongs to the first loop that reads it."""
    declared = re.findall(r"^extern const (\w+) (\w+)\[(\d+)\];", own["weights.h"], re.MULTILINE)
    left = {name: _BYTES[kind] * int(count) for kind, name, count in declared}
    text = own["model.c"]
    begun = text.index("_convs[")
    end = text.index("\n};\n", begun)
    products = re.findall(r"\.weights\s*=\s*(\w+)", text[begun:end])
    found: dict[str, int] = {}
    loops = re.finditer(r"^static void run_\d+\(.*?^}$", text, re.MULTILINE | re.DOTALL)
    for description, loop in zip(profile.describe(network), loops, strict=True):
        part, end = text[end : loop.end()], loop.end()
        names = {products[int(i)] for i in re.findall(r"_convolve\(&\w+_convs\[(\d+)\]", part)}
        names |= set(re.findall(r"\w+", part)) & left.keys()
        count = sum(left.pop(name, 0) for name in names)
        if count:
            found[description.layer] = found.get(description.layer, 0) + count
    if left:
        found["others"] = sum(left.values())
    return found


def _on_core(core: cortex_m.Core, scratch: pathlib.Path, own: Iterable[str], prefix: str) -> OnCore:
    compiler = [COMPILER, *core.flags.split()]
    names = [name.removesuffix(".c") for name in own if name.endswith(".c") and name != "weights.c"]
    for name in names:
        _run([*compiler, *_COMPILED, "-c", f"{name}.c", "-o", f"{name}.o"], scratch)
    entries = [f"-Wl,--undefined={prefix}_{entry}" for entry in _ENTRIES]
    # The weights are known, and take long to compile.
    linked = [
        "-nostartfiles",
        "-Wl,--gc-sections",
        "-Wl,--entry=0",
        "-Wl,--unresolved-symbols=ignore-all",
    ]
    objects = [f"{name}.o" for name in names]
    _run([*compiler, *linked, *entries, "-Wl,-Map=map", *objects, "-o", "program"], scratch)
    graphs = [(scratch / f"{name}.ci").read_text() for name in names]
    return OnCore(
        core.name, code_of((scratch / "map").read_text()), stack_of(graphs, f"{prefix}_predict")
    )


def _run(command: Sequence[str], folder: pathlib.Path) -> None:
    result = build.run(command, folder)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["it says nothing"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise UserError(f"{command[0]}: failed: {first}")


def code_of(text: str) -> dict[str, int]:
    """Returns bytes of code and constants by source file, from a linker's map."""
    found: dict[str, int] = {}
    text = text[text.index("Linker script and memory map") :]
    pattern = r"^ \.(?:text|rodata)\S*\s+0x[0-9a-f]+\s+0x([0-9a-f]+) (\S+)$"
    for count, path in re.findall(pattern, text, re.MULTILINE):
        is_own = path.endswith(".o") and "/" not in path
        name = f"{path.removesuffix('.o')}.c" if is_own else "libraries"
        found[name] = found.get(name, 0) + int(count, 16)
    return {name: count for name, count in found.items() if count}


def stack_of(graphs: Iterable[str], entry: str) -> int:
    """Returns the bytes of stack of the deepest path of calls, from GCC's call graphs.

    Raises:
      UserError: a function may call itself, or takes more of the stack than the compiler can tell.
    """
    own: dict[str, int] = {}
    calls: dict[str, set[str]] = {}
    for text in graphs:
        for title, label in re.findall(r'node: { title: "([^"]*)" label: "([^"]*)"', text):
            used = re.search(r"\\n(\d+) bytes \((.*?)\)", label)
            if used and used[2] not in ("static", "dynamic,bounded"):
                raise UserError(f"{title}: takes more of the stack than the compiler can tell")
            if used:
                own[title] = int(used[1])
        for source, target in re.findall(r'edge: { sourcename: "([^"]*)" targetname: "([^"]*)"', text):
            calls.setdefault(source, set()).add(target)

    def depth(function: str, above: tuple[str, ...]) -> int:
        if function in above:
            raise UserError(f"{function}: may call itself, so that its stack has no bound")
        below = (depth(other, (*above, function)) for other in calls.get(function, ()))
        return own.get(function, 0) + max(below, default=0)

    return depth(entry, ())
