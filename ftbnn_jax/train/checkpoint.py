"""Checkpoints of a run, through Orbax: asynchronous, atomic, the latest few and the best one kept."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from ftbnn_jax import report
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.data import sets
from ftbnn_jax.errors import UserError, summary
from ftbnn_jax.host import disk, distributed, paths
from ftbnn_jax.nn import variables as nn_variables
from ftbnn_jax.train import identity
from ftbnn_jax.train.state import TrainState, collections, is_finite


class Checkpoints:
    """The checkpoints in `workdir/checkpoints`; also a context manager that waits for the last save.

    Args:
      workdir: directory of the run; made if need be.
      config: of the run; saved beside the state and compared on restoring.
      split: the training images; what a net must know of them is saved and compared likewise.

    Raises:
      UserError: `workdir` cannot be written.
    """

    def __init__(self, workdir: str, config: TrainConfig, split: sets.Split):
        self._config = config
        self._split = split
        self._experiment = identity.describe(config, split)
        # Whether the weights that the run goes on from were asked for a finite loss.
        self.restored_is_proven = True
        self._directory = paths.absolute(workdir) / "checkpoints"
        disk.make_directory(self._directory, workdir)
        if distributed.is_main():
            _look_at_ratings(self._directory, delete_damaged=True)
        multihost_utils.sync_global_devices("checkpoints are looked at")
        self._manager = _manager(self._directory, config.keep_checkpoints)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._manager.close()
        except Exception as error:
            # An exception that is on its way tells what went wrong first.
            if kind is None:
                raise self._not_written(error) from error

    @property
    def directory(self) -> epath.Path:
        return self._directory

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, or None."""
        return max(self._manager.all_steps(), default=None)

    def best(self) -> tuple[int, float] | None:
        """Returns step and accuracy of the best one, as `load_variables` finds it, or None."""
        step = self._manager.best_step()
        return None if step is None else (step, _accuracy(self._manager.metrics(step)))

    def save(self, state: TrainState, step: int) -> None:
        """Saves `state` under `step` in the background, unless that step is there already.

        Args:
          state: copied to the host before this returns; its loss and gradient are finite.
          step: equals `state.step`.

        Raises:
          UserError: this checkpoint or the one before it could not be written; older ones are intact.
        """
        if step in self._manager.all_steps():
            return
        items = {
            "state": ocp.args.StandardSave(state.to_dict()),
            "experiment": ocp.args.JsonSave({**self._experiment, "proven": True}),
        }
        with self._failures_told():
            self._manager.save(step, args=ocp.args.Composite(**items))

    def rate(self, step: int, accuracy: float) -> None:
        """Writes down, with the checkpoint of a step, what decides which is best.

        A step is saved before it is evaluated, so that the evaluation cannot lose it.

        Args:
          step: of a checkpoint that `save` was asked for.
          accuracy: on the evaluation split.

        Raises:
          UserError: the checkpoint could not be written.
        """
        with self._failures_told():
            self._manager.wait_until_finished()
            if distributed.is_main():
                file = _rating(self._directory, step)
                file.parent.mkdir(exist_ok=True)
                paths.write_whole(file, json.dumps({"accuracy": accuracy}))
            self._reload("a checkpoint is rated")

    def set_aside(self, steps: Sequence[int]) -> None:
        """Moves the checkpoints of these steps to `workdir/checkpoints_damaged`."""
        if not steps:
            return
        with self._failures_told():
            self._manager.wait_until_finished()
        aside = self._directory.with_name("checkpoints_damaged")
        if distributed.is_main():
            aside.mkdir(exist_ok=True)
            for step in steps:
                (aside / str(step)).rmtree(missing_ok=True)
                (self._directory / str(step)).rename(aside / str(step))
        self._reload("damaged checkpoints are set aside")

    def _reload(self, why: str) -> None:
        multihost_utils.sync_global_devices(why)
        self._manager.reload()

    @contextlib.contextmanager
    def _failures_told(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax raises whatever its many layers raise.
            raise self._not_written(error) from error

    def _not_written(self, error: Exception) -> UserError:
        """Says what is there instead of a checkpoint that could not be saved."""
        steps = _steps(self._directory)
        kept = f"the one of step {max(steps)} is intact" if steps else "there is none yet"
        reason = "no space left" if disk.is_full(error) else summary(error)
        return UserError(f"{self._directory}: a checkpoint could not be written ({reason}); {kept}")

    def restore_latest(self, state: TrainState) -> TrainState | None:
        """Returns the state of the newest checkpoint that can be read, or None where there is none.

        A damaged checkpoint is reported, set aside in `workdir/checkpoints_damaged`, and the one before
        it is taken.

        Args:
          state: gives structure, shapes and shardings.

        Raises:
          UserError: the checkpoint is of another architecture, or none of several can be read.
        """
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            path = self._directory / str(step)
            try:
                experiment = identity.complete(
                    self._restore_item(step, "experiment", ocp.args.JsonRestore())
                )
                identity.check(str(path), experiment, self._config, self._split, "resume")
                there = dict(self._manager.item_metadata(step)["state"])
                check_same_shapes(state.variables, _variables(there), f"{path}: ")
                abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state.to_dict())
                restored = TrainState.from_dict(
                    self._restore_item(step, "state", ocp.args.StandardRestore(abstract))
                )
                reason = "" if is_finite(restored) else "holds numbers that are not finite"
            except UserError:
                raise
            except Exception as error:  # Orbax raises whatever its many layers raise.
                reason = f"damaged ({summary(error)})"
            if not reason:
                self.set_aside(damaged)
                # Earlier versions looked at the loss of the weights before these.
                self.restored_is_proven = experiment.get("proven", False)
                identity.warn_of_changes(experiment, self._config, self._split, step)
                return restored
            report.warn(f"{path}: {reason}; falling back to the checkpoint before it")
            damaged.append(step)
        if damaged:
            raise UserError(
                f"{self._directory}: none of its checkpoints ({', '.join(map(str, damaged))}) can be "
                "used; restore one from a copy, or remove the directory to start anew"
            )
        return None

    def _restore_item(self, step: int, name: str, args: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**{name: args}))[name]


