"""What a run writes down (`metrics.jsonl`, TensorBoard) and what a person sees while it runs."""

import json
import math
import socket
import time
from typing import Any

import rich.progress
from etils import epath
from tensorboardX.proto import event_pb2, summary_pb2

from ftbnn_jax import report
from ftbnn_jax.data import framing
from ftbnn_jax.errors import UserError
from ftbnn_jax.host import paths
from ftbnn_jax.report import console


def read(path: epath.Path) -> list[dict[str, Any]]:
    """Returns the lines of a `metrics.jsonl`; none where there is no such file.

    A line without an end, which is being written or was when a process was killed, is left out. Numbers
    that are not finite, as older versions wrote them, are None.

    Raises:
      UserError: a line is not one of a run's, or the file cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the work directory of a run") from error
    records = []
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            continue
        try:
            record = json.loads(line, parse_constant=lambda _: None)
        except ValueError:
            record = None
        if not _is_record(record):
            raise UserError(f"{path}: line {number} is damaged; delete it, or the file")
        records.append(record)
    return records


def _is_record(value: Any) -> bool:
    if not isinstance(value, dict) or value.get("kind") not in ("train", "eval"):
        return False
    numbers = [number for name, number in value.items() if name != "kind"]
    return type(value.get("step")) is int and all(type(n) in (int, float, type(None)) for n in numbers)


class MetricsWriter:
    """Writes `metrics.jsonl` and TensorBoard events into a run's directory.

    `metrics.jsonl` has one object a line: `step`, `kind` ("train" or "eval") and numbers that are a
    function of config and seed, so that two runs can be compared line by line; rates go to
    TensorBoard only. A number that is not finite is null: JSON has none. A run that resumes drops the
    lines of steps that it is about to repeat.

    Args:
      workdir: directory of the run.
      step: step that the run continues from; later lines are dropped.
      writes: whether to write at all; of several processes one does.
    """

    def __init__(self, workdir: str, step: int, writes: bool = True):
        directory = paths.absolute(workdir)
        self._path = directory / "metrics.jsonl"
        self._evaluated: set[int] = set()
        self._writes = writes
        if not writes:
            return
        # An evaluation whose loss was not finite is made again, and ends the run.
        lost = ("eval", None)
        kept = [r for r in read(self._path) if (r["kind"], r.get("loss", 0.0)) != lost]
        self._records = [r for r in kept if r["step"] <= step]
        self._evaluated = {r["step"] for r in self._records if r["kind"] == "eval"}
        self._write_all()
        self._events = _Events(directory / "tensorboard", step)
        self._file = None if paths.is_remote(self._path) else self._path.open("a")

    def _write_all(self) -> None:
        paths.write_whole(self._path, "".join(report.to_json(r) + "\n" for r in self._records))

    def was_evaluated(self, step: int) -> bool:
        """Whether the run holds the evaluation of a step."""
        return step in self._evaluated

    def write(self, kind: str, step: int, values: dict[str, float], **rates: float) -> None:
        """Writes metrics of a step; `rates` go to TensorBoard only."""
        if not self._writes:
            return
        self._records.append({"step": step, "kind": kind, **values})
        if self._file:
            self._file.write(report.to_json(self._records[-1]) + "\n")
            self._file.flush()
        else:
            self._write_all()
        if kind == "eval":
            self._evaluated.add(step)
        named = {f"{kind}/{name}": value for name, value in {**values, **rates}.items()}
        self._events.write(step, named)

    def values(self, kind: str, name: str) -> list[tuple[int, float]]:
        """Returns (step, value) of a metric, where it is finite, in the order it was written."""
        chosen = [(r["step"], r.get(name)) for r in self._records if r["kind"] == kind]
        return [(step, value) for step, value in chosen if value is not None and math.isfinite(value)]

    def close(self) -> None:
        if not self._writes:
            return
        if self._file:
            self._file.close()
        self._events.close()


class _Events:
    """A TensorBoard file.

    Unlike `tensorboardX.SummaryWriter`, it has no thread of its own: that one ends when the disk is
    full, and the run then waits for it forever.

    Args:
      directory: made if need be.
      step: step that the run continues from; TensorBoard drops what other files have after it.
    """

    _FLUSHED_EVERY_S = 10.0

    def __init__(self, directory: epath.Path, step: int):
        directory.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{step}"
        self._path = directory / name
        self._file = self._path.open("wb")
        self._flushed = time.monotonic()
        self._write(0, file_version="brain.Event:2")
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step + 1, session_log=session)

    def write(self, step: int, values: dict[str, float]) -> None:
        scalars = [
            summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()
        ]
        self._write(step, summary=summary_pb2.Summary(value=scalars))
        if time.monotonic() - self._flushed > self._FLUSHED_EVERY_S:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            report.warn(f"{self._path}: incomplete ({error.strerror}); metrics.jsonl has all of it")

    def _write(self, step: int, **content: Any) -> None:
        event = event_pb2.Event(wall_time=time.time(), step=step, **content)
        self._file.write(framing.framed(event.SerializeToString()))


class Progress:
    """A progress bar on a terminal; nothing but lines in a pipe.

    Args:
      first_step: step that the run continues from.
      last_step: step at which it ends.
      batch_size: images in a step.
    """

    def __init__(self, first_step: int, last_step: int, batch_size: int):
        self._last_step = last_step
        self._batch_size = batch_size
        self._marked: tuple[float, int] | None = None
        self._seconds_per_step: float | None = None
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[shown]}", markup=False),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(
            "train", total=last_step, completed=first_step, shown="compiling"
        )
        self._bar.start()

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        self._bar.update(self._task, completed=step)

    def pause(self) -> None:
        """Leaves what comes next, until the following `train`, out of the measured rate."""
        self._marked = None

    def describe(self, description: str) -> None:
        """Says on the bar what is going on."""
        self._bar.update(self._task, description=description)

    def train(self, step: int, values: dict[str, float]) -> float:
        """Shows training metrics and returns images per second since the last call (0: unknown)."""
        now = time.perf_counter()
        rate = 0.0
        if self._marked and step > self._marked[1]:
            self._seconds_per_step = (now - self._marked[0]) / (step - self._marked[1])
            rate = self._batch_size / self._seconds_per_step
        self._marked = (now, step)
        shown = f"loss {values['loss']:.4f}  accuracy {values['accuracy']:.2%}"
        if self._seconds_per_step is not None:
            left = self._seconds_per_step * (self._last_step - step)
            shown += f"  {self._batch_size / self._seconds_per_step:,.0f} images/s"
            shown += f"  {format_seconds(left)} left"
        if console.is_terminal:
            self._bar.update(self._task, completed=step, shown=shown)
        else:
            console.print(f"step {step}/{self._last_step}  {shown}")
        return rate

    def line(self, text: str) -> None:
        """Prints a line that stays."""
        console.print(text)

    def close(self) -> None:
        self._bar.stop()


def format_seconds(seconds: float) -> str:
    """Formats a time as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
