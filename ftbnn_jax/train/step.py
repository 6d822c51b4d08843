"""The compiled training and evaluation steps, over a mesh with one axis, `data`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ftbnn_jax import networks
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import weights
from ftbnn_jax.nn import recording
from ftbnn_jax.nn.network import Network
from ftbnn_jax.ops import image
from ftbnn_jax.train import distillation
from ftbnn_jax.train.optimizer import frozen_names
from ftbnn_jax.train.state import TrainState, zero_sums


def make_mesh(config: TrainConfig) -> Mesh:
    """Returns the mesh over all devices.

    Raises:
      UserError: the batch does not divide over them.
    """
    devices = jax.device_count()
    parts = devices * config.accumulation_steps
    if config.batch_size % parts:
        lower = config.batch_size // parts * parts
        nearest = f"{lower} or {lower + parts}" if lower else f"{parts}"
        times = f" in {config.accumulation_steps} parts" if config.accumulation_steps > 1 else ""
        raise UserError(
            f"config.batch_size={config.batch_size}: does not divide over {devices} devices{times}; "
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
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    num_steps: int | None = None,
    teacher: distillation.Teacher | None = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Compiles one step of training.

    Gradients are those of the whole batch over all devices; so are the batch statistics, unless
    `config.batch_norm` wants each device to use those of its own share.

    Args:
      config: gives the model, label smoothing and the input's scale.
      optimizer: updates the parameters.
      mesh: from `make_mesh`.
      num_steps: length of the training; the evolving gradients need it.
      teacher: what the network learns from beside the labels.

    Returns:
      A function of the state, which is donated, and a batch (`image`, `label`), and of the teacher's
      variables where there is one, that returns the new state and a copy of its `sums` and
      `nonfinite_step`, and `gradient_norm`: the root of the sum of all squares, before weight decay.
    """
    network = networks.make(config)
    gradients = _make_gradients(config, network, mesh, teacher)
    if network.uses_progress and not num_steps:
        raise ValueError("num_steps: needed by a network that depends on the progress")

    def train_step(state, batch, teacher_variables=None):
        images, labels = batch["image"], batch["label"]
        # The share depends on the step alone, so that a run that goes on has the same gradients.
        progress = state.step / num_steps if network.uses_progress else 1.0
        # Likewise the random numbers.
        key = jax.random.fold_in(jax.random.key(config.seed), state.step) if network.uses_keys else None
        loss, correct, collections, grads = gradients(
            state.params, state.collections, images, labels, progress, key, teacher_variables
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        squares = _sum_of_squares(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(squares)
        first_seen = ~finite & (state.nonfinite_step < 0)
        restart = state.step % config.log_every == 0
        kept = jax.tree.map(lambda old, zero: jnp.where(restart, zero, old), state.sums, zero_sums())
        state = TrainState(
            step=state.step + 1,
            params=_unless_frozen(config, optax.apply_updates(state.params, updates), state.params),
            collections={
                name: _unless_frozen(config, tree, state.collections[name])
                for name, tree in collections.items()
            },
            opt_state=opt_state,
            sums={
                "loss": kept["loss"] + loss * len(labels),
                "correct": kept["correct"] + correct,
                "count": kept["count"] + len(labels),
            },
            nonfinite_step=jnp.where(first_seen, state.step + 1, state.nonfinite_step),
        )
        sums = {**state.sums, "nonfinite_step": state.nonfinite_step}
        return state, {**sums, "gradient_norm": jnp.sqrt(squares)}

    constants = [replicated(mesh)] if teacher else []
    return jax.jit(
        train_step,
        in_shardings=(replicated(mesh), batch_sharding(mesh), *constants),
        out_shardings=(replicated(mesh), replicated(mesh)),
        donate_argnums=0,
    )


def _sum_of_squares(grads: Any) -> jax.Array:
    """Finite where all gradients are, up to 1e19; Adam squares them as well."""
    # Over all but the last axis first, which costs little and rounds little.
    sums = [jnp.sum(jnp.square(g), tuple(range(g.ndim - 1))) for g in jax.tree.leaves(grads)]
    return jnp.stack([jnp.sum(s) for s in sums]).sum()


def _unless_frozen(config: TrainConfig, after: Any, before: Any) -> Any:
    """Returns a tree after a step, with what does not change as it was."""
    kept = weights.mask(frozen_names(config, before), before)
    return jax.tree.map(lambda keep, a, b: b if keep else a, kept, after, before)


# A function of params, other collections, images, labels, the share of the training that is done, a key
# for random numbers and the teacher's variables; it returns mean loss, int32 number of correct images,
# new collections and the gradients of the mean loss.
_Gradients = Callable[..., tuple[jax.Array, jax.Array, Any, Any]]


def _make_gradients(
    config: TrainConfig, network: Network, mesh: Mesh, teacher: distillation.Teacher | None
) -> _Gradients:
    def loss_fn(params, collections, images, labels, progress, key, teacher_variables):
        x = image.standardize(images, config.mean, config.pixel_std)
        # What is frozen has no gradient, and XLA leaves out what computes it.
        params = _unless_frozen(config, params, jax.lax.stop_gradient(params))
        variables = {"params": params, **collections}
        logits, updates, blocks = network.run(variables, x, True, progress, key)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, config.num_classes), config.label_smoothing)
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        if teacher:
            loss = config.label_weight * loss + distillation.loss(
                config, teacher, teacher_variables, images, logits, blocks, network.stages
            )
        correct = jnp.sum(jnp.argmax(logits, -1) == labels, dtype=jnp.int32)
        return loss, (correct, updates)

    def gradients(*arguments):
        (loss, (correct, collections)), grads = jax.value_and_grad(loss_fn, has_aux=True)(*arguments)
        return loss, correct, collections, grads

    if config.batch_norm == "global":
        return _accumulated(gradients, config.accumulation_steps, mesh.size)
    local = _accumulated(gradients, config.accumulation_steps, 1)

    def averaged(params, collections, images, labels, progress, key, *others):
        if key is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index("data"))
        found = local(params, collections, images, labels, progress, key, *others)
        loss, correct, collections, grads = found
        loss, collections, grads = jax.lax.pmean((loss, collections, grads), "data")
        return loss, jax.lax.psum(correct, "data"), collections, grads

    copies, shares = PartitionSpec(), PartitionSpec("data")
    return jax.shard_map(
        averaged,
        mesh=mesh,
        in_specs=(copies, copies, shares, shares, copies, copies, copies),
        out_specs=copies,
        # With the check, JAX sums the gradients of what all devices share by itself, once more.
        check_vma=False,
    )


