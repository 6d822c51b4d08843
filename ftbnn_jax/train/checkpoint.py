"""Checkpoints of a run, through Orbax: asynchronous, atomic, the latest few and the best one kept."""

import atexit
import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

import ftbnn_jax
from ftbnn_jax import paths, report
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.errors import UserError, summary
from ftbnn_jax.nn.spec import ResNetSpec
from ftbnn_jax.train import distributed
from ftbnn_jax.train.state import TrainState

# What must not change between a checkpoint and the run that continues it.
_ARCHITECTURE = ("model", "num_classes")


class Checkpoints:
    """The checkpoints in `workdir/checkpoints`; also a context manager that waits for the last save.

    Args:
      workdir: directory of the run; made if need be.
      config: of the run; saved beside the state and compared on restoring.
      channels: of the images; saved likewise.
      class_names: one name a class; saved likewise.

    Raises:
      UserError: `workdir` cannot be written.
    """

    def __init__(self, workdir: str, config: TrainConfig, channels: int, class_names: tuple[str, ...]):
        self._config = config
        self._directory = paths.absolute(workdir) / "checkpoints"
        self._experiment = {
            "config": config.to_dict(),
            "channels": channels,
            "class_names": list(class_names),
            "version": ftbnn_jax.__version__,
        }
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            probe = self._directory / ".writable"
            probe.touch()
            probe.unlink(missing_ok=True)  # Other processes try as well.
        except OSError as error:
            raise UserError(f"--workdir={workdir}: cannot be written: {error.strerror}") from error
        self._manager = _manager(self._directory, config.keep_checkpoints)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._manager.close()
        except Exception as error:
            # What went wrong first is told by the exception that is on its way.
            if kind is None:
                raise self._not_written(error) from error

    @property
    def directory(self) -> epath.Path:
        return self._directory

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, or None."""
        return max(self._manager.all_steps(), default=None)

    def save(self, state: TrainState, step: int, accuracy: float | None = None) -> None:
        """Saves `state` under `step` in the background, unless that step is there already.

        Args:
          state: copied to the host before this returns.
          step: equals `state.step`.
          accuracy: on the evaluation split, where this step was evaluated; decides what is best.

        Raises:
          UserError: this checkpoint or the one before it could not be written; older ones are intact.
        """
        if step in self._manager.all_steps():
            return
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), experiment=ocp.args.JsonSave(self._experiment)
                ),
                metrics=None if accuracy is None else {"accuracy": accuracy},
            )
        except Exception as error:
            raise self._not_written(error) from error

    def _not_written(self, error: Exception) -> UserError:
        """Says what is there instead of a checkpoint that could not be saved."""
        steps = [int(path.name) for path in self._directory.iterdir() if path.name.isdigit()]
        kept = f"the one of step {max(steps)} is intact" if steps else "there is none yet"
        reason = "no space left" if _is_disk_full(error) else summary(error)
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
            try:
                experiment = self._restore_item(step, "experiment", ocp.args.JsonRestore())
                _check_same_architecture(self._directory / str(step), self._experiment, experiment)
                abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
                restored = self._restore_item(step, "state", ocp.args.StandardRestore(abstract))
            except UserError:
                raise
            except Exception as error:  # Orbax raises whatever its many layers raise.
                report.warn(
                    f"{self._directory / str(step)}: damaged ({summary(error)}); falling back to the "
                    "checkpoint before it"
                )
                damaged.append(step)
                continue
            self._set_aside(damaged)
            _warn_of_changes(experiment["config"], self._config)
            return restored
        if damaged:
            raise UserError(
                f"{self._directory}: none of its checkpoints ({', '.join(map(str, damaged))}) can be "
                "read; restore one from a copy, or remove the directory to start anew"
            )
        return None

    def _restore_item(self, step: int, name: str, args: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**{name: args}))[name]

    def _set_aside(self, steps: list[int]) -> None:
        if not steps:
            return
        aside = self._directory.with_name("checkpoints_damaged")
        if distributed.is_main():
            aside.mkdir(exist_ok=True)
            for step in steps:
                (aside / str(step)).rmtree(missing_ok=True)
                (self._directory / str(step)).rename(aside / str(step))
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self._manager.reload()


def exists(workdir: str) -> bool:
    """Whether a work directory holds a checkpoint."""
    directory = paths.absolute(workdir) / "checkpoints"
    return directory.is_dir() and any(path.name.isdigit() for path in directory.iterdir())


def load_variables(workdir: str, which: str = "latest") -> tuple[dict[str, Any], dict[str, Any], int]:
    """Reads the network of a trained run, without its optimizer.

    Args:
      workdir: directory of the run.
      which: "latest", "best" (highest evaluated accuracy) or a step.

    Returns:
      `variables` (`params` and `batch_stats`, NumPy arrays), `experiment` (`config`, `channels`,
      `class_names`, `version`) and the step.

    Raises:
      UserError: there is no such checkpoint, or it cannot be read.
    """
    directory = paths.absolute(workdir) / "checkpoints"
    if not directory.is_dir():
        raise UserError(f"--workdir={workdir}: holds no checkpoints; train there first")
    with contextlib.closing(_manager(directory, keep=None)) as manager:
        steps = sorted(manager.all_steps())
        if not steps:
            raise UserError(f"{directory}: holds no checkpoint; train there first")
        if which == "latest":
            step = steps[-1]
        elif which == "best":
            step = manager.best_step()
            if step is None:
                raise UserError(f"{directory}: no checkpoint was evaluated; use --checkpoint=latest")
        elif which.isdigit() and int(which) in steps:
            step = int(which)
        else:
            raise UserError(
                f"--checkpoint={which}: must be latest, best, or one of {', '.join(map(str, steps))}"
            )
        try:
            # Saved from however many devices and processes, it is read into this one.
            here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            state = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
                dict(manager.item_metadata(step)["state"]),
            )
            restored = manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(state), experiment=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:
            raise UserError(
                f"{directory / str(step)}: damaged ({summary(error)}); there are the steps "
                f"{', '.join(map(str, steps))} to choose from with --checkpoint"
            ) from error
    state = jax.device_get(restored["state"])
    variables = {"params": state["params"], "batch_stats": state["batch_stats"]}
    return variables, dict(restored["experiment"]), step


@contextlib.contextmanager
def disk_full_is_told(workdir: str) -> Iterator[None]:
    """Turns an error that a full disk is behind into a UserError that says so."""
    try:
        yield
    except OSError as error:
        if not _is_disk_full(error):
            raise
        raise UserError(
            f"--workdir={workdir}: no space left; the checkpoints are intact, the same command goes on "
            "when there is room"
        ) from error


def hide_orphaned_writes() -> None:
    """Keeps the process from printing a traceback for every write that outlives a failed save.

    Orbax closes its event loop under them; what made the save fail is raised and told once.
    """
    raised, ignored = sys.excepthook, sys.unraisablehook

    def is_orphaned(kind, value):
        return kind is RuntimeError and str(value) == "Event loop is closed"

    def excepthook(kind, value, trace):
        if not is_orphaned(kind, value):
            raised(kind, value, trace)

    def unraisablehook(unraisable):
        if not is_orphaned(unraisable.exc_type, unraisable.exc_value):
            ignored(unraisable)

    # By which of the two a write ends depends on the thread that it is in.
    sys.excepthook, sys.unraisablehook = excepthook, unraisablehook
    # While the interpreter ends there is no hook any more, and everything has been told.
    atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))


def _is_disk_full(error: BaseException) -> bool:
    """Whether a full disk, or a full quota, is behind an error."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if "RESOURCE_EXHAUSTED" in str(error):  # TensorStore's.
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and _is_disk_full(cause)


