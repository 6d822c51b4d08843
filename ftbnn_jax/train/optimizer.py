"""Adam, its learning rate schedules, and weight decay by kinds of parameters (section 3)."""

import re
from typing import Any

import jax
import optax

from ftbnn_jax.config import TrainConfig
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import weights
from ftbnn_jax.nn import variables as nn_variables


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


def make(config: TrainConfig, num_steps: int, kernels: weights.Weights) -> optax.GradientTransformation:
    """Returns Adam with an L2 term in the gradient, as PyTorch's `Adam(weight_decay=...)` has it.

    The term is on the kinds of parameters that `config.decayed` names. Parameters that `config.freeze`
    names get no update, and no state.

    Args:
      config: gives the numbers.
      num_steps: length of the training.
      kernels: of the network; `networks.weights` finds them.

    Raises:
      UserError: the warm-up is too long.
    """
    adam = optax.chain(
        optax.add_decayed_weights(
            config.weight_decay,
            lambda params: weights.mask(decayed_names(config, kernels, params), params),
        ),
        optax.scale_by_adam(),
        optax.scale_by_learning_rate(learning_rate(config, num_steps)),
    )
    if not config.freeze:
        return adam

    def labels(params):
        frozen = weights.mask(frozen_names(config, params), params)
        return jax.tree.map(lambda is_frozen: "frozen" if is_frozen else "trained", frozen)

    return optax.multi_transform({"trained": adam, "frozen": optax.set_to_zero()}, labels)


def decayed_names(config: TrainConfig, kernels: weights.Weights, params: Any) -> frozenset[str]:
    """Returns which parameters get weight decay.

    Weights are told apart by the products that read them in the traced program. Whatever stands beside
    the weights of a product, in the same module, is its bias; slopes are known by their names; all else
    scales or shifts, as norms do.

    Args:
      config: names the kinds.
      kernels: of the network.
      params: its parameters.
    """
    kinds = dict.fromkeys(kernels.binary, "binary") | dict.fromkeys(kernels.real, "real")
    modules = {name.rpartition("/")[0] for name in kinds}

    def kind(name: str) -> str:
        module, _, own = name.rpartition("/")
        beside = "biases" if module in modules else "norms"
        return kinds.get(name) or ("slopes" if own.endswith("slope") else beside)

    return frozenset(n for n in nn_variables.by_name(params) if kind(n) in config.decayed)


def frozen_names(config: TrainConfig, tree: Any) -> frozenset[str]:
    """Returns which arrays of a tree `config.freeze` names, by their names in the tree."""
    if not config.freeze:
        return frozenset()
    return frozenset(filter(re.compile(config.freeze).search, nn_variables.by_name(tree)))


def check_frozen(config: TrainConfig, params: Any) -> str:
    """Returns what is frozen, in words; "" for nothing.

    Raises:
      UserError: `config.freeze` names no parameter, or all of them.
    """
    if not config.freeze:
        return ""
    where = f"config.freeze={config.freeze!r}"
    names, count = nn_variables.by_name(params), len(frozen_names(config, params))
    if not count:
        examples = ", ".join(list(names)[:3])
        raise UserError(f"found in the name of no parameter; there are {examples} and others", where)
    if count == len(names):
        raise UserError(f"freezes all {count} parameters; nothing would be trained", where)
    return f"{count} of {len(names)} parameters do not change ({where})"
