"""What goes into and comes out of parts of a network."""

from typing import Any

import jax

from ftbnn_jax import extras
from ftbnn_jax.nn.blocks import BinaryBlock, RealBlock
from ftbnn_jax.nn.resnet import ResNet

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