def check_same_model(workdir: str, config: TrainConfig, experiment: dict[str, Any]) -> None:
    """Raises a UserError where a checkpoint's `experiment` is of another network than `config`'s."""
    path = paths.absolute(workdir) / "checkpoints"
    _check_same_architecture(path, {**experiment, "config": config.to_dict()}, experiment)


def check_same_shapes(expected: dict[str, Any], variables: dict[str, Any]) -> None:
    """Raises a UserError naming the first array of `variables` that is not of the expected shape."""
    ours, theirs = (
        {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (expected, variables))
    )
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"{name}: {list(theirs.get(name, ()))} in the checkpoint, the network has "
                f"{list(ours.get(name, ()))}"
            )


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
        # What a run that was killed while saving, or had no space, has left.
        cleanup_tmp_directories=keep is not None,
    )
    handlers = {"state": ocp.StandardCheckpointHandler(), "experiment": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)


def _accuracy(metrics: dict[str, float]) -> float:
    return metrics["accuracy"]


def _flat(experiment: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields that fix the shapes of the variables, under the names a user knows."""
    config = experiment["config"]
    # A checkpoint may be older than some fields, which then have their defaults.
    model = ResNetSpec.from_dict(config["model"]).to_dict()
    return {
        "channels of the images": experiment["channels"],
        "config.num_classes": config["num_classes"],
        **{f"config.model.{name}": value for name, value in model.items()},
    }


def _check_same_architecture(path: epath.Path, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    ours, theirs = _flat(ours), _flat(theirs)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"{path}: is of another architecture: {name}={theirs.get(name)!r} there, "
                f"{ours.get(name)!r} here; use that value or another --workdir"
            )


def _warn_of_changes(before: dict[str, Any], now: TrainConfig) -> None:
    for name, value in now.to_dict().items():
        old = before.get(name)
        old = tuple(old) if isinstance(old, list) else old
        # A checkpoint may be older than some fields.
        if name in before and name not in _ARCHITECTURE and old != value:
            report.warn(f"config.{name} is now {value!r}; the checkpoint was made with {old!r}")
