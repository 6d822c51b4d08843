"""Where a run's numbers, histograms and pictures go beside `metrics.jsonl`: `config.loggers`.

| name | writes |
|---|---|
| tensorboard | everything, as TensorBoard's events, into `tensorboard/` of the work directory |
| csv | numbers, a row a step, into `train.csv` and `eval.csv` |
| wandb | everything, to Weights & Biases; its own variables (`WANDB_PROJECT`, ...) say where |
"""

import csv
import io
import json
import os
import socket
import time
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from etils import epath
from tensorboardX import summary
from tensorboardX.proto import event_pb2, summary_pb2

from ftbnn_jax import extras, report
from ftbnn_jax.data import framing
from ftbnn_jax.errors import UserError
from ftbnn_jax.errors import summary as first_line
from ftbnn_jax.host import paths


class Logger(Protocol):
    """What one of them does; `kind` is "train" or "eval", steps do not fall.

    It is made with the directory of the run, the step that the run continues from (what was written of
    later steps is dropped where that can be) and the fields of the experiment.

    Raises:
      UserError: a package that it needs is missing, or does not start.
    """

    def __init__(self, directory: epath.Path, step: int, config: Mapping[str, Any]):
        """Begins."""

    def scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers by name; those that are not finite among them."""

    def histograms(self, kind: str, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Writes how the finite numbers of each array, of any shape, are spread."""

    def image(self, kind: str, step: int, name: str, pixels: np.ndarray) -> None:
        """Writes a picture, uint8 `[H, W, 3]`."""

    def close(self) -> None:
        """Ends, with all written."""


class TensorBoard:
    """A file of TensorBoard's events.

    Unlike `tensorboardX.SummaryWriter`, it has no thread of its own: that one ends when the disk is
    full, and the run then waits for it forever.
    """

    _FLUSHED_EVERY_S = 10.0

    def __init__(self, directory: epath.Path, step: int, config: Mapping[str, Any]):
        folder = directory / "tensorboard"
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{step}"
        self._path = folder / name
        self._file = self._path.open("wb")
        self._flushed = time.monotonic()
        self._write(0, file_version="brain.Event:2")
        # TensorBoard drops what other files have after this.
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step + 1, session_log=session)

    def scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        value = summary_pb2.Summary.Value
        shown = [value(tag=f"{kind}/{name}", simple_value=number) for name, number in values.items()]
        self._write(step, summary=summary_pb2.Summary(value=shown))
        if time.monotonic() - self._flushed > self._FLUSHED_EVERY_S:
            self._file.flush()
            self._flushed = time.monotonic()

    def histograms(self, kind: str, step: int, values: Mapping[str, np.ndarray]) -> None:
        for name, array in values.items():
            self._write(step, summary=summary.histogram(f"{kind}/{name}", array, bins=30))

    def image(self, kind: str, step: int, name: str, pixels: np.ndarray) -> None:
        self._write(step, summary=summary.image(f"{kind}/{name}", pixels, dataformats="HWC"))

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            report.warn(f"{self._path}: incomplete ({error.strerror}); metrics.jsonl has all of it")

    def _write(self, step: int, **content: Any) -> None:
        event = event_pb2.Event(wall_time=time.time(), step=step, **content)
        self._file.write(framing.framed(event.SerializeToString()))


class Csv:
    """A table a kind, whole after every row; what is not finite, or not known, is left empty."""

    def __init__(self, directory: epath.Path, step: int, config: Mapping[str, Any]):
        self._directory, self._step = directory, step
        self._tables: dict[str, list[dict[str, Any]]] = {}

    def scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        path = self._directory / f"{kind}.csv"
        rows = self._tables.get(kind)
        if rows is None:
            rows = self._tables[kind] = self._kept(path)
        known = {name: number for name, number in values.items() if np.isfinite(number)}
        rows.append({"step": step, **known})
        # Rows of another version, or of another list of layers, can have other columns.
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        paths.write_whole(path, text.getvalue())

    def _kept(self, path: epath.Path) -> list[dict[str, Any]]:
        """Rows of an earlier start, without those of steps that are made again."""
        if not path.exists():
            return []
        try:
            rows = list(csv.DictReader(io.StringIO(path.read_text())))
            return [row for row in rows if int(row["step"]) <= self._step]
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise UserError(f"{path}: is no table of a run; move it away, or leave csv out") from error

    def histograms(self, kind: str, step: int, values: Mapping[str, np.ndarray]) -> None:
        """A table has no place for them."""

    def image(self, kind: str, step: int, name: str, pixels: np.ndarray) -> None:
        """Likewise."""

    def close(self) -> None:
        """Every row is written."""


class WeightsAndBiases:
    """One of its runs for a work directory, which goes on as that does: `wandb_id.json` names it."""

    def __init__(self, directory: epath.Path, step: int, config: Mapping[str, Any]):
        where = "config.loggers=wandb"
        with extras.named():
            import wandb
        file = directory / "wandb_id.json"
        if not file.exists():
            paths.write_whole(file, json.dumps(uuid.uuid4().hex))
        self._wandb = wandb
        try:
            self._run = wandb.init(
                id=json.loads(file.read_text()),
                resume="allow",
                project=os.environ.get("WANDB_PROJECT", "ftbnn_jax"),
                name=directory.name,
                dir=None if paths.is_remote(directory) else os.fspath(directory),
                config=dict(config),
            )
        except Exception as error:  # It raises errors of its own, of its service and of the network.
            raise UserError(f"Weights & Biases does not start: {first_line(error)}", where) from error

    def scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        self._log(kind, step, values)

    def histograms(self, kind: str, step: int, values: Mapping[str, np.ndarray]) -> None:
        self._log(kind, step, {name: self._wandb.Histogram(x) for name, x in values.items()})

    def image(self, kind: str, step: int, name: str, pixels: np.ndarray) -> None:
        self._log(kind, step, {name: self._wandb.Image(pixels)})

    def _log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        self._run.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoard, "csv": Csv, "wandb": WeightsAndBiases}
