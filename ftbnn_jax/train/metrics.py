"""What a run writes down (`metrics.jsonl`, loggers) and what a person sees while it runs."""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import rich.progress
import rich.progress_bar
import rich.table
import rich.text
from etils import epath

from ftbnn_jax import report
from ftbnn_jax.errors import UserError
from ftbnn_jax.host import paths
from ftbnn_jax.report import console
from ftbnn_jax.train import loggers


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
    """Writes `metrics.jsonl` and `times.jsonl` into a run's directory, and hands all on to loggers.

    Both have one object a line: `step`, `kind` ("train" or "eval") and numbers. Those of `metrics.jsonl`
    are a function of config and seed, so that two runs can be compared line by line; those of
    `times.jsonl` are seconds and rates. A number that is not finite is null: JSON has none. A run that
    resumes drops the lines of steps that it is about to repeat.

    Args:
      workdir: directory of the run.
      step: step that the run continues from; later lines are dropped.
      writes: whether to write at all; of several processes one does.
      names: of the loggers, see `loggers`.
      config: fields of the experiment, for them.
    """

    def __init__(
        self,
        workdir: str,
        step: int,
        writes: bool = True,
        names: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
    ):
        directory = paths.absolute(workdir)
        self._evaluated: set[int] = set()
        self._all = contextlib.ExitStack()
        self._writes = writes
        if not writes:
            return
        with contextlib.ExitStack() as stack:
            # What has begun ends where a later one cannot begin.
            begin = lambda what: stack.enter_context(contextlib.closing(what))  # noqa: E731
            self._metrics = begin(_Lines(directory / "metrics.jsonl", step))
            self._times = begin(_Lines(directory / "times.jsonl", step))
            self._loggers = [
                begin(loggers.LOGGERS[name](directory, step, config or {})) for name in names
            ]
            self._all = stack.pop_all()
        self._evaluated = {r["step"] for r in self._metrics.records if r["kind"] == "eval"}

    def was_evaluated(self, step: int) -> bool:
        """Whether the run holds the evaluation of a step."""
        return step in self._evaluated

    def write(
        self,
        kind: str,
        step: int,
        values: Mapping[str, float],
        details: Mapping[str, float] | None = None,
        times: Mapping[str, float] | None = None,
    ) -> None:
        """Writes what is known of a step.

        Args:
          kind: "train" or "eval".
          step: steps made so far.
          values: for `metrics.jsonl`.
          details: numbers of single layers, which the loggers alone get.
          times: for `times.jsonl`.
        """
        if not self._writes:
            return
        self._metrics.append({"step": step, "kind": kind, **values})
        if times:
            self._times.append({"step": step, "kind": kind, **times})
        if kind == "eval":
            self._evaluated.add(step)
        for logger in self._loggers:
            logger.scalars(kind, step, {**values, **(details or {}), **(times or {})})

    def histograms(self, kind: str, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Hands arrays, by name, to the loggers; those with a number that is not finite are left out."""
        if self._writes:
            finite = {name: x for name, x in values.items() if np.isfinite(x).all()}
            for logger in self._loggers:
                logger.histograms(kind, step, finite)

    def image(self, kind: str, step: int, name: str, pixels: np.ndarray) -> None:
        """Hands a picture, uint8 `[H, W, 3]`, to the loggers."""
        if self._writes:
            for logger in self._loggers:
                logger.image(kind, step, name, pixels)

    def values(self, kind: str, name: str) -> list[tuple[int, float]]:
        """Returns (step, value) of a metric, where it is finite, in the order it was written."""
        chosen = [(r["step"], r.get(name)) for r in self._metrics.records if r["kind"] == kind]
        return [(step, value) for step, value in chosen if value is not None and math.isfinite(value)]

    def close(self) -> None:
        """Ends the files, and the loggers."""
        self._all.close()


class _Lines:
    """A file of records, one a line, that is whole at any time; `records` are those in it."""

    def __init__(self, path: epath.Path, step: int):
        self._path = path
        # An evaluation whose loss was not finite is made again, and ends the run.
        lost = ("eval", None)
        kept = [r for r in read(path) if (r["kind"], r.get("loss", 0.0)) != lost]
        self.records = [r for r in kept if r["step"] <= step]
        self._write_all()
        self._file = None if paths.is_remote(path) else path.open("a")

    def _write_all(self) -> None:
        paths.write_whole(self._path, "".join(report.to_json(r) + "\n" for r in self.records))

    def append(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        if self._file:
            self._file.write(report.to_json(record) + "\n")
            self._file.flush()
        else:
            self._write_all()

    def close(self) -> None:
        if self._file:
            self._file.close()


class Progress:
    """A progress bar on a terminal; nothing but lines in a pipe.

    Args:
      doing: what the run does first.
    """

    def __init__(self, doing: str):
        # What is being done and since when, what happens inside of it behind it.
        self._doing = [(doing, time.monotonic())]
        self._bar = rich.progress.Progress(
            _Line(self._doing), console=console, disable=not console.is_terminal, transient=True
        )
        self._task = self._bar.add_task("", total=None, shown=())
        self._bar.start()

    def begin(self, first_step: int, last_step: int, batch_size: int) -> None:
        """From here on steps are made, with so many images each."""
        self._last_step, self._batch_size = last_step, batch_size
        self._timer = _Timer(first_step)
        self._bar.update(self._task, total=last_step, completed=first_step)
        self._doing[0] = ("training", time.monotonic())

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        self._bar.update(self._task, completed=step)

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Says on the bar what is going on inside."""
        self._doing.append((what, time.monotonic()))
        try:
            yield
        finally:
            self._doing.pop()

    def train(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Shows training metrics and returns `seconds_per_step` and `images_per_second` since the last.

        What is done under `pause` is no part of them.
        """
        seconds = self._timer.seconds_per_step(step)
        left = format_seconds(seconds * (self._last_step - step))
        rate = self._batch_size / seconds
        # The most important first: what does not fit is left out from the end.
        shown = (f"loss {values['loss']:.4f}", f"accuracy {values['accuracy']:.2%}")
        shown += (f"{left} left", f"{rate:,.0f} images/s")
        if console.is_terminal:
            self._bar.update(self._task, completed=step, shown=shown)
        else:
            console.print(f"step {step}/{self._last_step}  {'  '.join(shown)}")
        return {"seconds_per_step": seconds, "images_per_second": rate}

    @contextlib.contextmanager
    def pause(self, what: str) -> Iterator[None]:
        """As `doing`, of what is no part of a step's time."""
        with self.doing(what), self._timer.pause():
            yield

    def line(self, text: str) -> None:
        """Prints a line that stays."""
        console.print(text)

    def close(self) -> None:
        self._bar.stop()


class _Timer:
    """The time that steps take, without pauses."""

    def __init__(self, step: int):
        self._step, self._at, self._paused = step, time.perf_counter(), 0.0

    def seconds_per_step(self, step: int) -> float:
        """Returns the mean over the steps since the last call."""
        now = time.perf_counter()
        mean = max(now - self._at - self._paused, 1e-9) / max(step - self._step, 1)
        self._step, self._at, self._paused = step, now, 0.0
        return mean

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - begun


class _Line(rich.progress.ProgressColumn):
    """What is being done, a bar, steps and metrics: as much of it as fits into the terminal."""

    # The bar's least and largest width, and how many seconds a part of something takes before it is
    # worth a word of its own.
    _LEAST, _MOST, _SECONDS = 8, 40, 0.5

    def __init__(self, doing: Sequence[tuple[str, float]]):
        super().__init__()
        self._doing = doing

    def render(self, task: rich.progress.Task) -> rich.table.Table:
        (said, _), *inner = list(self._doing)
        for what, since in inner:
            said = what if time.monotonic() - since > self._SECONDS else said
        parts = [f"{task.completed:.0f}/{task.total:.0f}"] if task.total is not None else []
        parts += task.fields["shown"]
        room = console.width - len(said) - self._LEAST - len("  ")
        while parts and len("  ".join(parts)) > room:
            parts.pop()
        text = "  ".join(parts)
        width = min(self._MOST, self._LEAST + max(0, room - len(text)))
        bar = rich.progress_bar.ProgressBar(
            task.total, task.completed, width, animation_time=time.time()
        )
        line = rich.table.Table.grid(padding=(0, 1))
        line.add_row(rich.text.Text(said), bar, rich.text.Text(text))
        return line


def format_seconds(seconds: float) -> str:
    """Formats a time as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
