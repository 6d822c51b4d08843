"""What shapes a C program beside its network: given as flags, written into its header, and read back."""

import dataclasses
import re
from typing import Any

from ftbnn_jax.deploy.c import prefixes
from ftbnn_jax.errors import UserError
from ftbnn_jax.fields import shown

REAL_BITS = (8, 16, 32)
TARGETS = ("host", "cortex-m")
# Fewer leave no precision, and more no room above 1.
FRACTION_BITS = (4, 30)


@dataclasses.dataclass(frozen=True)
class Options:
    """All that shapes a program.

    Attributes:
      fraction_bits: of the real numbers in fixed point, at most; None for single precision.
      real_bits: of the weights of real convolutions and matrix products: 8, 16, or 32 for single
        precision.
      input_bits: fraction bits of the inputs of each of these that reads values, in their order, where
        their weights have 8 or 16 bits.
      prefix: of all names that other files of a program see, in capitals for macros.
      target: "host" for any computer, "cortex-m" for microcontrollers.

    Raises:
      UserError: a value is none of these.
    """

    fraction_bits: int | None = None
    real_bits: int = 32
    input_bits: tuple[int, ...] = ()
    prefix: str = prefixes.DEFAULT
    target: str = "host"

    def __post_init__(self):
        prefixes.check(self.prefix)
        for name, choices in (("real_bits", REAL_BITS), ("target", TARGETS)):
            value = getattr(self, name)
            if value not in choices or isinstance(value, bool):
                raise UserError(f"must be one of {_listed(choices)}", f"--{name}={shown(value)}")
        bits, (least, most) = self.fraction_bits, FRACTION_BITS
        is_whole = isinstance(bits, int) and not isinstance(bits, bool)
        if bits is not None and not (is_whole and least <= bits <= most):
            raise UserError(
                f"must be None, or a whole number from {least} to {most}", f"fraction_bits={shown(bits)}"
            )

    @property
    def arithmetic(self) -> str:
        """How a report calls the arithmetic between the binary products."""
        found = "single precision"
        if self.fraction_bits is not None:
            found = f"fixed point, at most {self.fraction_bits} fraction bits"
        return found if self.real_bits == 32 else f"{found}; real layers in {self.real_bits} bits"

    def definitions(self) -> dict[str, object]:
        """Returns the macros of the header that `read` needs, without their prefix."""
        found: dict[str, object] = {"REAL_BITS": self.real_bits, "TARGET": f'"{self.target}"'}
        if self.fraction_bits is not None:
            found["MOST_FRACTION_BITS"] = self.fraction_bits
        if self.input_bits:
            found["INPUT_BITS"] = f'"{" ".join(map(str, self.input_bits))}"'
        return found


DEFAULT = Options()


def read(header: str) -> Options:
    """Returns the options of the program that a `model.h` belongs to.

    Raises:
      UserError: it is no header of an exported program, or says what no export writes.
    """
    prefix = re.search(r"^int (\w+)_init\(", header, re.MULTILINE)
    if not prefix:
        raise UserError("no header of an exported C program")
    found: dict[str, Any] = {"prefix": prefix[1]}
    macro = re.compile(
        rf"^#define {prefix[1].upper()}_(MOST_FRACTION_BITS|REAL_BITS|INPUT_BITS|TARGET) (.*)$",
        re.MULTILINE,
    )
    for name, text in macro.findall(header):
        if name == "TARGET":
            found["target"] = text.strip('"')
        elif name == "INPUT_BITS" and re.fullmatch(r'"-?\d+( -?\d+)*"', text):
            found["input_bits"] = tuple(map(int, text.strip('"').split()))
        elif text.isdecimal():
            found[name.lower().removeprefix("most_")] = int(text)
        else:
            raise UserError(f"{name} {text}: a number expected")
    return Options(**found)


def _listed(choices: tuple[object, ...]) -> str:
    return ", ".join(map(str, choices))
