"""Accuracy and loss on the evaluation split, every image counted once whatever the number of hosts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ftbnn_jax import report
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.train import datasets, input_pipeline
from ftbnn_jax.train import step as step_lib


def evaluate(config: TrainConfig, variables: dict[str, Any], step: int) -> dict[str, float]:
    """Evaluates trained variables on the evaluation split and prints a table.

    Args:
      config: the experiment.
      variables: `params` and `batch_stats`.
      step: of the checkpoint; only shown.

    Returns:
      `loss`, `accuracy`, `accuracy_top5` and `count`.
    """
    mesh = step_lib.make_mesh(config)
    split = datasets.open_split(config, train=False)
    variables = jax.device_put(variables, step_lib.replicated(mesh))
    values = run(
        config,
        step_lib.make_eval_step(config, mesh),
        variables["params"],
        variables["batch_stats"],
        split,
        step_lib.batch_sharding(mesh),
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
    split: datasets.Split,
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
    """
    batches = input_pipeline.eval_batches(
        split, config, process_index=jax.process_index(), process_count=jax.process_count()
    )
    total = None
    for batch in input_pipeline.to_device(batches, sharding):
        if stopped():
            return None
        sums = eval_step(params, batch_stats, batch)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    total = jax.device_get(total)
    count = float(total["count"])
    return {
        "loss": float(total["loss"]) / count,
        "accuracy": float(total["correct"]) / count,
        "accuracy_top5": float(total["correct_top5"]) / count,
        "count": int(count),
    }
