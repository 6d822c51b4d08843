"""Fields of a config that the data fills in: `num_classes=0`, `pixel_mean=()` and `pixel_std=()`.

A run looks for them once; its checkpoints hold what it found, and whatever is done with them later takes
it from there.
"""

import concurrent.futures
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ftbnn_jax.config import TrainConfig
from ftbnn_jax.data.split import Split, spread
from ftbnn_jax.errors import CorruptRecordError, UserError
from ftbnn_jax.host import machine

# Training images that the statistics are of, which lie evenly among all.
_SAMPLE = 1000
# Classes that are named before a run begins.
_NAMED = 10


def from_saved(config: TrainConfig, saved: Mapping[str, Any]) -> TrainConfig:
    """Fills in what is to be found in the data with what a run has found.

    Args:
      config: an experiment.
      saved: fields of the run's config, as a checkpoint holds them.
    """
    return TrainConfig.from_dict(
        {**config.to_dict(), **{name: saved[name] for name in config.from_data}}
    )


def from_split(config: TrainConfig, split: Split) -> TrainConfig:
    """Fills in what is to be found in the data.

    Mean and standard deviation, each rounded to a hundredth, are those over pixels and images of a
    sample, in which every image weighs the same whatever its size.

    Args:
      config: an experiment.
      split: its training images.

    Raises:
      UserError: none of the images can be read, or more are corrupt than the config allows.
    """
    found: dict[str, Any] = {}
    if "num_classes" in config.from_data:
        found["num_classes"] = len(split.class_names)
    if {"pixel_mean", "pixel_std"} & set(config.from_data):
        mean, square = _moments(split, config.max_corrupt_records)
        # Rounding may leave less than 0 where images have one colour.
        std = np.sqrt(np.maximum(square - mean**2, 0)).round(2)
        found["pixel_mean"] = tuple(mean.round(2).tolist())
        found["pixel_std"] = tuple(np.where(std > 0, std, 1.0).tolist())
    return dataclasses.replace(config, **{name: found[name] for name in config.from_data})


def _moments(split: Split, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the means of pixel values and of their squares over a sample, float64 `[C]` each."""

    def look(index: int) -> np.ndarray | CorruptRecordError:
        try:
            # An image that is in memory may have been brought to size.
            pixels = split.fetch(np.array([index]))[0][0] if split.shape else split.whole(index)
        except CorruptRecordError as error:
            return error
        pixels = pixels.reshape(-1, split.channels).astype(np.float64)
        return np.stack([pixels.mean(0), (pixels**2).mean(0)])

    indices = spread(split.num_examples, _SAMPLE)
    moments = []
    with concurrent.futures.ThreadPoolExecutor(machine.num_cores()) as pool:
        for index, found in zip(indices, pool.map(look, indices), strict=True):
            if isinstance(found, CorruptRecordError):
                split.report_corrupt(index, str(found), limit)
            else:
                moments.append(found)
    if not moments:
        raise UserError(
            f"{split.name(indices[0])}: none of {len(indices):,} images looked at is readable"
        )
    return tuple(np.mean(moments, axis=0))


def summary(config: TrainConfig, train: Split, evaluation: Split) -> str:
    """Returns what a run begins with, in one line."""
    shape = f"{train.shape[0]}x{train.shape[1]}, " if train.shape else ""
    colours = "gray" if train.channels == 1 else "colour"
    names = ", ".join(train.class_names[:_NAMED]) + (", ..." if train.class_names[_NAMED:] else "")
    statistics = ", ".join(f"{name}={getattr(config, name)}" for name in ("pixel_mean", "pixel_std"))
    return (
        f"{config.dataset}: {train.num_examples:,} images to train on and {evaluation.num_examples:,} "
        f"to evaluate on, {shape}{colours}; {len(train.class_names):,} classes: {names}; {statistics}"
    )
