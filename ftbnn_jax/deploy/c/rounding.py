"""How far two computations of a network in float32 can be apart by rounding alone.

The packed runtime adds in another order than the C program, may fuse multiplications into additions, and
takes its functions from another library. Whatever the order, a sum of n products is off by at most
`gamma(n) * sum |x| |w|`, `gamma(n) = n u / (1 - n u)` and `u = 2**-24` (Higham, Accuracy and Stability
of Numerical Algorithms, 2002, section 3.1). Such errors are followed from operation to operation;
wherever the other computation's array is there, what the difference is counts from then on, not what it
may be.
A comparison whose operands are no further apart than their errors can turn. Integers have no error, as
long as no sign differs before them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ftbnn_jax.deploy.c import emulator, functions, geometry, operations, schedule
from ftbnn_jax.graph import ir

_UNITS = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# What a flushed subnormal number, of the values or of the constants, may make of a product.
_TINY = 2 * float(np.finfo(np.float32).tiny)
# Roundings that functions of other libraries are off by.
_OF_A_FUNCTION = 16


class Bounds:
    """Errors of a batch of N images, of which `note` is shown every node.

    Args:
      network: the loops.
      others: the other computation's arrays by name.
      images: N.

    Attributes:
      agreeing: images on which no integer has differed so far, booleans `[N]`.
      unexplained: images on which an array differs by more than rounding explains, by the binary product
        that comes next; all integers before agree.
      rounded: integers that differ, by product.
    """

    def __init__(self, network: schedule.Network, others: Mapping[str, np.ndarray], images: int):
        self._network = network
        self._others = others
        self._errors: dict[str, np.ndarray] = {}
        self._found = np.zeros(images, bool)
        self._products = {product.node.name: product.name for product in network.products}
        self.agreeing = np.ones(images, bool)
        self.unexplained: dict[str, np.ndarray] = {}
        self.rounded: dict[str, int] = {}

    @staticmethod
    def names(network: schedule.Network) -> list[str]:
        """Returns the arrays of the other computation that are looked at."""
        shapes, found = network.shapes, {}
        for loop in network.loops:
            found |= dict.fromkeys(n for n in loop.stores if shapes[n].dtype.name in operations.REAL)
        found.pop(network.graph.output, None)
        # The integers of a product are compared where they are the result, too.
        for product in network.products:
            found |= dict.fromkeys((product.node.inputs[0], product.node.name))
        nodes = {node.name for node in network.graph.nodes}
        return [name for name in found if name in nodes]

    def of(self, name: str) -> np.ndarray:
        """Returns the errors of an array."""
        return self._errors[name]

    def note(self, node: ir.Node, operands: Sequence[np.ndarray], result: np.ndarray) -> None:
        """Finds the errors of a node's result, given its operands."""
        with np.errstate(all="ignore"):
            errors = [np.asarray(self._errors.get(name, 0.0)) for name in node.inputs[: len(operands)]]
            error = self._error(node, operands, errors, result)
            self._errors[node.name] = np.broadcast_to(
                np.nan_to_num(error, nan=np.inf, posinf=np.inf), result.shape
            )
            if node.name in self._others:
                self._compare(node, result, np.asarray(self._others[node.name]))

    def _compare(self, node, result, other):
        apart = np.abs(result.astype(np.float64) - other.astype(np.float64))
        images = len(self.agreeing)
        if node.name in self._products:
            name = self._products[node.name]
            self.unexplained[name] = self._found & self.agreeing
            self._found = np.zeros(images, bool)
            differing = (~(apart == 0)).reshape(images, -1).sum(1)
            self.rounded[name] = int(differing.sum())
            self.agreeing &= differing == 0
        else:
            self._found |= (~(apart <= self._errors[node.name])).reshape(images, -1).any(1)
        self._errors[node.name] = apart

    def _error(self, node, operands, errors, result) -> Any:
        op, unit = node.op, _UNITS.get(self._network.shapes[node.name].dtype.name, 0.0)
        if not any(e.any() for e in errors) and op in (*ir.BINARY, *operations.VIEWS, "compare", "sign"):
            return 0.0
        if op in ir.BINARY:
            return 0.0
        if op in operations.VIEWS:
            whole = np.broadcast_to(errors[0], operands[0].shape)
            return operations.view(node, whole, len(self.agreeing))
        if op in ("conv", "dot"):
            return self._products_error(node, operands, errors, unit)
        if op in operations.FOLDS:
            return _fold(node, operands[0], errors[0], unit)
        if op in ("concatenate", "pad", "take"):
            whole = [np.broadcast_to(e, x.shape) for e, x in zip(errors, operands, strict=True)]
            return operations.moved(node, whole if op != "take" else [whole[0], operands[1]])
        if op == "argmax":
            return np.inf if errors[0].any() else 0.0
        real = [np.abs(x).astype(np.float64) for x in operands]
        error = _ELEMENTWISE.get(op, _function)(node, operands, real, errors, np.abs(result))
        exact = op in ("neg", "abs", "max", "min", "select", "compare", "sign", "and", "or", "not")
        if exact or not unit or (op == "cast" and operands[0].dtype == bool):
            return error
        roundings = 2 if op == "div" else _OF_A_FUNCTION if op in functions.FUNCTIONS else 1
        if op == "integer_pow":
            roundings = abs(node.attributes["y"]) + 2
        scale = np.abs(result) + error + (1.0 if op in ("log", "logistic", "tanh") else 0.0)
        return error + _apart(roundings, unit) * scale + _TINY * (1 + sum(real))

    def _products_error(self, node, operands, errors, unit):
        network = self._network
        sizes = geometry.real_conv(node, network.shapes, network.constants)
        if sizes is None:
            (a, b), (ea, eb) = (tuple(map(np.float64, pair)) for pair in (map(np.abs, operands), errors))
            ea, eb = np.broadcast_to(ea, a.shape), np.broadcast_to(eb, b.shape)

            def product(x, y):
                return emulator.matrix_product(node, x, y)

            terms = np.prod([a.shape[i] for i in node.attributes["contracting"][0]])
            error = product(ea, b + eb) + product(a, eb)
            return error + _apart(terms + 2, unit) * product(a + ea, b + eb) + terms * _TINY
        found = network.kernels.get(node.name)
        kernel = network.constants[node.inputs[1]] if found is None else found
        if isinstance(kernel, geometry.Multiples):
            kernel = kernel.values * kernel.scale.astype(np.float64)
        weights = np.abs(kernel.astype(np.float64))
        # All places of a window count, for the largest magnitudes and errors of each channel.
        heaviest = weights.reshape(-1, *weights.shape[-2:]).sum(0)
        terms = weights[..., 0].size
        batch = operands[0].shape[0]
        x = np.abs(operands[0]).reshape(batch, -1, operands[0].shape[-1]).max(1).astype(np.float64)
        e = np.broadcast_to(errors[0], operands[0].shape).reshape(batch, -1, x.shape[-1]).max(1)
        groups = sizes["groups"]
        inputs, outputs = heaviest.shape[0], heaviest.shape[1] // groups
        parts = []
        for g in range(groups):
            heavy = heaviest[:, g * outputs : (g + 1) * outputs]
            own_x, own_e = (v[:, g * inputs : (g + 1) * inputs] for v in (x, e))
            rounding = _apart(terms + 2, unit) * ((own_x + own_e) @ heavy)
            parts.append(own_e @ heavy + rounding + terms * _TINY * (1 + own_x.max() + heavy.max()))
        error = np.concatenate(parts, axis=-1)
        return error.reshape(batch, *(1,) * (operands[0].ndim - 2), -1)


