"""What goes into and comes out of parts of a network."""

from typing import Any

import jax

from ftbnn_jax import extras

with extras.named():
    from flax import linen as nn


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