def _accumulated(gradients: _Gradients, parts: int, devices: int) -> _Gradients:
    """Goes through a batch in `parts`, one after the other, each spread over `devices`."""
    if parts == 1:
        return gradients

    def split(x):
        # Every device keeps the images that it has.
        x = x.reshape(devices, parts, -1, *x.shape[1:])
        return jnp.swapaxes(x, 0, 1).reshape(parts, -1, *x.shape[3:])

    def accumulated(params, collections, images, labels, progress, key, *others):
        def add(sums, part):
            *sums, collections = sums
            images, labels, number = part
            own = None if key is None else jax.random.fold_in(key, number)
            loss, correct, collections, grads = gradients(
                params, collections, images, labels, progress, own, *others
            )
            return (*jax.tree.map(jnp.add, sums, [loss, correct, grads]), collections), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        start = (jnp.zeros(()), jnp.zeros((), jnp.int32), zeros, collections)
        batches = split(images), split(labels), jnp.arange(parts)
        (loss, correct, grads, collections), _ = jax.lax.scan(add, start, batches)
        return loss / parts, correct, collections, jax.tree.map(lambda g: g / parts, grads)

    return accumulated


def make_eval_step(
    config: TrainConfig, mesh: Mesh
) -> Callable[[Any, Any], tuple[dict[str, jax.Array], jax.Array]]:
    """Compiles the evaluation of one batch.

    Args:
      config: gives the model and the input's scale.
      mesh: from `make_mesh`.

    Returns:
      A function of the network's variables and a batch (`image`, `label`, `weight`) that returns the
      sums `loss`, `correct`, `correct_top5` and `count` over the images of weight 1, and `zero_inputs`,
      by layer, of the share of what enters a binary convolution whose sign is 0; and the likeliest class
      of each image, int32 `[n]`, where the image is.
    """
    # There is no backward pass that could compute anything again.
    network = networks.make(dataclasses.replace(config, remat="none"))

    def eval_step(variables, batch):
        images = image.standardize(batch["image"], config.mean, config.pixel_std)
        labels, weight = batch["label"], batch["weight"]
        logits, zeros = recording.with_zeros(network, variables, images)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        _, best = jax.lax.top_k(logits, min(5, config.num_classes))
        hits = best == labels[:, None]
        sums = {
            "loss": jnp.sum(loss * weight),
            "correct": jnp.sum(hits[:, 0] * weight),
            "correct_top5": jnp.sum(hits.any(-1) * weight),
            "count": jnp.sum(weight),
            "zero_inputs": {layer: jnp.sum(share * weight) for layer, share in zeros.items()},
        }
        return sums, best[:, 0]

    return jax.jit(
        eval_step,
        in_shardings=(replicated(mesh), batch_sharding(mesh)),
        out_shardings=(replicated(mesh), batch_sharding(mesh)),
    )
