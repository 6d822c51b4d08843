"""Training and evaluation of one config in one work directory."""

import collections
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ftbnn_jax import report
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.errors import UserError
from ftbnn_jax.train import checkpoint, datasets, input_pipeline, interrupt, metrics, optimizer, state
from ftbnn_jax.train import step as step_lib

# Steps that may be dispatched before the oldest has finished: enough to keep the device busy, few
# enough that batches do not pile up in its memory.
_STEPS_IN_FLIGHT = 2


def train(config: TrainConfig, workdir: str) -> None:
    """Trains `config` in `workdir`, from its newest checkpoint if it holds one.

    Writes checkpoints, `config.json`, `metrics.jsonl` and TensorBoard events, and ends with a table.

    Args:
      config: the experiment.
      workdir: directory of the run; made if need be.

    Raises:
      UserError: config, data or checkpoint are of no use, or the loss is not finite; the last good
        checkpoint is kept.
      interrupt.Interrupted: SIGINT or SIGTERM asked for the end; the state of that step is saved.
    """
    started = time.perf_counter()
    mesh = step_lib.make_mesh(config)
    train_split = datasets.open_split(config, train=True)
    eval_split = datasets.open_split(config, train=False)
    num_steps = input_pipeline.num_train_steps(config, train_split.num_examples)
    eval_every = config.eval_every or input_pipeline.steps_per_epoch(config, train_split.num_examples)
    tx = optimizer.make(config, num_steps)
    channels = train_split.channels
    checkpoints = checkpoint.Checkpoints(workdir, config, channels, train_split.class_names)
    with checkpoints, interrupt.StopRequest() as stop:
        train_state, first_step = _restore_or_init(config, channels, tx, mesh, checkpoints)
        if first_step > num_steps:
            raise UserError(
                f"--workdir={workdir}: is at step {first_step}, past the {num_steps} asked for"
            )
        _write_config(workdir, config)
        writer = metrics.MetricsWriter(workdir, first_step)
        progress = metrics.Progress(first_step, num_steps, config.batch_size)
        train_step = step_lib.make_train_step(config, tx, mesh)
        eval_step = step_lib.make_eval_step(config, mesh)
        sharding = step_lib.batch_sharding(mesh)
        batches = input_pipeline.to_device(
            input_pipeline.train_batches(
                train_split,
                config,
                first_step=first_step,
                last_step=num_steps,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            ),
            sharding,
        )
        values: dict[str, float] = {}
        in_flight: collections.deque[Any] = collections.deque()
        step = first_step
        try:
            # An evaluation that was interrupted comes first; step 0 is not worth one.
            evaluate_due = step > 0 and (step % eval_every == 0 or step == num_steps)
            evaluate_due = evaluate_due and not writer.was_evaluated(step)
            while True:
                accuracy = None
                if evaluate_due:
                    accuracy = _evaluate_during_training(
                        config,
                        eval_step,
                        train_state,
                        eval_split,
                        sharding,
                        step,
                        writer,
                        progress,
                        stop,
                    )
                save_due = config.checkpoint_every and step % config.checkpoint_every == 0
                if step > first_step and (save_due or evaluate_due or stop.requested):
                    _check_finite(train_state, checkpoints.directory)
                    checkpoints.save(train_state, step, accuracy)
                if stop.requested:
                    raise interrupt.Interrupted(f"stopped at step {step} of {num_steps}, state saved")
                if step == num_steps:
                    break
                train_state, sums = train_step(train_state, next(batches))
                step += 1
                in_flight.append(sums)
                if len(in_flight) > _STEPS_IN_FLIGHT:
                    jax.block_until_ready(in_flight.popleft())
                progress.advance(step)
                if step % config.log_every == 0 or step == num_steps:
                    values = _log_training(step, sums, writer, progress)
                    _check_finite(train_state, checkpoints.directory)
                evaluate_due = step % eval_every == 0 or step == num_steps
        finally:
            progress.close()
            writer.close()
    accuracies = writer.values("eval", "accuracy")
    best_step, best = max(accuracies, key=lambda pair: pair[1])
    report.print_table(
        "Trained",
        [
            ("steps", f"{num_steps:,}" + (f" (from {first_step:,})" if first_step else "")),
            *([("training loss, last logged", f"{values['loss']:.4f}")] if values else []),
            ("test images", f"{eval_split.num_examples:,}"),
            ("test accuracy", f"{accuracies[-1][1]:.2%}"),
            ("best test accuracy", f"{best:.2%} at step {best_step:,}"),
            ("time", metrics.format_seconds(time.perf_counter() - started)),
            ("checkpoints", checkpoints.directory),
        ],
    )


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
    values = _evaluate(
        config,
        step_lib.make_eval_step(config, mesh),
        variables["params"],
        variables["batch_stats"],
        split,
        step_lib.batch_sharding(mesh),
        lambda: False,
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


def _restore_or_init(config, channels, tx, mesh, checkpoints) -> tuple[state.TrainState, int]:
    """Weights come from the newest checkpoint, else from the seed."""
    sharding = step_lib.replicated(mesh)
    init = jax.jit(
        lambda: state.init(config, channels, tx),
        out_shardings=sharding,
        # Runs once: optimising the random number generators' code takes far longer than running it.
        compiler_options={"xla_backend_optimization_level": 0},
    )
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), jax.eval_shape(init)
    )
    restored = checkpoints.restore_latest(abstract)
    if restored is None:
        return init(), 0
    report.console.print(f"resuming from step {int(restored.step)} in {checkpoints.directory}")
    return restored, int(restored.step)


def _write_config(workdir: str, config: TrainConfig) -> None:
    path = pathlib.Path(workdir) / "config.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    os.replace(temporary, path)


def _log_training(step, sums, writer, progress) -> dict[str, float]:
    sums = jax.device_get(sums)
    count = int(sums["count"])
    values = {"loss": float(sums["loss"]) / count, "accuracy": int(sums["correct"]) / count}
    rate = progress.train(step, values)
    writer.write("train", step, values, **({"images_per_second": rate} if rate else {}))
    return values


def _check_finite(train_state, directory) -> None:
    step = int(train_state.nonfinite_step)
    if step >= 0:
        raise UserError(
            f"step {step}: loss or gradient is not finite; stopped, with the checkpoints in {directory} "
            "from before it kept; a lower config.learning_rate may help"
        )


def _evaluate_during_training(
    config, eval_step, train_state, split, sharding, step, writer, progress, stop
) -> float | None:
    """Evaluates, writes and shows; returns the accuracy, or None where it was interrupted."""
    progress.describe("evaluate")
    values = _evaluate(
        config,
        eval_step,
        train_state.params,
        train_state.batch_stats,
        split,
        sharding,
        lambda: stop.requested,
    )
    progress.describe("train")
    progress.pause()
    if values is None:
        return None
    writer.write("eval", step, {k: values[k] for k in ("loss", "accuracy", "accuracy_top5")})
    progress.line(f"step {step}  test accuracy {values['accuracy']:.2%}  test loss {values['loss']:.4f}")
    return values["accuracy"]


def _evaluate(
    config: TrainConfig,
    eval_step: Callable[..., dict[str, jax.Array]],
    params: Any,
    batch_stats: Any,
    split: datasets.Split,
    sharding: jax.sharding.Sharding,
    stopped: Callable[[], bool],
) -> dict[str, float] | None:
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
