"""The fields of an experiment, the files that hold them, and overrides on the command line.

Config files return `make(model, ...)`, a ConfigDict whose keys are the fields of `TrainConfig`; every
one can be overridden on the command line. Below `main` the code sees the frozen `TrainConfig` alone.
"""

from ftbnn_jax.config.experiment import (
    CIFAR10,
    CROP_SIDES,
    CROPPING,
    IMAGENET_MEAN,
    IMAGENET_STD,
    TrainConfig,
    make,
)
from ftbnn_jax.config.files import find, load, run_file, told
from ftbnn_jax.config.overrides import check_key, split_overrides

__all__ = [
    "CIFAR10",
    "CROPPING",
    "CROP_SIDES",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "TrainConfig",
    "check_key",
    "find",
    "load",
    "make",
    "run_file",
    "split_overrides",
    "told",
]
