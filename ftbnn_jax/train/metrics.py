"""What a run writes down (`metrics.jsonl`, TensorBoard) and what a person sees while it runs."""

import json
import socket
import struct
import time
from typing import Any

import rich.progress
from etils import epath
from tensorboardX import record_writer
from tensorboardX.proto import event_pb2, summary_pb2

from ftbnn_jax import paths, report
from ftbnn_jax.report import console


class MetricsWriter:
    """Writes `metrics.jsonl` and TensorBoard events into a run's directory.

    `metrics.jsonl` has one object a line: `step`, `kind` ("train" or "eval") and numbers that are a
    function of config and seed, so that two runs can be compared line by line; rates go to
    TensorBoard only. A run that resumes drops the lines of steps that it is about to repeat.

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
        self._lines = [line for line in self._complete_lines() if json.loads(line)["step"] <= step]
        self._evaluated = {r["step"] for r in map(json.loads, self._lines) if r["kind"] == "eval"}
        paths.write_whole(self._path, "".join(self._lines))
        self._file = None if paths.is_remote(self._path) else self._path.open("a")
        self._events = _Events(directory / "tensorboard", step)

    def _complete_lines(self) -> list[str]:
        if not self._path.exists():
            return []
        lines = self._path.read_text().splitlines(keepends=True)
        return [line for line in lines if line.endswith("\n")]

    def was_evaluated(self, step: int) -> bool:
        """Whether the run holds the evaluation of a step."""
        return step in self._evaluated

    def write(self, kind: str, step: int, values: dict[str, float], **rates: float) -> None:
        """Writes metrics of a step; `rates` go to TensorBoard only."""
        if not self._writes:
            return
        self._lines.append(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        if self._file:
            self._file.write(self._lines[-1])
            self._file.flush()
        else:
            paths.write_whole(self._path, "".join(self._lines))
        if kind == "eval":
            self._evaluated.add(step)
        named = {f"{kind}/{name}": value for name, value in {**values, **rates}.items()}
        self._events.write(step, named)

    def values(self, kind: str, name: str) -> list[tuple[int, float]]:
        """Returns (step, value) of a metric in the order it was written."""
        records = [json.loads(line) for line in self._lines]
        return [(r["step"], r[name]) for r in records if r["kind"] == kind]

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
        payload = event.SerializeToString()
        length = struct.pack("<Q", len(payload))
        for part in (length, payload):
            checksum = struct.pack("<I", record_writer.masked_crc32c(part))
            self._file.write(part + checksum)


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
