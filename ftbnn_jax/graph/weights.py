"""Which parameters of a network are weights, of products of signs and of products of real numbers."""

import dataclasses
from collections.abc import Collection, Iterable
from typing import Any

from ftbnn_jax.graph import walk
from ftbnn_jax.graph.trace import Program
from ftbnn_jax.nn import variables as nn_variables
from ftbnn_jax.nn.network import Network


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters that convolutions and matrix products multiply with, by name: "block1/conv/kernel".

    Attributes:
      binary: those of which a product reads the signs, latent weights, in the order of the program.
      real: all others, likewise.
    """

    binary: tuple[str, ...]
    real: tuple[str, ...]


def find(network: Network, shape: tuple[int, int, int]) -> Weights:
    """Finds the weights of a network in its program; nothing is computed.

    Args:
      network: the network.
      shape: height, width and channels of the images.
    """
    program = Program(network, (shape,), {})
    # Dictionaries, since they keep an order.
    binary: dict[int, None] = {}
    real: dict[int, None] = {}
    _add(program.steps(), binary, real)
    names = [name for name, _ in program.parameters]
    return Weights(
        tuple(names[number] for number in binary),
        tuple(names[number] for number in real if number not in binary),
    )


def mask(names: Collection[str], params: Any) -> Any:
    """Returns a tree like `params`, True for the parameters of these names and False for all others."""
    return nn_variables.changed(params, lambda name, _: name in names)


def _add(steps: Iterable[walk.Step], binary: dict[int, None], real: dict[int, None]) -> None:
    for step in steps:
        for branch in step.branches:
            _add(branch, binary, real)
        if step.name in ("conv_general_dilated", "dot_general"):
            for operand in step.operands:
                found = dict.fromkeys(sorted(operand.value.parameters))
                (binary if operand.value.is_sign else real).update(found)
