"""BinaryDuo's step from a coupled ternary network to a binary one that computes the same."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import variables as nn_variables
from ftbnn_jax.nn.spec import Architecture


def decouple(coupled: Architecture, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the variables of the network with `ternary="decoupled"` that computes the same.

    A convolution of the mean of two signs is the mean of the convolutions of each with the same weights
    (Kim et al., 2020b), so every latent kernel is there twice, one behind the other along the channels
    that it reads. All sums are whole numbers and the mean halves them, so nothing is rounded otherwise.

    Args:
      coupled: the network, with `ternary="coupled"`.
      variables: `params` and `batch_stats`, as it was trained.

    Raises:
      UserError: the network is no coupled one.
    """
    if coupled.ternary != "coupled":
        raise UserError("only 'coupled' comes apart", f"model.ternary={coupled.ternary!r}")
    kernels = {f"params/{plan.name}/conv/kernel_0" for plan in coupled.plan()}

    def twice(name: str, leaf: Any) -> Any:
        return np.concatenate([leaf, leaf], axis=2) if name in kernels else leaf

    return nn_variables.changed(variables, twice)
