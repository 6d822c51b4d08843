"""The compiled training and evaluation steps, over a mesh with one axis, `data`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ftbnn_jax.config import TrainConfig
from ftbnn_jax.errors import UserError
from ftbnn_jax.ops import image
from ftbnn_jax.train.state import TrainState, make_model, zero_sums


def make_mesh(config: TrainConfig) -> Mesh:
    """Returns the mesh over all devices.

    Raises:
      UserError: the batch does not divide over them.
    """
    devices = jax.device_count()
    if config.batch_size % devices:
        lower = config.batch_size // devices * devices
        nearest = f"{lower} or {lower + devices}" if lower else f"{devices}"
        raise UserError(
            f"config.batch_size={config.batch_size}: does not divide over {devices} devices; "
            f"{nearest} would"
        )
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: split over its first axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of the state: a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def make_train_step(
    config: TrainConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """Compiles one step of training.

    Batch statistics and gradients are those of the whole batch over all devices.

    Args:
      config: gives the model, label smoothing and the input's scale.
      optimizer: updates the parameters.
      mesh: from `make_mesh`.

    Returns:
      A function of the state, which is donated, and a batch (`image`, `label`) that returns the new
      state and a copy of its `sums` and `nonfinite_step`.
    """
    model = make_model(config)

    def loss_fn(params, batch_stats, images, labels):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
        targets = optax.smooth_labels(jax.nn.one_hot(labels, config.num_classes), config.label_smoothing)
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        return loss, (logits, updates["batch_stats"])

    def train_step(state, batch):
        images = image.standardize(
            batch["image"], config.image_size, config.pixel_mean, config.pixel_std
        )
        labels = batch["label"]
        (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state.batch_stats, images, labels
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
        first_seen = ~finite & (state.nonfinite_step < 0)
        restart = state.step % config.log_every == 0
        kept = jax.tree.map(lambda old, zero: jnp.where(restart, zero, old), state.sums, zero_sums())
        state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
            sums={
                "loss": kept["loss"] + loss * len(labels),
                "correct": kept["correct"] + jnp.sum(jnp.argmax(logits, -1) == labels, dtype=jnp.int32),
                "count": kept["count"] + len(labels),
            },
            nonfinite_step=jnp.where(first_seen, state.step + 1, state.nonfinite_step),
        )
        return state, {**state.sums, "nonfinite_step": state.nonfinite_step}

    return jax.jit(
        train_step,
        in_shardings=(replicated(mesh), batch_sharding(mesh)),
        out_shardings=(replicated(mesh), replicated(mesh)),
        donate_argnums=0,
    )


def make_eval_step(config: TrainConfig, mesh: Mesh) -> Callable[[Any, Any, Any], dict[str, jax.Array]]:
    """Compiles the evaluation of one batch.

    Args:
      config: gives the model and the input's scale.
      mesh: from `make_mesh`.

    Returns:
      A function of params, batch statistics and a batch (`image`, `label`, `weight`) that returns the
      sums `loss`, `correct`, `correct_top5` and `count` over the images of weight 1.
    """
    model = make_model(config)

    def eval_step(params, batch_stats, batch):
        images = image.standardize(
            batch["image"], config.image_size, config.pixel_mean, config.pixel_std
        )
        labels, weight = batch["label"], batch["weight"]
        logits = model.apply({"params": params, "batch_stats": batch_stats}, images, train=False)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        _, best = jax.lax.top_k(logits, min(5, config.num_classes))
        hits = best == labels[:, None]
        return {
            "loss": jnp.sum(loss * weight),
            "correct": jnp.sum(hits[:, 0] * weight),
            "correct_top5": jnp.sum(hits.any(-1) * weight),
            "count": jnp.sum(weight),
        }

    return jax.jit(
        eval_step,
        in_shardings=(replicated(mesh), replicated(mesh), batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )
