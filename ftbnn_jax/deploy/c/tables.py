"""The constants of a network as C arrays, and the names of its classes as C strings."""

import dataclasses
import re
import reprlib
import textwrap
from collections.abc import Iterable

import numpy as np

from ftbnn_jax.deploy.c import geometry
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import ir
from ftbnn_jax.ops.packed import convolution as packed

_TYPES = {
    np.dtype(np.uint32): "uint32_t",
    np.dtype(np.int32): "int32_t",
    np.dtype(np.int16): "int16_t",
    np.dtype(np.int8): "int8_t",
    np.dtype(np.uint16): "uint16_t",
    np.dtype(np.float32): "float",
}
# Bytes that every compiler takes in one string, and in one line.
_LONGEST_LITERAL = 4095


def holds(dtype: np.dtype) -> bool:
    """Whether there are arrays of a dtype in C."""
    return dtype in _TYPES


@dataclasses.dataclass(frozen=True)
class Table:
    """One constant array.

    Attributes:
      name: in the C program.
      values: of one of `_TYPES`, any shape.
    """

    name: str
    values: np.ndarray

    @property
    def kind(self) -> str:
        """The type of its elements in C."""
        return _TYPES[self.values.dtype]

    @property
    def declaration(self) -> str:
        """What both the definition and the header say."""
        return f"const {self.kind} {self.name}[{self.values.size}]"

    def definition(self) -> str:
        """Returns the array with its values, exact: floats are hexadecimal."""
        literals = [literal(value) for value in self.values.reshape(-1)]
        lines = [", ".join(literals[i : i + 8]) for i in range(0, len(literals), 8)]
        shape = " x ".join(str(n) for n in self.values.shape)
        return f"/* {shape} */\n{self.declaration} = {{\n" + ",\n".join(lines) + "};\n"


def literal(value: np.generic) -> str:
    """Returns a number as C has it, exact."""
    if isinstance(value, np.floating):
        if np.isinf(value):
            return "-HUGE_VALF" if value < 0 else "HUGE_VALF"
        # A float32 has 24 bits: the last digits of the double's are 0.
        return float(value).hex().replace("0000000p", "p") + "f"
    if isinstance(value, np.uint32):
        return f"0x{int(value):x}u"
    # The lowest number is no literal of C.
    number = int(value)
    return str(number) if number > -(2**31) else f"(-{2**31 - 1} - 1)"


def wrapped(text: str, indent: int) -> str:
    """Returns text in lines of at most 100 characters."""
    pad = " " * indent
    return textwrap.fill(text, 100, initial_indent=pad, subsequent_indent=pad, break_long_words=False)


def name_of(array: str, taken: Iterable[str] = ()) -> str:
    """Returns the C name of an array of a graph, none of those that are taken."""
    words = "_".join(re.findall(r"[A-Za-z0-9]+", array)) or "constant"
    return ir.unused(f"ftbnn_{words}", set(taken))


def binary_weights(name: str, kernels: Iterable[np.ndarray]) -> Table:
    """Returns the kernels of a binary product as the words that its windows meet, tile after tile.

    Args:
      name: of the table.
      kernels: booleans `[KH, KW, I_g, O_g]`, one a group.
    """
    words = []
    for kernel in kernels:
        whole = packed.pack_kernels(kernel[None])[:, 0]
        words += [
            whole[:, o : o + geometry.TILE].reshape(-1) for o in range(0, whole.shape[1], geometry.TILE)
        ]
    # A vector of the last channels may reach beyond them.
    return Table(name, np.concatenate([*words, np.zeros(geometry.SLACK, np.uint32)]).astype(np.uint32))


def check_finite(name: str, tensor: np.ndarray) -> None:
    """Raises a UserError where a tensor holds what C has no literal for."""
    if tensor.dtype.kind == "f" and tensor.size > 1 and not np.isfinite(tensor).all():
        raise UserError(f"tensor {name!r}: holds a number that is not finite; C takes finite ones only")
    if tensor.dtype.kind == "f" and np.isnan(tensor).any():
        raise UserError(f"tensor {name!r}: is not a number; C takes numbers only")


def class_names(names: tuple[str, ...], count: int) -> tuple[str, str]:
    """Returns the names of all classes as C strings: definitions that come first, and the initialiser.

    Args:
      names: of the first classes.
      count: how many classes there are.

    Raises:
      UserError: a name is no text, or holds a NUL.
    """
    names = (*names[:count], *(f"class {i}" for i in range(len(names), count)))
    definitions, expressions = [], []
    for i, name in enumerate(names):
        characters = [_escaped(byte) for byte in _bytes_of(i, name)]
        text = f'"{"".join(characters)}"'
        if len(text) > _LONGEST_LITERAL:
            values = textwrap.fill(", ".join([*(f"'{c}'" for c in characters), "0"]), 100)
            definitions.append(f"static const char class_name_{i}[] = {{\n{values}}};\n\n")
            text = f"class_name_{i}"
        expressions.append(f"    {text}")
    return "".join(definitions), ",\n".join(expressions)


def string(text: str) -> str:
    """Returns a C string of printable text."""
    return f'"{"".join(map(_escaped, text.encode(errors="replace")))}"'


def _bytes_of(index: int, name: str) -> bytes:
    """Returns a class's name in UTF-8, or as the bytes that the file system had in its place."""
    try:
        content = name.encode(errors="surrogateescape")
    except (AttributeError, UnicodeEncodeError) as error:
        raise UserError(f"class_names: {reprlib.repr(name)} of class {index} is no text") from error
    if 0 in content:
        raise UserError(
            f"class_names: {reprlib.repr(name)} of class {index} holds a NUL, which ends a string in C"
        )
    return content


def _escaped(byte: int) -> str:
    """Returns a character of a C literal, in ASCII; octal escapes end after three digits."""
    return chr(byte) if 32 <= byte < 127 and chr(byte) not in "\"'\\?" else f"\\{byte:03o}"
