"""Memory that the activations of one training step take, found from the differentiated program.

Definition: the bytes of all arrays that autodiff hands from the forward pass (up to the module's
output) to the backward pass, for one more image in the batch. Parameters, and what is computed from
them alone, do not count, since they do not grow with the batch. It is what the program asks for; a
compiler may still recompute some of it.
"""

import math

import jax
from jax.extend import core

from ftbnn_jax.budget import walk
from ftbnn_jax.budget.program import Program

# A batch of a large prime: an array holds one part per image exactly if its size is a multiple of it.
_BATCH = 100_003

# Operations whose result is their operand: both handed on is one array in memory.
_ALIASES = frozenset(["name", "copy", "stop_gradient", "optimization_barrier"])


def activation_bytes(program: Program) -> dict[str, int]:
    """Returns the bytes per image that each layer leaves for the backward pass.

    The network's input itself, if it is needed there, stands under "".
    """

    def residuals(apply, params):
        _, backward = jax.vjp(apply, params)
        return jax.tree.leaves(backward)

    closed, _ = program.trace(residuals, _BATCH)
    jaxpr = closed.jaxpr
    source, layers = {}, {}
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in _ALIASES:
            for operand, result in zip(eqn.invars, eqn.outvars, strict=True):
                if isinstance(operand, core.Var):
                    source[result] = source.get(operand, operand)
        layer = walk.layer_of(eqn)
        layers.update(dict.fromkeys(eqn.outvars, layer))
    saved = {source.get(v, v) for v in jaxpr.outvars if isinstance(v, core.Var)}
    total: dict[str, int] = {}
    for var in [*jaxpr.invars, *layers]:
        size = math.prod(var.aval.shape)
        if var in saved and size and size % _BATCH == 0:
            layer = layers.get(var, "")
            total[layer] = total.get(layer, 0) + size // _BATCH * var.aval.dtype.itemsize
    return total
