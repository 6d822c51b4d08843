"""Memory that the activations of one training step take, found from the differentiated program.

Definition: the bytes of all arrays that autodiff hands from the forward pass (up to the module's
output) to the backward pass, for one more image in the batch. Parameters, constants, and what is
computed from these alone do not count. It is what the program asks for; a compiler may still recompute
some of it.
"""

import math

import jax

from ftbnn_jax.graph import walk
from ftbnn_jax.graph.trace import Program
from ftbnn_jax.graph.values import Value

# A batch of a large prime: an array holds one part per image exactly if its size is a multiple of it.
_BATCH = 100_003


def activation_bytes(program: Program) -> dict[str, int]:
    """Returns the bytes per image that each layer leaves for the backward pass.

    The network's input itself, if it is needed there, stands under "".
    """

    def residuals(apply, params):
        _, backward = jax.vjp(apply, params)
        return jax.tree.leaves(backward)

    closed, kinds = program.trace(residuals, _BATCH)
    arguments = [
        walk.argument(Value(from_input=kind == "inputs"), var.aval)
        for kind, var in zip(kinds, closed.jaxpr.invars, strict=True)
    ]
    layers = dict.fromkeys(arguments, "")
    steps, results = walk.collect(walk.walk(closed, arguments))
    for step in steps:
        for array in step.results:
            # What only hands an operand on leaves no second array in memory.
            layers.setdefault(array, step.layer)
    total: dict[str, int] = {}
    for array in dict.fromkeys(results):
        # An array of constants as large as the batch is no memory: it is made where it is needed.
        size = math.prod(array.shape) if array.value.from_input else 0
        if size and size % _BATCH == 0:
            layer = layers[array]
            total[layer] = total.get(layer, 0) + size // _BATCH * array.dtype.itemsize
    return total
