"""Traces functions and flax modules into programs whose operations name the layer they belong to.

Nothing is computed and no weights are made.
"""

import contextlib
import dataclasses
import sys
import traceback
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.extend import core

from ftbnn_jax.errors import UserError, summary
from ftbnn_jax.graph import values, walk
from ftbnn_jax.nn.network import Network
from ftbnn_jax.ops.conv import convolution, table

# An array, or (height, width, channels) and the like: the shape of one example, in float32.
Input = Any


class Program:
    """A flax module, or a function, applied to inputs of given shapes, as in a training step.

    Attributes:
      variables: its variables, as shapes.
      parameters: path ("stem/conv/kernel") and shape of each trained parameter.
    """

    def __init__(
        self,
        module: Callable[..., Any],
        inputs: Sequence[Input],
        arguments: dict[str, Any],
    ):
        """Traces the initialisation.

        Args:
          module: an unbound flax module; a network; or a function, whose first argument is a tree of
            variables if it has several.
          inputs: its positional inputs: arrays or `jax.ShapeDtypeStruct`s with a batch axis in front,
            or the shape of one example as a tuple of integers, then float32. A function's variables are
            arrays or shapes without a batch.
          arguments: its keyword arguments. A `train` that a module takes is True unless given.
        """
        self._rngs, self._inputs = {}, list(inputs)
        linen = _linen()
        is_module = linen is not None and linen.is_module(module)
        if is_module:
            self.variables, self._rngs, self._apply = linen.ready(module, self.inputs(1), arguments)
        elif isinstance(module, Network):
            self._rngs = jax.eval_shape(lambda: jax.random.key(0))
            self.variables = jax.eval_shape(module.init, self._rngs, *self.inputs(1))
            self._apply = lambda v, key, x: module.run(v, *x, train=True, key=key).logits
        else:
            own, self._inputs = (inputs[:1], inputs[1:]) if len(inputs) > 1 else ((), inputs)
            self.variables = {"params": jax.eval_shape(lambda x: x, own)}
            self._apply = lambda v, rngs, x: module(*v["params"], *x, **arguments)
        leaves, _ = jax.tree_util.tree_flatten_with_path(self.variables.get("params", {}))
        # Where a function's variables are the only argument, their number says nothing.
        skipped = 0 if is_module or isinstance(module, Network) else 1
        self.parameters = [(_path(path[skipped:]), leaf) for path, leaf in leaves]

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
                return self._apply({"params": params, **others}, rngs, arguments["inputs"])

            return function(apply, arguments["params"])

        jaxpr = plainly(lambda: jax.make_jaxpr(program)(arguments))
        flat, _ = jax.tree_util.tree_flatten_with_path(arguments)
        return jaxpr, [path[0].key for path, _ in flat]

    def steps(self) -> walk.Steps:
        """Walks the forward pass of one example, in which each parameter is known by its number."""
        closed, kinds = self.trace(lambda apply, params: apply(params), batch=1)
        numbers = iter(range(len(self.parameters)))
        known = {
            "params": lambda: values.Value(parameters=frozenset([next(numbers)])),
            "inputs": lambda: values.Value(from_input=True),
            "other": values.Value,
        }
        arguments = [
            walk.argument(known[kind](), var.aval)
            for kind, var in zip(kinds, closed.jaxpr.invars, strict=True)
        ]
        return walk.walk(closed, arguments)


@dataclasses.dataclass(frozen=True)
class Traced:
    """An inference function as a program.

    Attributes:
      program: its arguments are the variables' arrays and, last, the images.
      arguments: what is known of each; of the variables, the numbers.
      image: the last of these.
    """

    program: core.ClosedJaxpr
    arguments: tuple[walk.Array, ...]

    @property
    def image(self) -> walk.Array:
        """The images."""
        return self.arguments[-1]

    def run(self, images: jax.Array) -> walk.Steps:
        """Walks the program with images, or tracers for them, of the size that it was traced for."""
        given = dataclasses.replace(self.image, numbers=images)
        return walk.walk(self.program, [*self.arguments[:-1], given], compute=True)


def trace(
    function: Callable[[Any, Any], Any], variables: Any, example: Any, batch: int | None = None
) -> Traced:
    """Traces `function(variables, images)`.

    Args:
      function: of any library; it returns one array.
      variables: any tree of arrays.
      example: images, or a `jax.ShapeDtypeStruct`, with the batch as the first axis.
      batch: how many images the program takes; None for any number of them.

    Raises:
      UserError: the function cannot be traced, or returns something else.
    """
    size = batch
    if size is None:
        (size,) = export.symbolic_shape("batch")
    shape, dtype = tuple(np.shape(example)), getattr(example, "dtype", np.float32)
    if not shape:
        raise UserError("example: images with a batch in front expected, found one number")
    image = jax.ShapeDtypeStruct((size, *shape[1:]), dtype)
    # In which dtype signs are multiplied is a backend's own matter; memory in training depends on it.
    with convolution.signs_as_numbers():
        try:
            make = jax.make_jaxpr(function, return_shape=True)
            program, result = plainly(lambda: make(variables, image))
        except UserError:
            raise
        # Whatever the function raises under tracers, a mistake in it among them.
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)[::-1]
            place = walk.user_line([(frame.filename, frame.lineno) for frame in frames])
            raise UserError(f"{place}: the network cannot be traced: {summary(error)}") from error
    leaves = jax.tree.leaves(result)
    alone = jax.tree.structure(result) == jax.tree.structure(0)
    if not alone or len(result.shape) < 1 or result.shape[0] != size:
        shapes = ", ".join(str(list(leaf.shape)) for leaf in leaves) or "nothing"
        inside = "" if alone or not leaves else f" in a {type(result).__name__}"
        raise UserError(
            f"the network returns {shapes}{inside}; one array is expected, its first axis the images'"
        )
    flat, _ = jax.tree_util.tree_flatten_with_path(variables)
    known = []
    for (path, leaf), var in zip(flat, program.jaxpr.invars, strict=False):
        name = _path(path).removeprefix("params/")
        known.append(walk.argument(values.constant(leaf), var.aval, jnp.asarray(leaf), name))
    known.append(walk.argument(values.Value(from_input=True), program.jaxpr.invars[-1].aval))
    return Traced(program, tuple(known))


def _linen() -> ModuleType | None:
    """Returns what knows flax's modules, where flax has been imported: nobody has a module otherwise."""
    if "flax.linen" not in sys.modules:
        return None
    from ftbnn_jax.graph import linen

    return linen


def plainly(make: Callable[[], Any]) -> Any:
    """Returns a traced program in which layers are named and no backend's own algorithm is chosen."""
    linen = _linen()
    names = linen.named() if linen else contextlib.nullcontext()
    with names, table.forced("direct", "transposed", "transposed"):
        made = make()
    if _linen() is linen:
        return made
    # The function itself has imported flax just now: its layers are still to be named.
    jax.clear_caches()
    return plainly(make)


def _path(keys: Sequence[Any]) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _is_shape(x: Input) -> bool:
    return isinstance(x, (tuple, list)) and all(isinstance(n, int) for n in x)
