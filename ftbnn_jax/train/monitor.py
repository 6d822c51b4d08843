"""What is looked at in the training beside loss and accuracy: learning rate, flipped signs, slopes.

Nothing of it is computed in a step: the signs of a network are kept, a byte each, for as long as the one
step lasts whose flips are counted, so that they are part of no checkpoint.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftbnn_jax.nn import variables
from ftbnn_jax.ops import quantizers


class Monitor:
    """Looks at a step from both sides.

    Args:
      schedule: the learning rate as a function of the steps made before.
      binary: names of the binary kernels among the parameters, as `variables.by_name` has them.
    """

    def __init__(self, schedule: optax.Schedule, binary: frozenset[str]):
        self._schedule = jax.jit(schedule)
        self._binary = binary

    def before(self, params: Any) -> dict[str, jax.Array]:
        """Returns the signs of the binary kernels, True for +1, which a step is going to change."""
        return _signs(self._kernels(params))

    def after(self, signs: dict[str, jax.Array], params: Any, step: int) -> dict[str, float]:
        """Returns what the step that made `params` has done.

        Args:
          signs: from `before`.
          params: after the step.
          step: its number, from 1 on.

        Returns:
          `learning_rate`, that of the step, and, of a network with binary kernels, `flip_rate`: the
          share of all their weights whose sign the step changed. `flip_rate/LAYER` is that of one
          layer, all its groups together.
        """
        # The shortest number that is this float32: 0.01 and not 0.009999999776.
        found = {"learning_rate": float(str(np.float32(self._schedule(step - 1))))}
        counts = jax.device_get(_flips(signs, self._kernels(params)))
        layers: dict[str, list[int]] = {}
        for name, count in counts.items():
            for layer in ("", name.rpartition("/")[0] or name):
                sums = layers.setdefault(layer, [0, 0])
                sums[0] += int(count)
                sums[1] += signs[name].size
        for layer, (flipped, size) in layers.items():
            found[f"flip_rate/{layer}" if layer else "flip_rate"] = flipped / size
        return found

    def _kernels(self, params: Any) -> dict[str, jax.Array]:
        return {name: x for name, x in variables.by_name(params).items() if name in self._binary}


def slopes(params: Any) -> dict[str, np.ndarray]:
    """Returns the learnt slopes of PReLU and FPReLU by their names, float32 `[channels]` each."""
    found = {name: x for name, x in variables.by_name(params).items() if name.endswith("slope")}
    return jax.device_get(found)


@jax.jit
def _signs(kernels: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: quantizers.is_positive(kernel) for name, kernel in kernels.items()}


@jax.jit
def _flips(signs: dict[str, jax.Array], kernels: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.sum(signs[name] != now) for name, now in _signs(kernels).items()}
