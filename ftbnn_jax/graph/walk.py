"""The walk over a traced program (a jaxpr) that finds what each layer computes.

Rules (those with which the published Table 4 comes out):

* FLOPs: multiply-adds of real convolutions and matrix products; 1 per element for each batch norm, each
  activation and each scaling that no batch norm can absorb; 1 per summand for average pools. Additions,
  maxima, global means, casts, scaling that a batch norm absorbs, and whatever does not depend on the
  input (it is computed once, not once an image) are free.
* BOPs: multiply-adds of binary convolutions, twice where the signs of the input are 0 and 1 (Eq. 6).
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend import core

from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import values
from ftbnn_jax.graph.values import Value
from ftbnn_jax.ops import marks

# A scope that starts with this names the flax module that the operations inside belong to.
SCOPE = "@"
_SCOPE_PATTERN = re.compile(SCOPE + r"([^/()]*)")

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


def layer_of(eqn: core.JaxprEqn, outer: str = "") -> str:
    """Returns the path of the flax module that an operation belongs to; `outer` if it names none."""
    found = _SCOPE_PATTERN.findall(str(eqn.source_info.name_stack))
    return found[-1].replace(":", "/") if found else outer


class Walk:
    """Follows a program, adds up costs and notes which parameters are weights of what.

    Attributes:
      costs: of each layer that costs something, by the path of its flax module.
      layers: every layer that the program meets, in order.
      binary: parameters whose signs are weights of a binary convolution.
      real: parameters that a real convolution or matrix product multiplies with.
    """

    def __init__(self):
        self.costs: dict[str, Cost] = {}
        self.layers: dict[str, None] = {}
        self.binary: set[int] = set()
        self.real: set[int] = set()

    def run(self, program: core.ClosedJaxpr, arguments: Sequence[Value]) -> list[Value]:
        """Walks a whole program; `arguments` says what is known of its arguments."""
        return self._jaxpr(program, arguments, "", 1, False)

    def _jaxpr(
        self,
        jaxpr: core.ClosedJaxpr | core.Jaxpr,
        arguments: Sequence[Value],
        layer: str,
        times: int,
        inside_activation: bool,
    ) -> list[Value]:
        """Walks a program that runs `times` times; 0 finds the values of its results alone."""
        known: dict[core.Var, Value] = {}
        if isinstance(jaxpr, core.ClosedJaxpr):
            known.update(zip(jaxpr.jaxpr.constvars, map(values.constant, jaxpr.consts), strict=True))
            jaxpr = jaxpr.jaxpr
        known.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom):
            return values.constant(atom.val) if isinstance(atom, core.Literal) else known[atom]

        for eqn in jaxpr.eqns:
            operands = [read(atom) for atom in eqn.invars]
            path = layer_of(eqn, layer)
            self.layers.setdefault(path)
            results = self._eqn(eqn, operands, path, times, inside_activation)
            for var, value in zip(eqn.outvars, results, strict=True):
                if value.numbers is None and getattr(var.aval, "dtype", None) == np.bool_:
                    value = dataclasses.replace(value, numbers=frozenset({0.0, 1.0}))
                known[var] = value
        return [read(atom) for atom in jaxpr.outvars]

    def _eqn(
        self, eqn: core.JaxprEqn, operands: list[Value], layer: str, times: int, inside: bool
    ) -> list[Value]:
        name = eqn.primitive.name
        if name == "scan":
            return self._scan(eqn, operands, layer, times, inside)
        if name == "while":
            return self._while(eqn, operands, layer)
        if name == "cond":
            return self._cond(eqn, operands, layer, times, inside)
        body = _body(eqn)
        if body is not None:
            if eqn.params.get("name") in _ACTIVATION_FUNCTIONS and not inside:
                self._add(layer, times, operands, Cost(flops=sum(map(_size, eqn.outvars))))
                inside = True
            return self._jaxpr(body, operands, layer, times, inside)
        if name == "conv_general_dilated":
            self._product(layer, times, operands, _conv_macs(eqn))
        elif name == "dot_general":
            self._product(layer, times, operands, _dot_macs(eqn))
        elif name == "reduce_window_sum":
            self._add(layer, times, operands, Cost(flops=_pool_sums(eqn)))
        elif (name == "name" and eqn.params["name"] in _MARKS) or (
            name in _ACTIVATION_PRIMITIVES and not inside
        ):
            self._add(layer, times, operands, Cost(flops=_size(eqn.outvars[0])))
        return values.apply_rule(name, eqn.params, operands, len(eqn.outvars))

    def _add(self, layer: str, times: int, operands: Sequence[Value], cost: Cost) -> None:
        if times and any(v.from_input for v in operands):
            self.costs.setdefault(layer, Cost()).add(cost, times)

    def _product(self, layer: str, times: int, operands: Sequence[Value], macs: int) -> None:
        """Counts a convolution or a matrix product, binary if both operands are signs."""
        if not times or not any(v.from_input for v in operands):
            return
        weights = frozenset().union(*(v.parameters for v in operands))
        if all(v.is_sign for v in operands):
            after_relu = any(v.is_relu_sign for v in operands if v.from_input)
            cost = Cost(binary_macs=macs, bops=2 * macs if after_relu else macs)
            self.binary |= weights
        else:
            cost = Cost(macs=macs, flops=macs)
            self.real |= weights
        self._add(layer, times, operands, cost)

    def _scan(
        self, eqn: core.JaxprEqn, operands: list[Value], layer: str, times: int, inside: bool
    ) -> list[Value]:
        body, constants = eqn.params["jaxpr"], eqn.params["num_consts"]
        carries = eqn.params["num_carry"]
        carry = self._settle(body, operands, constants, carries, layer)
        arguments = [*operands[:constants], *carry, *operands[constants + carries :]]
        results = self._jaxpr(body, arguments, layer, times * eqn.params["length"], inside)
        return [*carry, *results[carries:]]

    def _settle(
        self, body: core.ClosedJaxpr, operands: list[Value], constants: int, carries: int, layer: str
    ) -> list[Value]:
        """Returns what holds for a loop's state in every turn."""
        carry = operands[constants : constants + carries]
        while True:
            arguments = [*operands[:constants], *carry, *operands[constants + carries :]]
            results = self._jaxpr(body, arguments, layer, 0, False)
            joined = [values.join(pair) for pair in zip(carry, results[:carries], strict=True)]
            if joined == carry:
                return carry
            carry = joined

    def _while(self, eqn: core.JaxprEqn, operands: list[Value], layer: str) -> list[Value]:
        skip, constants = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        body, operands = eqn.params["body_jaxpr"], operands[skip:]
        carry = self._settle(body, operands, constants, len(operands) - constants, layer)
        turn = Walk()
        turn._jaxpr(body, [*operands[:constants], *carry], layer, 1, False)
        if turn.costs:
            raise UserError(
                f"{layer or 'the network'}: computes layers in a while loop, whose number of turns "
                "cannot be known; a loop of fixed length (jax.lax.scan) can be counted"
            )
        return carry

    def _cond(
        self, eqn: core.JaxprEqn, operands: list[Value], layer: str, times: int, inside: bool
    ) -> list[Value]:
        """Counts the most expensive branch."""
        branches, results = [], []
        for branch in eqn.params["branches"]:
            branches.append(Walk())
            results.append(branches[-1]._jaxpr(branch, operands[1:], layer, times, inside))
        dearest = max(branches, key=lambda b: sum(c.flops + c.bops / 64 for c in b.costs.values()))
        for path, cost in dearest.costs.items():
            self.costs.setdefault(path, Cost()).add(cost)
        self.binary |= dearest.binary
        self.real |= dearest.real
        return [values.join(alternatives) for alternatives in zip(*results, strict=True)]


