"""Traces a flax module into programs whose operations name the module that they belong to.

Nothing is computed and no weights are made: all arrays are shapes.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import DenyList

from ftbnn_jax.graph import walk
from ftbnn_jax.ops import marks
from ftbnn_jax.ops.conv import table

_NORMS = (nn.BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm, nn.RMSNorm)

# An array, or (height, width, channels) and the like: the shape of one example, in float32.
Input = Any


class Program:
    """A flax module applied to inputs of given shapes, as in a training step.

    Attributes:
      variables: its variables, as shapes.
      parameters: path ("stem/conv/kernel") and shape of each trained parameter.
    """

    def __init__(self, module: nn.Module, inputs: Sequence[Input], arguments: dict[str, Any]):
        """Traces the initialisation.

        Args:
          module: an unbound flax module.
          inputs: its positional inputs: arrays or `jax.ShapeDtypeStruct`s with a batch axis in front,
            or the shape of one example as a tuple of integers, then float32.
          arguments: its keyword arguments. A `train` that it takes is True unless given.
        """
        if "train" in inspect.signature(type(module).__call__).parameters:
            arguments = {"train": True, **arguments}
        self._module, self._inputs, self._arguments = module, list(inputs), arguments
        self._rngs = {name: jax.eval_shape(lambda: jax.random.key(0)) for name in ("params", "dropout")}
        init = lambda rngs, *x: module.init(rngs, *x, **arguments)  # noqa: E731
        self.variables = jax.eval_shape(init, self._rngs, *self.inputs(1))
        flat, _ = jax.tree_util.tree_flatten_with_path(self.variables.get("params", {}))
        self.parameters = [("/".join(str(k.key) for k in path), leaf) for path, leaf in flat]

    def inputs(self, batch: int) -> list[Any]:
        """Returns the inputs' shapes with a batch of `batch` examples."""

        def with_batch(x):
            return jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)

        return [
            jax.ShapeDtypeStruct((batch, *x), jnp.float32)
            if _is_shape(x)
            else jax.tree.map(with_batch, x)
            for x in self._inputs
        ]

    def trace(self, function: Callable[..., Any], batch: int) -> Any:
        """Traces `function(apply, params)`, where `apply(params)` is the module's forward pass.

        Returns:
          `(jaxpr, names)`: the program, closed over nothing, and for each of its arguments "params",
          "inputs" or "other".
        """
        params = self.variables.get("params", {})
        others = {name: tree for name, tree in self.variables.items() if name != "params"}
        arguments = {
            "params": params,
            "other": (others, self._rngs),
            "inputs": self.inputs(batch),
        }

        def program(arguments):
            others, rngs = arguments["other"]

            def apply(params):
                return self._module.apply(
                    {"params": params, **others},
                    *arguments["inputs"],
                    **self._arguments,
                    rngs=rngs,
                    mutable=DenyList("params"),
                )[0]

            with nn.intercept_methods(_name_scopes):
                return function(apply, arguments["params"])

        # What a network costs does not depend on how a backend computes its convolutions.
        with table.forced("direct", "transposed", "transposed"):
            jaxpr = jax.make_jaxpr(program)(arguments)
        flat, _ = jax.tree_util.tree_flatten_with_path(arguments)
        return jaxpr, [path[0].key for path, _ in flat]


def _is_shape(x: Input) -> bool:
    return isinstance(x, (tuple, list)) and all(isinstance(n, int) for n in x)


def _name_scopes(next_function, args, kwargs, context):
    """Puts a module's operations into a scope of its path, and marks what flax's own modules do."""
    # The separator of scopes must not stand in one.
    with jax.named_scope(walk.SCOPE + ":".join(context.module.path)):
        y = next_function(*args, **kwargs)
        if context.method_name == "__call__":
            if isinstance(context.module, _NORMS):
                return marks.mark(y, marks.BATCH_NORM)
            if isinstance(context.module, nn.PReLU):
                return marks.mark(y, marks.ACTIVATION)
    return y
