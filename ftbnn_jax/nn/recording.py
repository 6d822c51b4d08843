"""What goes into and comes out of parts of a network."""

from typing import Any

import jax
from flax import linen as nn

from ftbnn_jax.nn.blocks import BinaryBlock, BinaryConv, RealBlock
from ftbnn_jax.nn.resnet import ResNet


def binary_convolutions(
    model: ResNet, variables: dict[str, Any], x: jax.Array
) -> tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array]], jax.Array]:
    """Runs a network in inference mode and records its binary convolutions.

    Args:
      model: the network.
      variables: its collections.
      x: standardised images `[N, H, W, C]`.

    Returns:
      Logits `[N, num_classes]`; for each block's name the real activations that its binary convolution
      reads, `[N, H, W, I]`, and the integers that it gives, `[N, H', W', O]`; and the output of the
      last block, `[N, H", W", C]`.
    """
    found, outputs = {}, []

    def record(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if isinstance(context.module, BinaryConv) and context.method_name == "__call__":
            found[context.module.path[0]] = (args[0], output)
        if isinstance(context.module, BinaryBlock) and context.method_name == "__call__":
            outputs.append(output)
        return output

    with nn.intercept_methods(record):
        logits = model.apply(variables, x, train=False)
    return logits, found, outputs[-1]


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


def block_outputs(
    model: ResNet,
    variables: dict[str, Any],
    x: jax.Array,
    train: bool = False,
    progress: jax.Array | float = 1.0,
) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    """Runs a network and keeps what comes out of its blocks.

    Args:
      model: the network.
      variables: its collections.
      x: standardised images `[N, H, W, C]`.
      train: as for the network.
      progress: as for the network.

    Returns:
      Logits `[N, num_classes]`; the output `[N, H', W', C']` of each block by its name; and, in
      training, the new `batch_stats`.
    """
    logits, state = model.apply(
        variables,
        x,
        train,
        progress,
        capture_intermediates=lambda module, _: isinstance(module, BinaryBlock | RealBlock),
        mutable=["batch_stats", "intermediates"] if train else ["intermediates"],
    )
    found = {name: seen["__call__"][0] for name, seen in state.pop("intermediates").items()}
    return logits, found, state
