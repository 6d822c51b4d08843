"""The budget of a network: its parameters, operations, bytes and activation memory, per layer."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from ftbnn_jax.budget.costs import Cost, Costs
from ftbnn_jax.budget.memory import activation_bytes
from ftbnn_jax.graph.trace import Input, Program

# A processor word holds 64 binary operations (Fig. 3), and a 32-bit parameter 32 binary ones.
BOPS_PER_FLOP = 64
BITS_PER_PARAMETER = 32

BRIDGE = "bridge"


@dataclasses.dataclass(frozen=True)
class Layer:
    """The budget of one flax module, submodules not included.

    Attributes:
      name: path of the module ("block2_1/conv"), "" for the outermost.
      macs: multiply-adds of real convolutions and matrix products, for one image.
      flops: all real operations, `macs` included; `budget.costs` has the rules.
      binary_macs: multiply-adds of binary convolutions.
      bops: binary operations: `binary_macs`, twice if the input is a ReLU's output.
      real_params: parameters that stay real numbers in deployment.
      binary_params: parameters of which one bit stays.
      activation_bytes: what it leaves in memory for the backward pass, for one image; None if that was
        not asked for.
    """

    name: str
    macs: int = 0
    flops: int = 0
    binary_macs: int = 0
    bops: int = 0
    real_params: int = 0
    binary_params: int = 0
    activation_bytes: int | None = None

    @property
    def after_relu(self) -> bool:
        """Whether binary operations count twice here, because the input is a ReLU's output."""
        return self.bops > self.binary_macs

    @property
    def bytes_packed(self) -> float:
        """Bytes of its parameters with the binary ones packed into bits, 4 for each other."""
        return 4 * self.real_params + self.binary_params / 8

    @property
    def total(self) -> float:
        """Budget in FLOPs, 64 binary operations being one."""
        return self.flops + self.bops / BOPS_PER_FLOP


@dataclasses.dataclass(frozen=True)
class Budget:
    """The budget of a network, for one image.

    Attributes:
      layers: its layers in the order of the program, but for those that cost nothing.
      state: elements of variables that are not trained (running statistics of batch norms).
    """

    layers: tuple[Layer, ...]
    state: int = 0

    def _sum(self, field: str) -> int:
        return sum(getattr(layer, field) for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-adds of real convolutions and matrix products."""
        return self._sum("macs")

    @property
    def binary_macs(self) -> int:
        """Multiply-adds of binary convolutions, each counted once."""
        return self._sum("binary_macs")

    @property
    def flops(self) -> int:
        """All real operations."""
        return self._sum("flops")

    @property
    def bops(self) -> int:
        """All binary operations; those after a ReLU are twice their `binary_macs`."""
        return self._sum("bops")

    @property
    def bops_bridge(self) -> int:
        """Binary operations of the derived nets' bridge, a module of that name (Fig. 4c)."""
        return sum(layer.bops for layer in self.layers if layer.name.split("/")[0] == BRIDGE)

    @property
    def bops_blocks(self) -> int:
        """Binary operations of everything but the bridge."""
        return self.bops - self.bops_bridge

    @property
    def total(self) -> float:
        """Total budget in FLOPs, 64 binary operations being one."""
        return self.flops + self.bops / BOPS_PER_FLOP

    @property
    def total_macs(self) -> float:
        """Multiply-adds alone, 64 binary ones being one real one.

        This is how earlier work counts (Liu et al., 2018: 163M for Bi-Real Net-18), and so the right
        half of Table 4 for the nets of that shape: no batch norms, no activations, nothing twice.
        """
        return self.macs + self.binary_macs / BOPS_PER_FLOP

    @property
    def real_params(self) -> int:
        """Parameters that stay real numbers in deployment."""
        return self._sum("real_params")

    @property
    def binary_params(self) -> int:
        """Parameters of which one bit stays."""
        return self._sum("binary_params")

    @property
    def params(self) -> float:
        """Size as the paper's Table 4 has it: real parameters, 32 binary ones counting as one."""
        return self.real_params + self.binary_params / BITS_PER_PARAMETER

    @property
    def bytes_unpacked(self) -> int:
        """Bytes of all parameters in float32."""
        return 4 * (self.real_params + self.binary_params)

    @property
    def bytes_packed(self) -> float:
        """Bytes of all parameters with the binary ones packed into bits."""
        return sum(layer.bytes_packed for layer in self.layers)

    @property
    def activation_bytes(self) -> int | None:
        """Bytes that one image's activations take in a training step; `budget.memory` defines them."""
        if any(layer.activation_bytes is None for layer in self.layers):
            return None
        return self._sum("activation_bytes")


def count(module: Callable[..., Any], *inputs: Input, memory: bool = True, **arguments: Any) -> Budget:
    """Counts the budget of a flax module, or of any function, from its traced program.

    Any network that uses the operations of `ftbnn_jax.ops` is counted right, however it is put together:
    which convolutions are binary, which read a ReLU's output and which parameters are bits follow from
    the program. So are flax's own convolutions, dense layers, norms and activations.

        count(MyNet(), (28, 28, 1)).total
        count(function, variables, (28, 28, 1)).total

    Args:
      module: an unbound flax module; or a function, whose first argument is a tree of variables if it
        takes several.
      *inputs: its positional inputs: arrays or `jax.ShapeDtypeStruct`s with a batch axis in front, or
        the shape of one example as a tuple of integers, then float32. A function's variables are
        arrays, or shapes, without a batch.
      memory: whether to count activation memory too; it takes as long as everything else.
      **arguments: keyword arguments of the module. A `train` that it takes is True unless given.

    Raises:
      UserError: the module runs layers in a loop of unknown length.
    """
    program = Program(module, inputs, arguments)
    costs = Costs()
    costs.add(program.steps())
    saved = activation_bytes(program) if memory else None
    return Budget(_layers(program, costs, saved), _state(program))


def _layers(program: Program, costs: Costs, saved: dict[str, int] | None) -> tuple[Layer, ...]:
    real, binary = {}, {}
    for index, (path, leaf) in enumerate(program.parameters):
        layer, _, _ = path.rpartition("/")
        # Weights that some other layer multiplies with as they are cannot shrink to their signs.
        kind = binary if index in costs.binary - costs.real else real
        kind[layer] = kind.get(layer, 0) + math.prod(leaf.shape)
    used = {**real, **binary, **(saved or {})}
    # In the order of the program; a module that computes nothing comes last.
    met = [name for name, cost in costs.layers.items() if name in used or cost != Cost()]
    names = dict.fromkeys([*met, *used])
    layers = []
    for name in names:
        cost = costs.layers.get(name, Cost())
        layers.append(
            Layer(
                name,
                **dataclasses.asdict(cost),
                real_params=real.get(name, 0),
                binary_params=binary.get(name, 0),
                activation_bytes=None if saved is None else saved.get(name, 0),
            )
        )
    return tuple(layers)


def _state(program: Program) -> int:
    others = [tree for name, tree in program.variables.items() if name != "params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(others))
