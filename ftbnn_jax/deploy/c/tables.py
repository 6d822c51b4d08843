"""The constants of a network as C arrays, and the names of its classes as C strings."""

import dataclasses
import reprlib
import textwrap

import numpy as np

from ftbnn_jax.deploy.c import described as described_lib
from ftbnn_jax.deploy.c import schedule
from ftbnn_jax.errors import UserError
from ftbnn_jax.ops import preprocessing
from ftbnn_jax.ops.packed import convolution as packed

_TYPES = {
    np.dtype(np.uint32): "uint32_t",
    np.dtype(np.int32): "int32_t",
    np.dtype(np.int16): "int16_t",
    np.dtype(np.float32): "float",
}
# Bytes that every compiler takes in one string, and in one line.
_LONGEST_LITERAL = 4095


@dataclasses.dataclass(frozen=True)
class Table:
    """One constant array.

    Attributes:
      name: in the C program.
      values: uint32, int32, int16 or float32, any shape.
    """

    name: str
    values: np.ndarray

    @property
    def declaration(self) -> str:
        """What both the definition and the header say."""
        return f"const {_TYPES[self.values.dtype]} {self.name}[{self.values.size}]"

    def definition(self) -> str:
        """Returns the array with its values, exact: floats are hexadecimal."""
        flat = self.values.reshape(-1)
        if self.values.dtype == np.float32:
            # A float32 has 24 bits: the last digits of the double's are 0.
            literals = [value.hex().replace("0000000p", "p") + "f" for value in flat.tolist()]
        elif self.values.dtype == np.uint32:
            literals = [f"0x{value:x}u" for value in flat.tolist()]
        else:
            literals = [str(value) for value in flat.tolist()]
        lines = [", ".join(literals[i : i + 8]) for i in range(0, len(literals), 8)]
        shape = " x ".join(str(n) for n in self.values.shape)
        return f"/* {shape} */\n{self.declaration} = {{\n" + ",\n".join(lines) + "};\n"


def name_of(tensor: str) -> str:
    """Returns the C name of a tensor; see `described.Described`."""
    return "ftbnn_" + tensor.replace("/", "_")


def binary_weights(network: schedule.Network) -> list[Table]:
    """Returns the kernels of each binary convolution as the words that its windows meet."""
    found = []
    for block in network.blocks:
        kernels = block.conv.kernels()
        words = [packed.pack_kernels(kernel[None]).reshape(-1) for kernel in kernels]
        # A vector of the last channels may reach beyond them.
        words.append(np.zeros(schedule.SLACK, np.uint32))
        found.append(
            Table(name_of(f"{block.plan.name}/conv/bits"), np.concatenate(words).astype(np.uint32))
        )
    return found


def float_tables(network: schedule.Network) -> list[Table]:
    """Returns all other constants for the program in single precision, from `float_tensors`."""
    return [Table(name_of(name), tensor) for name, tensor in sorted(float_tensors(network).items())]


def float_tensors(network: schedule.Network) -> dict[str, np.ndarray]:
    """Returns what the program in single precision has but for bits: float32, int16, `stem/pixels`.

    Raises:
      UserError: one of them is not finite.
    """
    described = network.described
    pixels = np.arange(256, dtype=np.float32)
    mean, std = standardization(described.preprocessing)
    tensors = {
        "stem/pixels": (pixels - mean[:, None]) / std[:, None],
        **{name: t for name, t in described.tensors.items() if t.dtype != np.uint32},
    }
    for name, tensor in tensors.items():
        check_finite(name, tensor)
    return tensors


def standardization(rule: preprocessing.Preprocessing) -> np.ndarray:
    """Returns mean and standard deviation of each channel, float32 `[2, channels]`."""
    return np.stack([np.broadcast_to(np.float32(part), rule.channels) for part in (rule.mean, rule.std)])


def check_finite(name: str, tensor: np.ndarray) -> None:
    """Raises a UserError where a tensor holds what C has no literal for."""
    if not np.isfinite(tensor).all():
        raise UserError(f"tensor {name!r}: holds a number that is not finite; C takes finite ones only")


def class_names(described: described_lib.Described) -> tuple[str, str]:
    """Returns the names of all classes as C strings: definitions that come first, and the initialiser.

    Raises:
      UserError: a name is no text, or holds a NUL.
    """
    missing = range(len(described.class_names), described.num_classes)
    names = [*described.class_names[: described.num_classes], *(f"class {i}" for i in missing)]
    definitions, expressions = [], []
    for i, name in enumerate(names):
        characters = [_escaped(byte) for byte in _bytes_of(i, name)]
        literal = f'"{"".join(characters)}"'
        if len(literal) > _LONGEST_LITERAL:
            values = textwrap.fill(", ".join([*(f"'{c}'" for c in characters), "0"]), 100)
            definitions.append(f"static const char class_name_{i}[] = {{\n{values}}};\n\n")
            literal = f"class_name_{i}"
        expressions.append(f"    {literal}")
    return "".join(definitions), ",\n".join(expressions)


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
