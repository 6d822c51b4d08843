"""Adam, its learning rate schedules, and weight decay that leaves binary kernels alone (section 3)."""

from typing import Any

import jax
import optax

from ftbnn_jax.config import TrainConfig
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import variables


def learning_rate(config: TrainConfig, num_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    Args:
      config: gives the schedule's name and numbers.
      num_steps: length of the training, warm-up included.

    Raises:
      UserError: the warm-up leaves no step for the schedule.
    """
    rate, warmup = config.learning_rate, config.warmup_steps
    if warmup >= num_steps:
        raise UserError(f"config.warmup_steps={warmup}: must be below the {num_steps} steps of the run")
    if config.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(rate, num_steps - warmup)
    elif config.schedule == "multistep":
        drops: dict[int, float] = {}
        for boundary in config.schedule_boundaries:
            # Several boundaries fall on one step of a short run.
            step = round(boundary * num_steps) - warmup
            drops[step] = drops.get(step, 1.0) * config.schedule_factor
        schedule = optax.piecewise_constant_schedule(rate, drops)
    else:
        schedule = optax.constant_schedule(rate)
    if not warmup:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), schedule], [warmup])


def decay_mask(params: Any, binary_weights: bool = True) -> Any:
    """Marks the real kernels: True for those of convolutions, classifier and gates.

    Latent weights are named `kernel_0`, `kernel_1`, ...; they get True as well where the spec takes them
    as they are. Batch norm, slopes, scaling factors and biases get False.
    """

    def is_real(path, _):
        name = path[-1].key
        return name.endswith("kernel") or (not binary_weights and name.startswith("kernel_"))

    return jax.tree_util.tree_map_with_path(is_real, params)


def binary_kernels(config: TrainConfig, params: Any) -> frozenset[str]:
    """Returns the names of the latent weights that become signs: "block1_1/conv/kernel_0"."""
    if not config.model.binary_weights:
        return frozenset()
    return frozenset(n for n in variables.by_name(params) if n.rpartition("/")[2].startswith("kernel_"))


def make(config: TrainConfig, num_steps: int) -> optax.GradientTransformation:
    """Returns Adam with an L2 term in the gradient, as PyTorch's `Adam(weight_decay=...)` has it."""
    return optax.chain(
        optax.add_decayed_weights(
            config.weight_decay, lambda params: decay_mask(params, config.model.binary_weights)
        ),
        optax.scale_by_adam(),
        optax.scale_by_learning_rate(learning_rate(config, num_steps)),
    )
