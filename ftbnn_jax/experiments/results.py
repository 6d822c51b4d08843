"""What finished and unfinished runs have left in their work directories."""

import dataclasses
import json
import math
import os
import statistics
from typing import Any

from etils import epath

from ftbnn_jax.config import TrainConfig
from ftbnn_jax.errors import UserError
from ftbnn_jax.train import metrics, stages


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's files.

    Attributes:
      path: its work directory.
      config: the fields of its `TrainConfig`.
      records: the lines of `metrics.jsonl`, in order.
    """

    path: str
    config: dict[str, Any]
    records: list[dict[str, Any]]

    def curve(self, kind: str, metric: str) -> tuple[list[int], list[float]]:
        """Returns steps and values of a metric ("loss", "accuracy") of a kind ("train", "eval").

        Values that are not finite are left out.
        """
        chosen = [r for r in self.records if r["kind"] == kind and r.get(metric) is not None]
        return [r["step"] for r in chosen], [r[metric] for r in chosen]

    def final_accuracy(self) -> float:
        """Returns the share of test images that the last evaluation got right.

        Raises:
          UserError: the run was not evaluated yet.
        """
        _, accuracies = self.curve("eval", "accuracy")
        if not accuracies:
            raise UserError(f"{self.path}: has no evaluation yet; let the run go on")
        return accuracies[-1]


def read(path: str) -> Run:
    """Reads a run's directory; of a run in stages, the last one's.

    Raises:
      UserError: it does not hold a run, or a file of it is damaged.
    """
    file = os.path.join(path, "config.json")
    try:
        with open(file) as stream:
            config = json.load(stream)
        in_stages = bool(config.get("stages"))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; give the work directory of a run") from error
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file}: is damaged ({error})") from error
    if in_stages:
        return read(stages.resolve(TrainConfig.from_dict(config), path)[-1].workdir)
    return Run(path, config, metrics.read(epath.Path(path) / "metrics.jsonl"))


def mean_and_deviation(values: list[float]) -> tuple[float, float | None]:
    """Returns mean and sample standard deviation; None for the latter of a single value."""
    if len(values) == 1:
        return values[0], None
    finite = all(map(math.isfinite, values))
    return statistics.fmean(values), statistics.stdev(values) if finite else math.nan


def spread(values: list[float], scale: float = 1.0, digits: int = 2) -> str:
    """Formats values as mean and sample standard deviation, "98.45 ± 0.16"; "" for none."""
    if not values:
        return ""
    mean, deviation = mean_and_deviation(values)
    shown = f"{scale * mean:.{digits}f}"
    return shown if deviation is None else f"{shown} ± {scale * deviation:.{digits}f}"
