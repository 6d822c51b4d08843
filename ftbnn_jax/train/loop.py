"""Training of one config in one work directory, by all processes of a run together."""

import collections
import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from ftbnn_jax import networks, report
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.data import automatic, sets
from ftbnn_jax.data import batches as batches_lib
from ftbnn_jax.errors import UserError
from ftbnn_jax.host import disk, distributed, interrupt, lock, machine, paths
from ftbnn_jax.nn import decoupling
from ftbnn_jax.nn import variables as nn_variables
from ftbnn_jax.train import (
    checkpoint,
    distillation,
    evaluation,
    identity,
    metrics,
    monitor,
    opening,
    optimizer,
    pictures,
)
from ftbnn_jax.train import state as state_lib
from ftbnn_jax.train import step as step_lib

# Steps that may be dispatched before the oldest has finished: enough to keep the device busy, few
# enough that batches do not pile up in its memory.
_STEPS_IN_FLIGHT = 2


@machine.in_32_bits
def train(config: TrainConfig, workdir: str) -> None:
    """Trains `config` in `workdir`, from its newest checkpoint if it holds one.

    Writes checkpoints, `config.json`, `metrics.jsonl`, `times.jsonl` and what `config.loggers` names,
    and ends with a table.

    Args:
      config: the experiment.
      workdir: directory of the run, the same for all processes; made if need be.

    Raises:
      UserError: config, data or checkpoint are of no use, another process works in `workdir`, or the
        loss is not finite; the last good checkpoint is kept.
      interrupt.Interrupted: SIGINT, SIGTERM or a notice of preemption asked for the end; the state of
        that step is saved.
    """
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(interrupt.StopRequest())
        stack.enter_context(interrupt.PreemptionNotice())
        stack.enter_context(disk.errors_are_told(workdir))
        progress = metrics.Progress("reading")
        stack.callback(progress.close)
        with stop.expendable("stopped before a step was made; nothing is lost"):
            mesh = step_lib.make_mesh(config)
            sharding = step_lib.batch_sharding(mesh)
            left_to_data = config.from_data
            config, train_split = opening.open_training(config, workdir)
            eval_split = sets.open_split(config, train=False, workdir=workdir)
            num_steps = batches_lib.num_train_steps(config, train_split.num_examples)
            kernels = networks.weights(config, train_split.channels)
            tx = optimizer.make(config, num_steps, kernels)

            # From here on the directory is this run's alone.
            hold = distributed.on_main(lambda: stack.enter_context(lock.held(workdir)))
            checkpoints = stack.enter_context(checkpoint.Checkpoints(workdir, config, train_split))

            teacher = distillation.load(config, train_split)
            start = _restore_or_init(config, train_split, tx, mesh, checkpoints)
            if (frozen := optimizer.check_frozen(config, start.params)) and distributed.is_main():
                report.console.print(frozen)
            first_step = int(start.step)
            if first_step > num_steps:
                raise UserError(
                    f"is at step {first_step}, past the {num_steps} asked for", f"--workdir={workdir}"
                )

            if distributed.is_main():
                write_config(workdir, config)
                for split in (train_split, eval_split):
                    split.save_index(workdir)
                if left_to_data:
                    report.console.print(automatic.summary(config, train_split, eval_split))
            writer = metrics.MetricsWriter(
                workdir, first_step, distributed.is_main(), config.loggers, config.to_dict()
            )
            stack.callback(writer.close)

            # Both are compiled beforehand, as long as there is nothing that a signal could lose.
            with progress.doing("compiling"):
                train_step = _compile_train_step(
                    config, train_split, tx, mesh, num_steps, teacher, start
                )
                eval_step = _compile_eval_step(config, eval_split, mesh, start)
            progress.begin(first_step, num_steps, config.batch_size)

        batches = batches_lib.train_batches(
            train_split,
            config,
            first_step=first_step,
            last_step=num_steps,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        values = _Run(
            config=config,
            first_step=first_step,
            num_steps=num_steps,
            eval_every=config.eval_every
            or batches_lib.steps_per_epoch(config, train_split.num_examples),
            stop=stop,
            hold=hold,
            checkpoints=checkpoints,
            writer=writer,
            progress=progress,
            batches=batches_lib.to_device(batches, sharding),
            train_step=train_step,
            evaluate=lambda now: evaluation.run(
                config, eval_step, now.variables, eval_split, sharding, stop.reached
            ),
            monitor=monitor.Monitor(
                optimizer.learning_rate(config, num_steps),
                frozenset(kernels.binary),
            ),
            class_names=eval_split.class_names,
            state=start,
        ).train()
        best = checkpoints.best()
    if not distributed.is_main():
        return
    accuracies = writer.values("eval", "accuracy")
    resumed = f" (from {first_step:,})" if first_step else ""
    report.print_table(
        "Trained",
        [
            ("steps", f"{num_steps:,}{resumed}"),
            *([("training loss, last logged", f"{values['loss']:.4f}")] if values else []),
            ("test images", f"{eval_split.num_examples:,}"),
            ("test accuracy", f"{accuracies[-1][1]:.2%}"),
            *([("best test accuracy", f"{best[1]:.2%} at step {best[0]:,}")] if best else []),
            ("time", metrics.format_seconds(time.perf_counter() - started)),
            ("checkpoints", checkpoints.directory),
        ],
    )


@dataclasses.dataclass
class _Run:
    """A run of which everything is ready; `train` makes its steps.

    Attributes:
      config: the experiment.
      first_step: that it goes on from.
      num_steps: that it ends with.
      eval_every: steps between evaluations.
      stop: asked before every step.
      hold: of the directory, in the process that writes there.
      checkpoints: of the directory.
      writer: of metrics.
      progress: that is shown.
      batches: on the devices, from `first_step` on.
      train_step: makes the next state, and sums, of a state, which it destroys, and a batch.
      evaluate: gives the metrics of a state, or None where it was asked to stop.
      monitor: looks at the steps that are logged.
      class_names: of the evaluation's images.
      state: after the last step.
      batch: the one of the last step, on which `_save` tries the new weights.
    """

    config: TrainConfig
    first_step: int
    num_steps: int
    eval_every: int
    stop: interrupt.StopRequest
    hold: lock.Held | None
    checkpoints: checkpoint.Checkpoints
    writer: metrics.MetricsWriter
    progress: metrics.Progress
    batches: Iterator[dict[str, jax.Array]]
    train_step: Callable[..., tuple[state_lib.TrainState, dict[str, jax.Array]]]
    evaluate: Callable[[state_lib.TrainState], evaluation.Evaluated | None]
    monitor: monitor.Monitor
    class_names: Sequence[str]
    state: state_lib.TrainState
    batch: dict[str, jax.Array] = dataclasses.field(default_factory=dict)

    def train(self) -> dict[str, float]:
        """Makes the steps that are missing; returns the training metrics last logged."""
        config = self.config
        values: dict[str, float] = {}
        in_flight: collections.deque[Any] = collections.deque()
        step = self.first_step
        # An evaluation that was interrupted comes first; step 0 is not worth one.
        evaluate_due = step > 0 and self._is_evaluated_after(step)
        evaluate_due = evaluate_due and not distributed.from_main(self.writer.was_evaluated(step))
        while True:
            stopping = self.stop.reached()
            save_due = config.checkpoint_every and step % config.checkpoint_every == 0
            if step > self.first_step and (save_due or evaluate_due or stopping):
                # What is computed until then is time of the steps.
                jax.block_until_ready(self.state)
                with self.progress.pause("saving"):
                    self._save(step)
            if evaluate_due and not stopping:
                with self.progress.pause("evaluating"):
                    self._evaluate(step)
                stopping = self.stop.reached()
            if stopping:
                raise interrupt.Interrupted(f"stopped at step {step} of {self.num_steps}, state saved")
            if step == self.num_steps:
                return values
            with self.progress.doing("reading"):
                self.batch = next(self.batches)
            step += 1
            is_logged = step % config.log_every == 0 or step == self.num_steps
            signs = self.monitor.before(self.state.params) if is_logged else {}
            self.state, sums = self.train_step(self.state, self.batch)
            in_flight.append(sums)
            if len(in_flight) > _STEPS_IN_FLIGHT:
                jax.block_until_ready(in_flight.popleft())
            self.progress.advance(step)
            if is_logged:
                self._check_finite(sums)
                values = self._log_training(step, sums, signs)
            evaluate_due = self._is_evaluated_after(step)

    def _is_evaluated_after(self, step: int) -> bool:
        return step % self.eval_every == 0 or step == self.num_steps

    def _log_training(
        self, step: int, sums: dict[str, jax.Array], signs: dict[str, jax.Array]
    ) -> dict[str, float]:
        sums = jax.device_get(sums)
        count = int(sums["count"])
        values = {"loss": float(sums["loss"]) / count, "accuracy": int(sums["correct"]) / count}
        times = self.progress.train(step, values)
        looked = self.monitor.after(signs, self.state.params, step)
        details = {name: looked.pop(name) for name in list(looked) if "/" in name}
        values |= {"gradient_norm": float(sums["gradient_norm"]), **looked}
        self.writer.write("train", step, values, details, times)
        return values

    def _save(self, step: int) -> None:
        """Saves the state, once its own weights have given a finite loss and gradient.

        The step that made it has asked that of the weights before: a step that was far too long leaves
        weights that are finite, and that no training can go on from.
        """
        if self.hold:
            self.hold.check()
        # A step destroys the state that it is given.
        copied = state_lib.copy(self.state)
        self._check_finite(self.train_step(copied, self.batch)[1])
        if not state_lib.is_finite(self.state):
            raise self._diverged(f"step {step}: weights or statistics are not finite")
        self.checkpoints.save(self.state, step)

    def _check_finite(self, sums: dict[str, jax.Array]) -> None:
        step = int(sums["nonfinite_step"])
        if step < 0:
            return
        what = f"step {step}: loss or gradient is not finite"
        if self.first_step == step - 1 > 0:
            # No rate can help the step after a checkpoint, whose loss is of the weights in it.
            if self.checkpoints.restored_is_proven:
                raise UserError(
                    f"{what} with the weights of {self.checkpoints.directory / str(self.first_step)}; "
                    "undo what has changed, or remove that directory to go on from the one before it"
                )
            self.checkpoints.set_aside([self.first_step])
        raise self._diverged(what)

    def _diverged(self, what: str) -> UserError:
        good = self.checkpoints.latest_step()
        kept = "there is no checkpoint yet" if good is None else f"rolled back to the one of step {good}"
        return UserError(
            f"{what}; stopped, {kept} in {self.checkpoints.directory}; a lower config.learning_rate may "
            "help"
        )

    def _evaluate(self, step: int) -> None:
        """Evaluates, writes and shows, unless that is interrupted."""
        begun = time.perf_counter()
        found = self.evaluate(self.state)
        if found is None:
            return
        values = found.values
        if not math.isfinite(values["loss"]):
            self.checkpoints.set_aside([step])
            raise self._diverged(f"step {step}: the evaluation's loss is {values['loss']}")
        self.checkpoints.rate(step, values["accuracy"])
        shown = {k: values[k] for k in ("loss", "accuracy", "accuracy_top5")}
        zeros = {f"zero_inputs/{layer}": share for layer, share in found.zero_inputs.items()}
        self.writer.write("eval", step, shown, zeros, {"seconds": time.perf_counter() - begun})
        self.writer.histograms("eval", step, monitor.slopes(self.state.params))
        if found.examples:
            picture = pictures.draw(found.examples, self.class_names)
            self.writer.image("eval", step, "predictions", picture)
        self.progress.line(
            f"step {step}  test accuracy {values['accuracy']:.2%}  test loss {values['loss']:.4f}"
        )


def _compile_train_step(config, split, tx, mesh, num_steps, teacher, start) -> Callable[..., Any]:
    """Returns the training step, which takes a state like `start` and a batch."""
    step = step_lib.make_train_step(config, tx, mesh, num_steps, teacher)
    constants = [jax.device_put(teacher.variables, step_lib.replicated(mesh))] if teacher else []
    if start.step < num_steps:
        batch = batches_lib.train_batch_shapes(split, config)
        step = step.lower(_shapes(start), batch, *constants).compile()
    return lambda current, batch: step(current, batch, *constants)


def _compile_eval_step(config, split, mesh, start) -> Callable[..., Any]:
    like = _shapes(start)
    batch = batches_lib.eval_batch_shapes(split, config)
    step = step_lib.make_eval_step(config, mesh)
    return step.lower(like.variables, batch).compile()


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _restore_or_init(config, split, tx, mesh, checkpoints) -> state_lib.TrainState:
    """Weights come from the newest checkpoint, else from another run's, else from the seed."""
    sharding = step_lib.replicated(mesh)
    init = jax.jit(
        lambda: state_lib.init(config, split.channels, tx),
        out_shardings=sharding,
        # Optimising the random number generators' code takes far longer than running it once.
        compiler_options={"xla_backend_optimization_level": 0},
    )
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), jax.eval_shape(init)
    )
    restored = checkpoints.restore_latest(abstract)
    if restored is None:
        return _start_from(config, split, init(), sharding) if config.start_from else init()
    report.console.print(f"resuming from step {int(restored.step)} in {checkpoints.directory}")
    return restored


