"""What goes into and comes out of parts of a network."""

from typing import Any

import jax
from flax import linen as nn

from ftbnn_jax.nn.blocks import BinaryConv
from ftbnn_jax.nn.resnet import ResNet


def binary_convolutions(
    model: ResNet, variables: dict[str, Any], x: jax.Array
) -> tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
    """Runs a network in inference mode and records its binary convolutions.

    Args:
      model: the network.
      variables: its collections.
      x: standardised images `[N, H, W, C]`.

    Returns:
      Logits `[N, num_classes]`, and for each block's name the real activations that its binary
      convolution reads, `[N, H, W, I]`, and the integers that it gives, `[N, H', W', O]`.
    """
    found = {}

    def record(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if isinstance(context.module, BinaryConv) and context.method_name == "__call__":
            found[context.module.path[0]] = (args[0], output)
        return output

    with nn.intercept_methods(record):
        logits = model.apply(variables, x, train=False)
    return logits, found


def classifier_input(model: ResNet, variables: dict[str, Any], x: jax.Array) -> jax.Array:
    """Returns what the classifier reads, `[N, features]`, of standardised images `[N, H, W, C]`."""
    found = []

    def record(call, args, kwargs, context):
        if context.module.path == ("head",):
            found.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        model.apply(variables, x, train=False)
    return found[0]
