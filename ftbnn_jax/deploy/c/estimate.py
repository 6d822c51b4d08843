"""How long a network's C program will take on a device, and how much memory: `budget --device`."""

import dataclasses
from typing import Any

from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.deploy.c import (
    costs,
    device,
    generate,
    integer_layers,
    lowering,
    options,
    profile,
    quantized,
)

_INPUT_BITS = 8


@dataclasses.dataclass(frozen=True)
class Layer:
    """One loop of the program.

    Attributes:
      name: of the network's layer that it begins with.
      what: it does, as `test_model --profile` says it.
      milliseconds: that it takes.
      binary_multiply_adds: for one image.
      real_multiply_adds: likewise.
    """

    name: str
    what: str
    milliseconds: float
    binary_multiply_adds: int
    real_multiply_adds: int


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a network will take on a device, for one image on one core.

    Attributes:
      device: its table.
      arithmetic: of the program.
      layers: the program's loops, in order.
      weights_bytes: of all constants, in flash on a microcontroller.
      code_bytes: of the program itself; None where the table does not know.
      ram_bytes: of the memory that it is given, `FTBNN_ARENA_BYTES`; its stack is not among them.
    """

    device: device.Device
    arithmetic: str
    layers: tuple[Layer, ...]
    weights_bytes: int
    code_bytes: int | None
    ram_bytes: int

    @property
    def milliseconds(self) -> float:
        """Of one image."""
        return sum(layer.milliseconds for layer in self.layers)

    @property
    def flash_bytes(self) -> int | None:
        """Of weights and code; None where the latter is not known."""
        return None if self.code_bytes is None else self.weights_bytes + self.code_bytes

    def to_dict(self, layers: bool = True) -> dict[str, Any]:
        """Returns it as values that JSON can hold, with or without its layers."""
        found = {name: getattr(self, name) for name in ("arithmetic", "milliseconds")}
        sizes = ("weights_bytes", "code_bytes", "flash_bytes", "ram_bytes")
        listed = [dataclasses.asdict(layer) for layer in self.layers] if layers else None
        return {
            "name": self.device.name,
            "how": self.device.how,
            "source": self.device.source(),
            **found,
            **{name: getattr(self, name) for name in sizes},
            **({"layers": listed} if layers else {}),
        }


def estimate(
    artifact: artifact_lib.Artifact, device_name: str, how: options.Options = options.DEFAULT
) -> Estimate:
    """Estimates time and memory of a packed network, trained or not, as a C program on some device.

    Args:
      artifact: the packed network.
      device_name: one that there is a table of, "cortex-m4", or a table's file, "mine.json".
      how: the program is exported.

    Raises:
      UserError: there is no such device, its table does not know this arithmetic, or the C program
        has no such network.
    """
    table = device.load(device_name)
    rates = table.rates_of(how)
    how = _with_input_bits(artifact, how)
    network = quantized.lower(artifact, how)
    layers = []
    for loop, described in zip(network.loops, profile.describe(network), strict=True):
        counts = costs.count(network, loop, table.lanes)
        took = costs.time(counts, rates)
        layers.append(
            Layer(
                described.layer,
                described.parts,
                took * table.nanoseconds * 1e-6,
                described.binary_multiply_adds,
                described.real_multiply_adds,
            )
        )
    base, each = table.code_bytes
    return Estimate(
        table,
        device.arithmetic_of(how),
        tuple(layers),
        sum(constant.values.nbytes for constant in generate.constants(network, how)),
        round(base + each * len(layers)) if base else None,
        network.arena_bytes,
    )


def _with_input_bits(artifact: artifact_lib.Artifact, how: options.Options) -> options.Options:
    """Returns options with fraction bits of integer layers' inputs: any, since they take no time."""
    if how.real_bits == options.DEFAULT.real_bits or how.input_bits:
        return how
    network = lowering.lower(artifact, how.real_bits)
    layers = integer_layers.nodes(network)
    count = sum(integer_layers.reads_values(network, node) for node in layers)
    return dataclasses.replace(how, input_bits=(_INPUT_BITS,) * count)
