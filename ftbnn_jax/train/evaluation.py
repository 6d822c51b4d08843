"""Accuracy and loss on the evaluation split, every image counted once whatever the number of hosts."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ftbnn_jax import report
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.data import batches as batches_lib
from ftbnn_jax.data import sets
from ftbnn_jax.errors import UserError
from ftbnn_jax.train import checkpoint, identity
from ftbnn_jax.train import step as step_lib


def evaluate(config: TrainConfig, workdir: str, which: str = "latest") -> dict[str, float]:
    """Evaluates a checkpoint on the evaluation split and prints a table.

    Args:
      config: the experiment.
      workdir: directory of the run.
      which: as in `checkpoint.load_variables`.

    Returns:
      `loss`, `accuracy`, `accuracy_top5` and `count`.

    Raises:
      UserError: there is no such checkpoint, it was trained to see or to mean something else, or its
        loss is not finite.
    """
    variables, experiment, step = checkpoint.load_variables(workdir, which)
    where = f"--workdir={workdir}"
    identity.check(where, experiment, config)
    mesh = step_lib.make_mesh(config)
    split = sets.open_split(config, train=False)
    identity.check(where, experiment, config, split)
    variables = jax.device_put(variables, step_lib.replicated(mesh))
    values = run(
        config,
        step_lib.make_eval_step(config, mesh),
        variables["params"],
        variables["batch_stats"],
        split,
        step_lib.batch_sharding(mesh),
    )
    if not math.isfinite(values["loss"]):
        raise UserError(
            f"{where}: step {step}: the loss is {values['loss']}, since the training has diverged; take "
            "an earlier --checkpoint, or train anew"
        )
    report.print_table(
        "Evaluated",
        [
            ("step", f"{step:,}"),
            ("test images", f"{values['count']:,}"),
            ("top-1 accuracy", f"{values['accuracy']:.2%}"),
            ("top-5 accuracy", f"{values['accuracy_top5']:.2%}"),
            ("loss", f"{values['loss']:.4f}"),
        ],
    )
    return values


def run(
    config: TrainConfig,
    eval_step: Callable[..., dict[str, jax.Array]],
    params: Any,
    batch_stats: Any,
    split: sets.Split,
    sharding: jax.sharding.Sharding,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Evaluates, with all processes of the run.

    Args:
      config: the experiment.
      eval_step: from `step.make_eval_step`.
      params: of the network.
      batch_stats: of the network.
      split: evaluation images.
      sharding: of a batch.
      stopped: asked before every batch; True ends the evaluation.

    Returns:
      `loss`, `accuracy`, `accuracy_top5` and `count`, or None where it was ended.

    Raises:
      UserError: there is no image that can be read.
    """
    batches = batches_lib.eval_batches(
        split, config, process_index=jax.process_index(), process_count=jax.process_count()
    )
    total = None
    for batch in batches_lib.to_device(batches, sharding):
        if stopped():
            return None
        # While the devices compute, the next batch is made ready, and no more than that one: batches
        # would pile up in their memory, and XLA's CPU devices wait for each other for ever.
        jax.block_until_ready(total)
        sums = eval_step(params, batch_stats, batch)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    total = jax.device_get(total)
    count = float(total["count"]) if total else 0.0
    if not count:
        raise UserError(
            f"config.eval_split={config.eval_split!r}: none of the images is readable, and there are "
            f"{split.num_examples}"
        )
    return {
        "loss": float(total["loss"]) / count,
        "accuracy": float(total["correct"]) / count,
        "accuracy_top5": float(total["correct_top5"]) / count,
        "count": int(count),
    }