def _start_from(
    config: TrainConfig,
    split: sets.Split,
    fresh: state_lib.TrainState,
    sharding: jax.sharding.Sharding,
) -> state_lib.TrainState:
    """Returns the state before the first step with the weights that another run ended with."""
    workdir = config.start_from
    where = f"config.start_from={workdir}"
    variables, experiment, step = checkpoint.load_variables(workdir, given=where)
    identity.check(where, experiment, config, split, "start_from")
    text = f"starting from the weights of step {step} in {workdir}"
    if _comes_apart(config, experiment):
        coupled = TrainConfig.from_dict(experiment["config"]).model
        variables = decoupling.decouple(coupled, variables)
        text += "; its ternary activations come apart"
    new = frozenset()
    if other := _other_classifier(config, split, experiment):
        new = networks.classifier(config, split.channels)
        if not new:
            raise UserError(
                f"was for other classes ({other}), and no parameter's shape depends on "
                "config.num_classes, which a get_network that reads it would change",
                where,
            )
        total = len(jax.tree.leaves(fresh.params))
        kept = total - sum(name.startswith("params/") for name in new)
        text += f"; classifier of {other}; {kept} of {total} parameters taken over"
    checkpoint.check_same_shapes(fresh.variables, variables, f"{where}: ", new)
    theirs = nn_variables.by_name(variables)
    variables = nn_variables.changed(
        fresh.variables, lambda name, leaf: leaf if name in new else theirs[name]
    )
    if distributed.is_main():
        report.console.print(text)
    variables = jax.device_put(variables, sharding)
    return fresh.replace(params=variables["params"], collections=state_lib.collections(variables))


def _comes_apart(config: TrainConfig, experiment: dict[str, Any]) -> bool:
    """Whether a coupled ternary network begins a decoupled one."""
    before, now = experiment["config"]["model"].get("ternary"), config.model.to_dict().get("ternary")
    return (before, now) == ("coupled", "decoupled")


def _other_classifier(config: TrainConfig, split: sets.Split, experiment: dict[str, Any]) -> str:
    """Says why a classifier has to begin anew; "" where it does not."""
    before, now = experiment["config"]["num_classes"], config.num_classes
    if before != now:
        return f"{before} classes replaced by a new one of {now}"
    if other := identity.other_classes(experiment["class_names"], split.class_names):
        return f"{now} classes replaced by a new one ({other})"
    return ""


def write_config(workdir: str, config: TrainConfig) -> None:
    """Writes `config.json`, by which others know what was trained there."""
    path = paths.absolute(workdir) / "config.json"
    paths.write_whole(path, json.dumps(config.to_dict(), indent=2, allow_nan=False) + "\n")
