"""The fields of an experiment, with the paper's ImageNet recipe as defaults.

Files in `configs/` return `make(model, ...)`, a ConfigDict whose keys are the fields of `TrainConfig`,
so that every one can be overridden on the command line. Below `main` the code sees the frozen
`TrainConfig` alone.
"""

import dataclasses
import difflib
import glob
import os
import runpy
from collections.abc import Mapping
from typing import Any

import ml_collections

from ftbnn_jax.errors import UserError
from ftbnn_jax.nn.spec import ResNetSpec
from ftbnn_jax.ops.preprocessing import Preprocessing

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

# What evaluation sees of an image that is cropped in training, in 256ths of its shorter side.
_EVAL_CROP = 224

# Fields of an experiment on CIFAR-10 that do not depend on the network.
CIFAR10 = {
    "dataset": "cifar10",
    "image_size": 32,
    "num_classes": 10,
    "batch_size": 100,
    "num_epochs": 5,
    "checkpoint_every": 500,
    "log_every": 50,
    "augment": "pad_crop",
    "crop_padding": 2,
    "pixel_mean": (125.3, 123.0, 113.9),
    "pixel_std": (63.0, 62.1, 66.7),
}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One experiment. Sections 3 and Appendix C of the paper, and PyTorch's habits where it is silent.

    Attributes:
      model: the network.
      seed: of the initial weights, the order of the images and their augmentation.
      dataset: "digits" (scikit-learn's, no download), "fake" (random images), or the name of any TFDS
        image classification set.
      data_dir: where TFDS looks; "" for the environment variable TFDS_DATA_DIR, or TFDS's default.
      train_split: of the data set, in TFDS's notation ("train[:90%]").
      eval_split: likewise; "" for "validation", or "test" where the set has no such split.
      image_size: height and width that the network sees; `preprocessing` says how images come to it.
      num_classes: number of logits; at least the data set's number of classes.
      batch_size: images in a step, over all devices.
      num_epochs: passes over the training split.
      num_steps: steps to train; 0 for as many as `num_epochs` takes.
      eval_every: steps between evaluations; 0 for once an epoch. The last step is always evaluated.
      checkpoint_every: steps between checkpoints; 0 for none but those of evaluated steps.
      keep_checkpoints: how many of the latest to keep; the best evaluated one is kept as well.
      log_every: steps over which training metrics are averaged before they are written.
      learning_rate: at the start, or after the warm-up.
      schedule: "cosine" (to 0), "multistep" or "constant".
      schedule_boundaries: for "multistep", the shares of the training at which the rate drops.
      schedule_factor: for "multistep", what the rate is multiplied with at each of them.
      warmup_steps: of a linear warm-up from 0.
      weight_decay: L2 term added to the gradients of the real convolutions' and the classifier's
        kernels; binary kernels, batch norm, slopes and biases never get any.
      label_smoothing: share of the target spread evenly over all classes.
      start_from: work directory of a run whose newest checkpoint gives the first weights and batch
        statistics, where this one has none of its own; "" for random ones.
      teacher: work directory of the run whose newest checkpoint the network learns from, beside the
        labels; "" for none. The next four fields are for this.
      label_weight: of the cross-entropy with the labels.
      teacher_weight: of the divergence from the teacher's outputs.
      teacher_temperature: what both nets' logits are divided by in it.
      attention_weight: of the difference between both nets' attention maps.
      stages: of multi-step training, by name: `start_from`, the name of the stage before ("" in the
        first one), and the fields that differ from the ones here; those of the model under `model`.
        Every stage is a run of its own in a directory of its name.
      compute_dtype: "float32", "bfloat16" or "float16"; binary sums are exact in each. "auto" is
        float32 on a CPU and bfloat16 on GPU and TPU.
      batch_norm: "global" normalises by the statistics of the whole batch; "per_device" lets every
        device use those of its own share, as data parallel training in PyTorch does.
      accumulation_steps: parts into which a batch is cut, to be gone through one after the other in
        less memory; batch statistics are those of a part.
      remat: what the backward pass computes again instead of keeping it. "none": nothing. "outputs": all
        but what the binary convolutions read and give, and batch statistics. "stages": all but what
        enters each stage, for least memory and more time; XLA undoes it on a CPU.
      augment: "resized_crop" (random scale and aspect; evaluation, and the packed net, take the centre
        crop), "pad_crop" (random shifts by `crop_padding`) or "none" (both take whole images).
      crop_padding: for "pad_crop", zero pixels added on each side before the crop.
      flip: whether training images are mirrored at random.
      max_corrupt_records: damaged images passed over in each split, on each host; one more ends the run.
      pixel_mean: subtracted from pixel values 0 to 255; one number, or one per channel.
      pixel_std: divided by, likewise.

    Raises:
      UserError: a field has an impossible value; the message names it.
    """

    model: ResNetSpec
    seed: int = 0
    dataset: str = "imagenet2012"
    data_dir: str = ""
    train_split: str = "train"
    eval_split: str = ""
    image_size: int = 224
    num_classes: int = 1000
    batch_size: int = 256
    num_epochs: int = 60
    num_steps: int = 0
    eval_every: int = 0
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    log_every: int = 100
    learning_rate: float = 0.01
    schedule: str = "cosine"
    schedule_boundaries: tuple[float, ...] = (45 / 60, 55 / 60)
    schedule_factor: float = 0.1
    warmup_steps: int = 0
    weight_decay: float = 1e-5
    label_smoothing: float = 0.0
    start_from: str = ""
    teacher: str = ""
    label_weight: float = 1.0
    teacher_weight: float = 3.0
    teacher_temperature: float = 1.0
    attention_weight: float = 30.0
    stages: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    compute_dtype: str = "float32"
    batch_norm: str = "global"
    accumulation_steps: int = 1
    remat: str = "none"
    augment: str = "resized_crop"
    crop_padding: int = 4
    flip: bool = True
    max_corrupt_records: int = 10
    pixel_mean: tuple[float, ...] = IMAGENET_MEAN
    pixel_std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self):
        for field, allowed in (
            ("schedule", ("cosine", "multistep", "constant")),
            ("compute_dtype", ("auto", "float32", "bfloat16", "float16")),
            ("batch_norm", ("global", "per_device")),
            ("remat", ("none", "outputs", "stages")),
            ("augment", ("resized_crop", "pad_crop", "none")),
        ):
            value = getattr(self, field)
            if value not in allowed:
                raise UserError(f"config.{field}={value!r}: must be one of {', '.join(allowed)}")
        for field, least in (
            ("image_size", 1),
            ("num_classes", 1),
            ("batch_size", 1),
            ("num_epochs", 1),
            ("num_steps", 0),
            ("eval_every", 0),
            ("checkpoint_every", 0),
            ("keep_checkpoints", 1),
            ("log_every", 1),
            ("accumulation_steps", 1),
            ("warmup_steps", 0),
            ("crop_padding", 0),
            ("max_corrupt_records", 0),
            ("learning_rate", 0),
            ("weight_decay", 0),
            ("label_weight", 0),
            ("teacher_weight", 0),
            ("attention_weight", 0),
        ):
            value = getattr(self, field)
            if not value >= least:
                raise UserError(f"config.{field}={value}: must be at least {least}")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"config.label_smoothing={self.label_smoothing}: must be in [0, 1)")
        if not self.teacher_temperature > 0:
            raise UserError(f"config.teacher_temperature={self.teacher_temperature}: must be positive")
        if not all(0 < b < 1 for b in self.schedule_boundaries):
            raise UserError(
                f"config.schedule_boundaries={self.schedule_boundaries}: shares between 0 and 1"
            )
        if any(s <= 0 for s in self.pixel_std):
            raise UserError(f"config.pixel_std={self.pixel_std}: must be positive")

    def preprocessing(self, channels: int) -> Preprocessing:
        """Returns how images of so many channels enter the network, in evaluation and when deployed.

        A network that learns from crops of larger images sees their centre, as Appendix C has it; any
        other sees whole images.
        """
        cropped = self.augment == "resized_crop"
        return Preprocessing(
            size=self.image_size,
            channels=channels,
            crop=_EVAL_CROP if cropped else 0,
            antialias=not cropped,
            mean=self.pixel_mean,
            std=self.pixel_std,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields, the model's nested, as values that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "TrainConfig":
        """Builds the typed config from a ConfigDict or from `to_dict`'s result.

        Raises:
          UserError: a field is unknown or has an impossible value.
        """
        known = {field.name: None for field in dataclasses.fields(cls)}
        values = {}
        for name, value in fields.items():
            check_key(known, name)
            value = _plain(value)
            values[name] = ResNetSpec.from_dict(value) if name == "model" else value
        return cls(**values)


def _plain(value: Any) -> Any:
    """Returns JSON's lists as tuples and ConfigDicts as dictionaries."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    if isinstance(value, Mapping | ml_collections.ConfigDict):
        return {name: _plain(inner) for name, inner in value.items()}
    return value


def make(model: ResNetSpec, **fields: Any) -> ml_collections.ConfigDict:
    """Returns a ConfigDict with the fields of `TrainConfig`, defaults filled in.

    Args:
      model: the network.
      **fields: fields of `TrainConfig` that differ from its defaults.

    Raises:
      UserError: a field has an impossible value.
    """
    return ml_collections.ConfigDict(TrainConfig(model, **fields).to_dict())


def load(path: str) -> TrainConfig:
    """Runs a config file and returns its experiment.

    Args:
      path: path of a Python file with a function `get_config`; what follows a colon is its argument,
        as in "configs/derived44_g5.py:90".

    Raises:
      UserError: there is no such file, or it does not hold a config.
    """
    file, _, argument = path.partition(":")
    if not os.path.isfile(file):
        folder = os.path.dirname(file) or "."
        there = sorted(glob.glob(os.path.join(folder, "*.py")))
        nearest = difflib.get_close_matches(file, there, n=1, cutoff=0)
        raise UserError(
            f"{file}: no such config file" + (f"; the nearest is {nearest[0]}" if nearest else "")
        )
    try:
        get_config = runpy.run_path(file)["get_config"]
        config = get_config(argument) if argument else get_config()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # A config file can raise anything.
        raise UserError(f"{path}: {type(error).__name__}: {str(error).splitlines()[0]}") from error
    return TrainConfig.from_dict(config)


def check_key(config: Mapping[str, Any], key: str) -> None:
    """Raises a UserError naming the nearest known key where `config` has no `key` ("model.width")."""
    if key not in (known := _dotted(config)):
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0)[0]
        raise UserError(f"config.{key}: no such key; the nearest is config.{nearest}")


def _dotted(config: Mapping[str, Any]) -> list[str]:
    keys = []
    for name, value in config.items():
        keys.append(name)
        if isinstance(value, Mapping):
            keys += [f"{name}.{inner}" for inner in _dotted(value)]
    return keys