def _body(eqn: core.JaxprEqn) -> Any:
    """Returns the program that a call of a function runs, or None if the operation is no such call."""
    for key in ("jaxpr", "call_jaxpr"):
        body = eqn.params.get(key)
        inner = getattr(body, "jaxpr", body)
        # Reductions and scatters hold programs too, but of one element; kernels, programs on memory.
        if (
            hasattr(inner, "eqns")
            and not eqn.primitive.name.startswith(("reduce", "scatter"))
            and len(inner.invars) == len(eqn.invars)
        ):
            return body
    return None


def _size(var: core.Var) -> int:
    return math.prod(var.aval.shape)


def _conv_macs(eqn: core.JaxprEqn) -> int:
    kernel = eqn.invars[1].aval.shape
    features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    # A transposed convolution multiplies with zeros between the inputs; those are not computed.
    holes = math.prod(eqn.params["lhs_dilation"])
    return _size(eqn.outvars[0]) * (math.prod(kernel) // features) // holes


def _dot_macs(eqn: core.JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return _size(eqn.outvars[0]) * math.prod(shape[axis] for axis in contracted)


def _pool_sums(eqn: core.JaxprEqn) -> int:
    """Summands of an average pool; 0 for a window over the whole image, which is a global mean."""
    window, shape = eqn.params["window_dimensions"], eqn.invars[0].aval.shape
    if all(w in (1, n) for w, n in zip(window, shape, strict=True)):
        return 0
    return _size(eqn.outvars[0]) * math.prod(window)