def exists(workdir: str) -> bool:
    """Whether a work directory holds a checkpoint."""
    return bool(_steps(paths.absolute(workdir) / "checkpoints"))


def _steps(directory: epath.Path) -> list[int]:
    """Steps whose checkpoints are in a directory, whatever else lies there."""
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit() and p.is_dir())


def newest_experiment(workdir: str) -> dict[str, Any] | None:
    """Returns what is saved beside the newest weights that can be read (see `identity.describe`)."""
    directory = paths.absolute(workdir) / "checkpoints"
    for step in reversed(_steps(directory)):
        reader = ocp.Checkpointer(ocp.JsonCheckpointHandler())
        # A damaged checkpoint is told when the run is to go on from it.
        with contextlib.suppress(Exception), contextlib.closing(reader):
            return identity.complete(reader.restore(directory / str(step) / "experiment"))
    return None


def load_variables(
    workdir: str, which: str = "latest", given: str = ""
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Reads the network of a trained run, without its optimizer.

    Args:
      workdir: directory of the run.
      which: "latest", "best" (highest evaluated accuracy; of equal ones the newest) or a step.
      given: what messages begin with, "config.teacher=runs/1"; "" for --workdir.

    Returns:
      `variables` (`params`, `batch_stats` and the like, NumPy arrays), `experiment` (see
      `identity.describe`) and the step.

    Raises:
      UserError: there is no such checkpoint, it cannot be read, or it holds numbers that are not finite.
    """
    directory = paths.absolute(workdir) / "checkpoints"
    given = given or f"--workdir={workdir}"
    if not _steps(directory):
        raise UserError(f"{given}: holds no checkpoints; train there first")
    _look_at_ratings(directory)
    with contextlib.closing(_manager(directory, keep=None)) as manager:
        step = _chosen_step(manager, which, given)
        try:
            # The state is read into this device, from however many devices and processes it was saved.
            here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            state = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
                dict(manager.item_metadata(step)["state"]),
            )
            items = {"state": ocp.args.StandardRestore(state), "experiment": ocp.args.JsonRestore()}
            restored = manager.restore(step, args=ocp.args.Composite(**items))
            experiment = identity.complete(restored["experiment"])
            variables = jax.device_get(_variables(restored["state"]))
            bad = nn_variables.not_finite(variables)
            reason = f"{bad[0]} holds numbers that are not finite" if bad else ""
        except Exception as error:
            reason = f"damaged ({summary(error)})"
    if reason:
        there = ", ".join(map(str, _steps(directory)))
        raise UserError(f"{given}: checkpoints/{step}: {reason}; there are the steps {there}")
    return variables, experiment, step


def _chosen_step(manager: ocp.CheckpointManager, which: str, given: str) -> int:
    steps = sorted(manager.all_steps())
    if which == "latest":
        return steps[-1]
    if which == "best":
        if (step := manager.best_step()) is None:
            raise UserError(f"{given}: no checkpoint was evaluated; use --checkpoint=latest")
        return step
    if which.isdecimal() and int(which) in steps:
        return int(which)
    raise UserError(
        f"--checkpoint={which}: must be latest, best, or one of {', '.join(map(str, steps))}"
    )


def _variables(state: Mapping[str, Any]) -> dict[str, Any]:
    return {"params": state["params"], **collections(state)}


def check_same_shapes(
    expected: dict[str, Any],
    variables: dict[str, Any],
    where: str = "",
    without: frozenset[str] = frozenset(),
) -> None:
    """Raises a UserError naming the first array of `variables` that is not of the expected shape.

    Args:
      expected: arrays, or their shapes.
      variables: those of a checkpoint.
      where: what the message begins with.
      without: names of those that may differ.
    """
    ours, theirs = (
        {n: list(leaf.shape) for n, leaf in nn_variables.by_name(tree).items() if n not in without}
        for tree in (expected, variables)
    )
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"{where}{name}: {theirs.get(name, [])} in the checkpoint, the network has "
                f"{ours.get(name, [])}"
            )


def _rating(directory: epath.Path, step: int) -> epath.Path:
    """The file where Orbax keeps what it is told of a step's quality."""
    return directory / str(step) / "metrics" / "metrics"


def _look_at_ratings(directory: epath.Path, delete_damaged: bool = False) -> None:
    """Orbax reads all of them before anything else, and would fail for a damaged one."""
    for step in _steps(directory):
        file = _rating(directory, step)
        try:
            if file.exists():
                _accuracy(json.loads(file.read_text()))
        except (ValueError, TypeError, KeyError):
            if not delete_damaged:
                raise UserError(
                    f"{file}: damaged; delete it, and its step counts as not evaluated"
                ) from None
            report.warn(f"{file}: damaged; its step counts as not evaluated")
            file.unlink(missing_ok=True)


def _manager(directory: epath.Path, keep: int | None) -> ocp.CheckpointManager:
    policy = preservation_policy.PreserveAll()
    if keep is not None:
        best = preservation_policy.BestN(
            get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False
        )
        policy = preservation_policy.AnyPreservationPolicy([preservation_policy.LatestN(keep), best])
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=_accuracy,
        read_only=keep is None,
        # A run that was killed while saving, or had no space, leaves some.
        cleanup_tmp_directories=keep is not None,
    )
    handlers = {"state": ocp.StandardCheckpointHandler(), "experiment": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)


def _accuracy(metrics: dict[str, float]) -> float:
    return metrics["accuracy"]
