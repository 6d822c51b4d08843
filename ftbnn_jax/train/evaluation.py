"""Accuracy and loss on the evaluation split, every image counted once whatever the number of hosts."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftbnn_jax import report
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.data import automatic, sets
from ftbnn_jax.data import batches as batches_lib
from ftbnn_jax.errors import UserError
from ftbnn_jax.train import checkpoint, identity, pictures
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
    config = automatic.from_saved(config, experiment["config"])
    where = f"--workdir={workdir}"
    identity.check(where, experiment, config)
    mesh = step_lib.make_mesh(config)
    split = sets.open_split(config, train=False, workdir=workdir)
    identity.check(where, experiment, config, split)
    variables = jax.device_put(variables, step_lib.replicated(mesh))
    values = run(
        config,
        step_lib.make_eval_step(config, mesh),
        variables,
        split,
        step_lib.batch_sharding(mesh),
    ).values
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


# Images that are shown with what the network makes of them.
_NUM_EXAMPLES = 16


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What an evaluation has found.

    Attributes:
      values: `loss`, `accuracy`, `accuracy_top5` and `count`.
      zero_inputs: the share of what enters a binary convolution whose sign is 0, by layer.
      examples: up to 16 images from all over the split, of those that this process has read; None where
        there are none.
    """

    values: dict[str, float]
    zero_inputs: dict[str, float] = dataclasses.field(default_factory=dict)
    examples: pictures.Examples | None = None


def run(
    config: TrainConfig,
    eval_step: Callable[..., tuple[dict[str, jax.Array], jax.Array]],
    variables: Any,
    split: sets.Split,
    sharding: jax.sharding.Sharding,
    stopped: Callable[[], bool] = lambda: False,
) -> Evaluated | None:
    """Evaluates, with all processes of the run.

    Args:
      config: the experiment.
      eval_step: from `step.make_eval_step`.
      variables: of the network.
      split: evaluation images.
      sharding: of a batch.
      stopped: asked before every batch; True ends the evaluation.

    Returns:
      What was found, or None where it was ended.

    Raises:
      UserError: there is no image that can be read.
    """
    batches = batches_lib.eval_batches(
        split, config, process_index=jax.process_index(), process_count=jax.process_count()
    )
    kept = _Kept(math.ceil(split.num_examples / config.batch_size))
    total = None
    for number, batch in enumerate(batches_lib.to_device(kept.watch(batches), sharding)):
        if stopped():
            return None
        # While the devices compute, the next batch is made ready, and no more than that one: batches
        # would pile up in their memory, and XLA's CPU devices wait for each other for ever.
        jax.block_until_ready(total)
        sums, predictions = eval_step(variables, batch)
        kept.predicted(number, predictions)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    total = jax.device_get(total)
    count = float(total["count"]) if total else 0.0
    if not count:
        raise UserError(
            f"config.eval_split={config.eval_split!r}: none of the images is readable, and there are "
            f"{split.num_examples}"
        )
    values = {
        "loss": float(total["loss"]) / count,
        "accuracy": float(total["correct"]) / count,
        "accuracy_top5": float(total["correct_top5"]) / count,
        "count": int(count),
    }
    zeros = {layer: float(share) / count for layer, share in total["zero_inputs"].items()}
    return Evaluated(values, zeros, kept.examples())


class _Kept:
    """A few images of batches that are spread over an evaluation, and what was made of them.

    Sets can come sorted by their classes, so that the first images of all are of one class.
    """

    def __init__(self, num_batches: int):
        self._every = math.ceil(num_batches / _NUM_EXAMPLES)
        self._each = math.ceil(_NUM_EXAMPLES / math.ceil(num_batches / self._every))
        self._batches: dict[int, dict[str, np.ndarray]] = {}
        self._predictions: dict[int, jax.Array] = {}

    def watch(self, batches: Iterable[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
        """Yields the batches, this process's share of each."""
        for number, batch in enumerate(batches):
            if number % self._every == 0:
                self._batches[number] = {name: x[: self._each].copy() for name, x in batch.items()}
            yield batch

    def predicted(self, number: int, predictions: jax.Array) -> None:
        """Takes the likeliest classes in a batch, of the images of all processes."""
        if number in self._batches:
            self._predictions[number] = predictions

    def examples(self) -> pictures.Examples | None:
        """Returns what was kept, less the blank images that fill up batches."""
        parts = []
        for number, batch in self._batches.items():
            shards = {
                x.index[0].start or 0: x.data for x in self._predictions[number].addressable_shards
            }
            here = np.concatenate([shards[start] for start in sorted(shards)])
            there = batch["weight"] > 0
            parts.append([x[there] for x in (batch["image"], batch["label"], here[: len(there)])])
        images, labels, predictions = (
            np.concatenate(x)[:_NUM_EXAMPLES] for x in zip(*parts, strict=True)
        )
        return pictures.Examples(images, labels, predictions) if len(labels) else None
