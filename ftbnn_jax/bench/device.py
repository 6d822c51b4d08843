"""How long the parts of the C program take on some device: writes the table of `budget --device`.

    python -m ftbnn_jax.bench.device --output=FILE.json [--flags=...] [--emulator=...]

Small networks of many shapes are exported, built with $CC and run on this machine; the time of each loop
is that of `test_model --benchmark`. For another device, --export=DIR writes their folders, each with the
command that is to be run there, and --times=DIR reads what those commands printed.
"""

import dataclasses
import datetime
import json
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import ftbnn_jax
from ftbnn_jax import command, config, report
from ftbnn_jax.bench import kernel_rates
from ftbnn_jax.deploy import export
from ftbnn_jax.deploy.c import build, device, memory_map
from ftbnn_jax.deploy.c import export as c_export
from ftbnn_jax.deploy.c import options as options_lib
from ftbnn_jax.deploy.c.schedule import Network
from ftbnn_jax.errors import UserError, summary
from ftbnn_jax.host import machine, paths
from ftbnn_jax.nn import architectures
from ftbnn_jax.nn.spec import ResNetSpec

# What a table is fitted to: name, network, image size, channels of the images. Their weights take 3 to
# 420 kilobytes.
NETWORKS: dict[str, tuple[ResNetSpec, int, int]] = {
    "narrow": (architectures.small((1, 2), 33, stem_activation="relu", activation="prelu"), 12, 3),
    "two_valued": (architectures.small((1, 1), 64, sign="two_valued", stem_stride=2), 24, 1),
    "grouped": (
        ResNetSpec((1, 1), 60, 5, stem_features=32, bridge=True, downsample="duplicate"),
        48,
        3,
    ),
    "wide": (ResNetSpec((1, 1, 1), 96, stem_features=96), 64, 3),
    "deep": (ResNetSpec((1, 2, 1, 2), 64), 64, 3),
    "large": (ResNetSpec((2, 1), 48, 2, stem_features=48), 128, 3),
}
_CLASSES = 100
_TIMES = "times.json"
# What is run on the device.
_COMMANDS = {
    "host": "make test_profile && ./test_profile --benchmark --json",
    "cortex-m": "make -s -C bare_metal CORE=cortex-m4 FORM=json",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A network in one arithmetic.

    Attributes:
      name: of the network, one of `NETWORKS`.
      program: it in C.
    """

    name: str
    program: c_export.Program

    @property
    def arithmetic(self) -> str:
        """As a table calls it."""
        return device.arithmetic_of(self.program.options)

    @property
    def network(self) -> Network:
        """Its loops."""
        return self.program.reference.network

    @property
    def folder(self) -> str:
        """What its folder is called."""
        return f"{self.name}_{'_'.join(self.arithmetic.replace(',', '').split())}"


def cases(names: Sequence[str] = tuple(NETWORKS), target: str = "host") -> Iterator[Case]:
    """Yields networks in every arithmetic that the C program has.

    Args:
      names: some of `NETWORKS`.
      target: of the programs.
    """
    for name in names:
        spec, size, channels = NETWORKS[name]
        pixels = {"pixel_mean": (120.0,) * channels, "pixel_std": (60.0,) * channels}
        experiment = config.TrainConfig(spec, image_size=size, num_classes=_CLASSES, **pixels)
        artifact = export.drawn(experiment, channels)
        shape = (1, size, size, channels)
        image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        for fixed in (False, True):
            for real_bits in options_lib.REAL_BITS:
                options = options_lib.Options(real_bits=real_bits, target=target)
                batches = [{"image": image, "weight": np.ones(1)}]
                yield Case(name, c_export.program(artifact, batches, fixed, options))


def measure(
    case: Case, flags: Sequence[str] = build.FLAGS, emulator: Sequence[str] = ()
) -> dict[str, Any]:
    """Builds a network on this machine and times it.

    Args:
      case: the network.
      flags: for the compiler.
      emulator: what runs the program, if this machine does not by itself.

    Returns:
      What `test_model --benchmark --json` prints.

    Raises:
      UserError: there is no compiler, it failed, or the program did.
    """
    with build.scratch() as scratch:
        folder, program = scratch / "c", scratch / "test_model"
        files = case.program.files
        c_export.write(folder, files)
        build.build(folder, program, [*flags, "-DFTBNN_PROFILE"])
        return build.benchmark(program, files["golden.bin"], scratch, emulator)


def _parser() -> command.ArgumentParser:
    parser = command.ArgumentParser(
        prog="python -m ftbnn_jax.bench.device",
        description="Measure how long the parts of the C program take, for `budget --device`.",
    )
    parser.add_argument(
        "--output", type=paths.local_argument, metavar="FILE", help="table to write, NAME.json"
    )
    parser.add_argument(
        "--flags",
        default=shlex.join(build.FLAGS),
        metavar="FLAGS",
        help=f"for $CC, beside those that Makefiles give (default: {shlex.join(build.FLAGS)})",
    )
    parser.add_argument(
        "--emulator", default="", metavar="COMMAND", help="what runs the programs, if not this machine"
    )
    parser.add_argument("--processor", metavar="TEXT", help="what the device is (default: this machine)")
    parser.add_argument(
        "--compiler", metavar="TEXT", help="its name and version (default: what $CC says)"
    )
    parser.add_argument(
        "--how",
        default="",
        choices=(device.MEASURED, device.COUNTED, device.EMULATED),
        help="how the times were found (default: measured; with --emulator, emulated)",
    )
    parser.add_argument(
        "--clock_mhz",
        type=command.whole(1, 10**5),
        default=0,
        metavar="N",
        help="with --how=instructions: the clock at which one of them is taken to need one cycle",
    )
    parser.add_argument(
        "--networks",
        default=",".join(NETWORKS),
        metavar="NAMES",
        help=f"some of {','.join(NETWORKS)}, where not all fit (default: all)",
    )
    parser.add_argument(
        "--target",
        default="host",
        choices=options_lib.TARGETS,
        help="of the programs, as export has it (default: host)",
    )
    parser.add_argument(
        "--export", type=paths.local_argument, metavar="DIR", help="write the networks' folders there"
    )
    parser.add_argument(
        "--times",
        type=paths.local_argument,
        metavar="DIR",
        help=f"read DIR/NETWORK/{_TIMES}, printed on the device, instead of running them here",
    )
    return parser


def _main(arguments: Sequence[str]) -> int:
    flags = _parser().parse_args(arguments)
    if bool(flags.export) == bool(flags.output):
        raise UserError("give --output=FILE, or --export=DIR for another device, and one of these alone")
    how = flags.how or (device.EMULATED if flags.emulator else device.MEASURED)
    if (how == device.COUNTED) != bool(flags.clock_mhz):
        raise UserError("--clock_mhz goes with --how=instructions, and that with it")
    if flags.output and not flags.output.endswith(".json"):
        raise UserError(
            "must end in .json; what comes before is the device's name", f"--output={flags.output}"
        )
    names = flags.networks.split(",")
    for name in names:
        if name not in NETWORKS:
            raise UserError(f"must be some of {','.join(NETWORKS)}", f"--networks={flags.networks}")
    machine.start_jax("cpu")
    if flags.export:
        return _export(pathlib.Path(flags.export), names, flags.target)
    unit = "instructions" if how == device.COUNTED else "ns"
    path = pathlib.Path(flags.output)
    times, code = [], []
    for case in cases(names, flags.target):
        if flags.times:
            printed = _read(pathlib.Path(flags.times) / case.folder / _TIMES)
        else:
            printed = measure(case, shlex.split(flags.flags), shlex.split(flags.emulator))
        times.append(kernel_rates.read(case.name, case.arithmetic, case.network, printed))
        code += _code_bytes(case, path.stem)
        kernels = str(printed.get("kernels", ""))
        print(f"{case.name}, {case.arithmetic}: {sum(times[-1].loops):,.0f} {unit}", file=sys.stderr)
    lanes, rates, checked = kernel_rates.fit(times)
    table = device.Device(
        path.stem,
        flags.processor or _processor(),
        flags.compiler or _compiler(),
        flags.flags,
        kernels,
        datetime.date.today().isoformat(),
        ftbnn_jax.__version__,
        how,
        float(flags.clock_mhz),
        lanes,
        rates,
        checked,
        kernel_rates.line(code),
    )
    try:
        path.write_text(table.to_json(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", f"--output={path}") from error
    report.print_table(
        f"Wrote {path}",
        [
            (
                f"{c.network}, {c.arithmetic}",
                f"{c.measured:,.0f} {unit}, estimated {c.estimated:,.0f}, "
                f"{c.estimated / c.measured:.2f} times that",
            )
            for c in checked
        ],
    )
    return 0


def _code_bytes(case: Case, core: str) -> list[tuple[int, int]]:
    """Returns how many loops a program for microcontrollers has, and bytes of code on a core."""
    made = case.program
    if made.options.target != "cortex-m":
        return []
    texts = {n: data.decode() for n, data in made.files.items() if n.endswith((".c", ".h"))}
    found = memory_map.measure(texts, case.network, made.options.prefix)
    sizes = [sum(one.code.values()) for one in found.cores if one.name == core]
    return [(len(case.network.loops), size) for size in sizes]


def _export(folder: pathlib.Path, names: Sequence[str], target: str) -> int:
    for case in cases(names, target):
        c_export.write(folder / case.folder, case.program.files)
    print(
        f"on the device, in each folder of {folder}: {_COMMANDS[target]} > {_TIMES}; then "
        f"--times={folder} --output=NAME.json here"
    )
    return 0


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot be read: {summary(error)}", str(path)) from error


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _compiler() -> str:
    try:
        done = subprocess.run(
            [*build.compiler(), "--version"], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise UserError(f"cannot be run: {error.strerror}", shlex.join(build.compiler())) from error
    return next(iter(done.stdout.splitlines()), "").strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what the command line says; returns the exit status, with a user's mistake in one line."""
    return command.run(_main, arguments)


if __name__ == "__main__":
    sys.exit(main())