def _fold(node, x, error, unit):
    whole = np.broadcast_to(error, x.shape)
    errors = operations.fold(node, whole)
    if node.op.endswith("max"):
        return np.maximum(errors.max(0), 0.0)
    magnitude = operations.fold(node, np.abs(x).astype(np.float64)).sum(0)
    total = errors.sum(0)
    return total + _apart(len(errors) + 1, unit) * (magnitude + total) + len(errors) * _TINY


# By operation: node, operands, their magnitudes and errors, and the magnitude of the result; returns the
# error that those of the operands make.
_Rule = Callable[[Any, Any, Any, Any, Any], Any]


def _multiplied(node, operands, real, errors, result):
    (a, b), (ea, eb) = real, errors
    return ea * b + eb * a + ea * eb


def _divided(node, operands, real, errors, result):
    (_, b), (ea, eb) = real, errors
    return (ea + result * eb) / np.maximum(b - eb, _TINY)


def _selected(node, operands, real, errors, result):
    (which, x, y), (turned, ex, ey) = operands, errors
    apart = np.abs(np.asarray(x, np.float64) - y) + ex + ey
    return np.where(turned > 0, apart, np.where(which, ey, ex))


def _compared(node, operands, real, errors, result):
    x, y = (np.asarray(v, np.float64) for v in operands)
    both = errors[0] + errors[1]
    return ((np.abs(x - y) <= both) & (both > 0)).astype(np.float64)


def _signed(node, operands, real, errors, result):
    return np.where((real[0] <= errors[0]) & (errors[0] > 0), 2.0, 0.0)


def _stepped(node, operands, real, errors, result):
    return np.where(errors[0] > 0, errors[0] + 1, 0.0)


def _power(node, operands, real, errors, result):
    power, largest = node.attributes["y"], real[0] + errors[0]
    if power >= 0:
        return power * largest ** max(power - 1, 0) * errors[0]
    least = np.maximum(real[0] - errors[0], _TINY)
    return -power * least ** (power - 1) * errors[0]


def _cast(node, operands, real, errors, result):
    if node.attributes["dtype"] in _UNITS or operands[0].dtype.kind != "f":
        return errors[0]
    return _stepped(node, operands, real, errors, result)


def _function(node, operands, real, errors, result):
    (x,), (e,) = operands, errors
    least = np.maximum(np.asarray(x, np.float64) - e, _TINY)
    if node.op in ("exp", "expm1"):
        return (result + (node.op == "expm1")) * np.expm1(np.minimum(e, 100.0))
    if node.op in ("logistic", "tanh"):
        return np.minimum(e, 2.0)
    if node.op == "log":
        return e / least
    if node.op == "log1p":
        return e / np.maximum(1.0 + x - e, _TINY)
    if node.op == "sqrt":
        return np.minimum(np.sqrt(e), e / np.sqrt(least))
    return e * least**-1.5


_ELEMENTWISE: dict[str, _Rule] = {
    **dict.fromkeys(("add", "sub"), lambda node, o, real, errors, result: errors[0] + errors[1]),
    **dict.fromkeys(("max", "min"), lambda node, o, real, errors, result: np.maximum(*errors)),
    **dict.fromkeys(("neg", "abs", "not"), lambda node, o, real, errors, result: errors[0]),
    **dict.fromkeys(("and", "or"), lambda node, o, real, errors, result: np.maximum(*errors)),
    **dict.fromkeys(("floor", "ceil", "round"), _stepped),
    "mul": _multiplied,
    "div": _divided,
    "select": _selected,
    "compare": _compared,
    "sign": _signed,
    "cast": _cast,
    "integer_pow": _power,
}


def _apart(n: int, unit: float) -> float:
    """Returns how far two results of n roundings are apart: each is off by `gamma(n)`."""
    return 2 * n * unit / (1 - n * unit) if n * unit < 1 else np.inf
