"""Batch norms in their inference form, as variables of their own.

A program that folds batch norm itself may round in the last place differently from another that does,
and a last place can decide a sign further on. So export folds once, here, and the proof that a packed
net computes what its training graph computes gives both the same numbers.
"""

from typing import Any

import numpy as np

from ftbnn_jax.nn import strategies
from ftbnn_jax.nn.spec import ResNetSpec
from ftbnn_jax.ops import batch_norm, binary


def fold_batch_norms(variables: dict[str, Any], spec: ResNetSpec) -> dict[str, Any]:
    """Folds every batch norm of a network, and the scaling factors in front of it if there are any.

    Args:
      variables: `params` and `batch_stats`.
      spec: of the network.

    Returns:
      The collection `folded`: float32 `multiplier` and `offset`, `[C]`, in the place of each batch
      norm's statistics. `nn.blocks.BatchNorm` takes them where they are among the variables.
    """
    return _fold(variables["params"], variables["batch_stats"], spec)


def _fold(params: Any, stats: Any, spec: ResNetSpec) -> dict[str, Any]:
    folded = {}
    for name, inner in stats.items():
        if "mean" not in inner:
            folded[name] = _fold(params[name], inner, spec)
            continue
        # Explicit scaling factors stand between a binary convolution and its batch norm.
        input_scale = None
        if name == "bn" and "kernel_0" in params["conv"]:
            input_scale = params.get("channel_scale")
            if spec.scaling in strategies.FROM_WEIGHTS:
                groups = range(len(params["conv"]))
                input_scale = binary.weight_scale([params["conv"][f"kernel_{g}"] for g in groups])
        multiplier, offset = batch_norm.fold(
            params[name]["scale"],
            params[name]["bias"],
            inner["mean"],
            inner["var"],
            spec.batch_norm_epsilon,
            input_scale,
        )
        folded[name] = {"multiplier": np.asarray(multiplier), "offset": np.asarray(offset)}
    return folded
