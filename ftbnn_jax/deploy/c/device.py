"""Tables of how long the C program's parts take on some device, one JSON file each in `devices/`.

`python -m ftbnn_jax.bench.device` writes such a file; docs/how_to/budgets.md says how to contribute one.
"""

import dataclasses
import importlib.resources
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ftbnn_jax.deploy.c import costs
from ftbnn_jax.deploy.c.options import Options
from ftbnn_jax.errors import UserError, summary
from ftbnn_jax.nearest import nearest

# How the times of a table were found.
MEASURED, COUNTED, EMULATED = "measured", "instructions", "emulated"
_HOW = {
    MEASURED: "measured",
    COUNTED: "counted in instructions under an emulator, not measured",
    EMULATED: "measured under an emulator: of use among themselves alone",
}
_ENDING = ".json"


@dataclasses.dataclass(frozen=True)
class Checked:
    """How far a table is from a network that it was made of.

    Attributes:
      network: its name.
      arithmetic: as in `Device.rates`.
      measured: of one image, in the table's unit.
      estimated: by the table.
    """

    network: str
    arithmetic: str
    measured: float
    estimated: float


@dataclasses.dataclass(frozen=True)
class Device:
    """What a file holds.

    Attributes:
      name: of the device; that of the file, without `.json`.
      processor: what it is, in words.
      compiler: its name and version.
      flags: given to it.
      kernels: what `ftbnn_kernels` says: which instructions count bits.
      date: on which the times were found, "2026-11-26".
      version: of ftbnn_jax whose program it was, with the commit if it is known.
      how: "measured", "instructions" or "emulated".
      clock_mhz: of "instructions", of which one is taken to need one cycle: the clock at which they
        become time; else 0.
      lanes: output channels that its kernels compute together.
      rates: by arithmetic, the time of each of `costs.UNITS`, in nanoseconds or instructions.
      checked: the networks that the rates were fitted to.
      code_bytes: of a program without its weights: of any, and more for each loop; (0, 0) if unknown.
    """

    name: str
    processor: str
    compiler: str
    flags: str
    kernels: str
    date: str
    version: str
    how: str
    clock_mhz: float
    lanes: int
    rates: Mapping[str, Mapping[str, float]]
    checked: tuple[Checked, ...] = ()
    code_bytes: tuple[float, float] = (0.0, 0.0)

    @property
    def nanoseconds(self) -> float:
        """How long one unit of the rates is."""
        return 1e3 / self.clock_mhz if self.how == COUNTED else 1.0

    def source(self) -> str:
        """Returns in one line where the numbers come from."""
        at = f", one a cycle at {self.clock_mhz:g} MHz" if self.how == COUNTED else ""
        return (
            f"{self.processor}; {self.compiler} {self.flags}; {self.kernels}; {_HOW[self.how]}{at}; "
            f"{self.date}, ftbnn_jax {self.version}"
        )

    def rates_of(self, options: Options) -> Mapping[str, float]:
        """Returns the times of a program's arithmetic.

        Raises:
          UserError: the table has none.
        """
        arithmetic = arithmetic_of(options)
        if arithmetic not in self.rates:
            raise UserError(
                f"has no times of {arithmetic}, but of {'; '.join(self.rates)}", f"--device={self.name}"
            )
        return self.rates[arithmetic]

    def to_json(self) -> str:
        """Returns the text of a file."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"


def arithmetic_of(options: Options) -> str:
    """Returns what tells the times of a program from those of others on the same device."""
    found = "single precision" if options.fraction_bits is None else "fixed point"
    return found if options.real_bits == 32 else f"{found}, real layers in {options.real_bits} bits"


def names() -> list[str]:
    """Returns the devices that there are tables of."""
    files = _folder().iterdir()
    return sorted(file.name.removesuffix(_ENDING) for file in files if file.name.endswith(_ENDING))


def load(name: str) -> Device:
    """Returns the table of a device.

    Args:
      name: one of `names`, or the path of a file that ends in `.json`.

    Raises:
      UserError: there is no such table, or it cannot be read.
    """
    if name.endswith(_ENDING):
        path = pathlib.Path(name)
        try:
            return read(path.read_text(encoding="utf-8"), name)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot be read: {summary(error)}", f"--device={name}") from error
    known = names()
    if name not in known:
        near = "" if name == "help" else f"no such device, the nearest is {nearest(name, known)}; "
        raise UserError(f"{near}there are {', '.join(known)}, or a FILE{_ENDING}", f"--device={name}")
    return read(_folder().joinpath(f"{name}{_ENDING}").read_text(encoding="utf-8"), name)


def read(text: str, where: str) -> Device:
    """Returns the table that a file holds.

    Args:
      text: of the file.
      where: it is, for messages.

    Raises:
      UserError: it is none.
    """
    try:
        found = json.loads(text)
        _check(found)
        checked = tuple(Checked(**entry) for entry in found.pop("checked", ()))
        code = tuple(found.pop("code_bytes", (0.0, 0.0)))
        return Device(**found, checked=checked, code_bytes=code)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise UserError(f"is no table of a device: {summary(error)}", f"--device={where}") from error


def _check(found: dict[str, Any]) -> None:
    """Raises a ValueError for what no table says."""
    if found["how"] not in _HOW:
        raise ValueError(f"how={found['how']!r}: must be one of {', '.join(_HOW)}")
    if not found["lanes"] >= 1 or (found["how"] == COUNTED and not found["clock_mhz"] > 0):
        raise ValueError("lanes and, of instructions, clock_mhz must be positive")
    for arithmetic, rates in found["rates"].items():
        for unit, rate in rates.items():
            if unit not in costs.UNITS:
                raise ValueError(f"{arithmetic}: {unit!r} is no unit; {', '.join(costs.UNITS)} are")
            if not 0 <= rate < float("inf"):
                raise ValueError(f"{arithmetic}: {unit}={rate}: must be a number, not negative")


def _folder():
    return importlib.resources.files(__package__).joinpath("devices")
