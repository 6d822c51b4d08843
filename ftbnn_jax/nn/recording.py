"""What goes into and comes out of parts of a network."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.extend import core

from ftbnn_jax import extras
from ftbnn_jax.nn.blocks import BinaryConv
from ftbnn_jax.ops import quantizers

with extras.named():
    from flax import linen as nn

T = TypeVar("T")


def calls(
    model: nn.Module, variables: dict[str, Any], x: jax.Array, kind: type[nn.Module]
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Runs a network in inference mode and records its modules of one kind.

    Args:
      model: the network.
      variables: its collections.
      x: standardised images `[N, H, W, C]`.
      kind: of module: `blocks.BinaryConv`, or `nn.Dense` for the classifier.

    Returns:
      What each reads and gives, by the first part of its path: the block's name.
    """
    found = {}

    def record(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if isinstance(context.module, kind) and context.method_name == "__call__":
            found[context.module.path[0]] = (args[0], output)
        return output

    with nn.intercept_methods(record):
        model.apply(variables, x, train=False)
    return found


def _gives_zeros(module: nn.Module) -> bool:
    three = quantizers.ThreeValuedSign
    return isinstance(module, BinaryConv) and isinstance(module.input_quantizer, three)


def with_zeros(function: Callable[..., T], *arguments: Any) -> tuple[T, dict[str, jax.Array]]:
    """Calls a function, and records how much of what enters binary convolutions has a sign of 0.

    Args:
      function: calls flax modules. What it calls inside of a transformation such as `remat` is left out.
      *arguments: of the function.

    Returns:
      What it returns; and for every `BinaryConv` whose signs may be 0 the share of each image, float32
      `[N]`, by its path, "block1_1/conv".
    """
    found = {}
    outside = core.get_opaque_trace_state(convention="flax")

    def record(call, args, kwargs, context):
        conv = context.module
        # An array from inside of a transformation means nothing outside.
        here = core.get_opaque_trace_state(convention="flax") == outside
        if here and _gives_zeros(conv) and context.method_name == "__call__":
            zero = ~(quantizers.is_positive(args[0]) | quantizers.is_negative(args[0]))
            found["/".join(conv.path)] = jnp.mean(zero, range(1, zero.ndim), jnp.float32)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        return function(*arguments), found
