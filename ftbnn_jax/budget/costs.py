"""What each layer of a traced program costs.

Rules (those with which the published Table 4 comes out):

* FLOPs: multiply-adds of real convolutions and matrix products; 1 per element for each batch norm, each
  activation and each scaling that no batch norm can absorb; 1 per summand for average pools. Additions,
  maxima, global means, casts, scaling that a batch norm absorbs, and whatever does not depend on the
  input (it is computed once, not once an image) are free.
* BOPs: multiply-adds of binary convolutions, twice where the signs of the input are 0 and 1 (Eq. 6).
"""

import dataclasses
import math
from collections.abc import Iterable

from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import values
from ftbnn_jax.graph.walk import Step
from ftbnn_jax.ops import marks

# What the activation functions of jax.nn (and so of flax.linen) are called in a program.
_ACTIVATION_FUNCTIONS = values.words(
    "relu relu6 leaky_relu elu celu selu gelu silu swish mish sigmoid hard_sigmoid hard_tanh "
    "hard_silu hard_swish log_sigmoid softplus soft_sign squareplus sparse_plus sparse_sigmoid"
)
_ACTIVATION_PRIMITIVES = frozenset(["tanh", "logistic"])
_MARKS = frozenset([marks.BATCH_NORM, marks.ACTIVATION, marks.SCALING])


@dataclasses.dataclass
class Cost:
    """Operations of one layer for one input.

    Attributes:
      macs: multiply-adds of real convolutions and matrix products.
      flops: these and the other real operations.
      binary_macs: multiply-adds of binary convolutions and matrix products.
      bops: these, counted twice after a ReLU.
    """

    macs: int = 0
    flops: int = 0
    binary_macs: int = 0
    bops: int = 0

    def add(self, other: "Cost", times: int = 1) -> None:
        """Adds `times` times the cost `other`."""
        self.macs += times * other.macs
        self.flops += times * other.flops
        self.binary_macs += times * other.binary_macs
        self.bops += times * other.bops


@dataclasses.dataclass
class Costs:
    """What a program costs, and which parameters are weights of what.

    Attributes:
      layers: of each layer that the program meets, in order.
      binary: parameters whose signs are weights of a binary convolution.
      real: parameters that a real convolution or matrix product multiplies with.
    """

    layers: dict[str, Cost] = dataclasses.field(default_factory=dict)
    binary: set[int] = dataclasses.field(default_factory=set)
    real: set[int] = dataclasses.field(default_factory=set)

    def add(self, steps: Iterable[Step]) -> None:
        """Adds the steps of a walk.

        Raises:
          UserError: a loop of unknown length computes something that costs.
        """
        for step in steps:
            cost = self.layers.setdefault(step.layer, Cost())
            if step.branches:
                self._add_dearest(step)
            elif any(x.value.from_input for x in step.operands):
                found = self._cost(step)
                if found != Cost() and step.times is None:
                    raise UserError(
                        f"{step.layer or 'the network'}: computes layers in a while loop, whose number "
                        "of turns cannot be known; a loop of fixed length (jax.lax.scan) can be counted"
                    )
                cost.add(found, step.times or 0)

    def _add_dearest(self, step: Step) -> None:
        """Adds the most expensive branch of a choice."""
        branches = [Costs() for _ in step.branches]
        for branch, steps in zip(branches, step.branches, strict=True):
            branch.add(steps)
        dearest = max(branches, key=lambda b: sum(c.flops + c.bops / 64 for c in b.layers.values()))
        for layer, cost in dearest.layers.items():
            self.layers.setdefault(layer, Cost()).add(cost)
        self.binary |= dearest.binary
        self.real |= dearest.real

    def _cost(self, step: Step) -> Cost:
        name, function = step.name, step.params.get("name")
        inside = not _ACTIVATION_FUNCTIONS.isdisjoint(step.functions)
        if name == "conv_general_dilated":
            return self._product(step, _conv_macs(step))
        if name == "dot_general":
            return self._product(step, _dot_macs(step))
        if name == "reduce_window_sum":
            return Cost(flops=_pool_sums(step))
        if name == "name":
            return Cost(flops=_size(step) if function in _MARKS else 0)
        activation = name in _ACTIVATION_PRIMITIVES or (step.calls and function in _ACTIVATION_FUNCTIONS)
        return Cost(flops=_size(step) if activation and not inside else 0)

    def _product(self, step: Step, macs: int) -> Cost:
        """Counts a convolution or a matrix product, binary if both operands are signs."""
        known = [x.value for x in step.operands]
        weights = frozenset().union(*(v.parameters for v in known))
        if all(v.is_sign for v in known):
            self.binary |= weights
            after_relu = any(v.is_relu_sign for v in known if v.from_input)
            return Cost(binary_macs=macs, bops=2 * macs if after_relu else macs)
        self.real |= weights
        return Cost(macs=macs, flops=macs)


def _size(step: Step) -> int:
    return sum(math.prod(shape) for shape in step.shapes)


def _conv_macs(step: Step) -> int:
    kernel = step.operands[1].shape
    features = kernel[step.params["dimension_numbers"].rhs_spec[0]]
    # A transposed convolution multiplies with zeros between the inputs; those are not computed.
    holes = math.prod(step.params["lhs_dilation"])
    return _size(step) * (math.prod(kernel) // features) // holes


def _dot_macs(step: Step) -> int:
    (contracted, _), _ = step.params["dimension_numbers"]
    return _size(step) * math.prod(step.operands[0].shape[axis] for axis in contracted)


def _pool_sums(step: Step) -> int:
    """Summands of an average pool; 0 for a window over the whole image, which is a global mean."""
    window, shape = step.params["window_dimensions"], step.operands[0].shape
    if all(w in (1, n) for w, n in zip(window, shape, strict=True)):
        return 0
    return _size(step) * math.prod(window)
