"""Memory that the activations of one training step take, found from the differentiated program.

Definition: the bytes of all arrays that autodiff hands from the forward pass (up to the module's
output) to the backward pass, for one more image in the batch. Parameters, constants, and what is
computed from these alone do not count. It is what the program asks for; a compiler may still recompute
some of it.
"""

import math

import jax
from jax.extend import core

from ftbnn_jax.graph import walk
from ftbnn_jax.graph.trace import Program
from ftbnn_jax.graph.values import Value

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

    closed, kinds = program.trace(residuals, _BATCH)
    arguments = [Value(from_input=kind == "inputs") for kind in kinds]
    values = walk.Walk().run(closed, arguments)
    jaxpr = closed.jaxpr
    source: dict[core.Var, core.Var] = {}
    layers = dict.fromkeys(jaxpr.invars, "")
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in _ALIASES:
            for operand, result in zip(eqn.invars, eqn.outvars, strict=True):
                if isinstance(operand, core.Var):
                    source[result] = source.get(operand, operand)
        layers.update(dict.fromkeys(eqn.outvars, walk.layer_of(eqn)))
    # An array of constants as large as the batch is no memory: it is made where it is needed.
    saved = {
        source.get(var, var): None
        for var, value in zip(jaxpr.outvars, values, strict=True)
        if isinstance(var, core.Var) and value.from_input
    }
    total: dict[str, int] = {}
    for var in saved:
        size = math.prod(var.aval.shape)
        if size and size % _BATCH == 0:
            layer = layers[var]
            total[layer] = total.get(layer, 0) + size // _BATCH * var.aval.dtype.itemsize
    return total
