"""The fields of an experiment, with the paper's ImageNet recipe as defaults."""

import dataclasses
import itertools
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ftbnn_jax import extras, fields
from ftbnn_jax.config import mean_image, overrides
from ftbnn_jax.errors import UserError
from ftbnn_jax.fields import Range
from ftbnn_jax.host import paths
from ftbnn_jax.nn.own import OwnModel
from ftbnn_jax.nn.spec import ResNetSpec
from ftbnn_jax.ops.preprocessing import Preprocessing

if TYPE_CHECKING:
    import ml_collections

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

# Where training crops, evaluation sees a square of so many 256ths of an image's shorter side.
CROP_SIDES = (224, 256)
# Values of `augment` by which training takes crops of larger images.
CROPPING = ("resize_crop", "resized_crop")

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

# Steps and images are counted in int32 on the device.
_INT32 = 2**31 - 1
_COUNT, _POSITIVE_COUNT = Range(0, _INT32), Range(1, _INT32)
# Fields that the data can fill in, where they are empty.
_FROM_DATA = ("num_classes", "pixel_mean", "pixel_std")
# An image has up to four channels.
_MOST_CHANNELS = 4

_ALLOWED = {
    # JAX would make the same key of a seed and of one that is 2**32 larger.
    "seed": Range(0, 2**32 - 1),
    "image_size": Range(1, 2**14),
    "num_classes": Range(0, 2**20),
    "eval_share": Range(0, 1, without=(0, 1)),
    "batch_size": Range(1, 2**20),
    "num_epochs": _POSITIVE_COUNT,
    "num_steps": _COUNT,
    "eval_every": _COUNT,
    "checkpoint_every": _COUNT,
    "keep_checkpoints": _POSITIVE_COUNT,
    "log_every": _POSITIVE_COUNT,
    "loggers": ("tensorboard", "csv", "wandb"),
    "learning_rate": fields.NOT_NEGATIVE,
    "schedule": ("cosine", "multistep", "constant"),
    "schedule_boundaries": Range(0, 1, without=(0, 1), longest=1000),
    "schedule_factor": fields.NOT_NEGATIVE,
    "warmup_steps": _COUNT,
    "weight_decay": fields.NOT_NEGATIVE,
    "decayed": ("binary", "real", "norms", "slopes", "biases"),
    "label_smoothing": fields.SHARE,
    "label_weight": fields.NOT_NEGATIVE,
    "teacher_weight": fields.NOT_NEGATIVE,
    "teacher_temperature": fields.POSITIVE,
    "attention_weight": fields.NOT_NEGATIVE,
    "compute_dtype": ("auto", "float32", "bfloat16", "float16"),
    "batch_norm": ("global", "per_device"),
    "accumulation_steps": Range(1, 2**20),
    "remat": ("none", "outputs", "stages"),
    "augment": (*CROPPING, "pad_crop", "none"),
    "crop_padding": Range(0, 2**14),
    "max_corrupt_records": _COUNT,
    "pixel_mean": Range(longest=_MOST_CHANNELS, shortest=0),
    "pixel_std": Range(0, without=(0,), longest=_MOST_CHANNELS, shortest=0),
}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One experiment. Sections 3 and Appendix C of the paper, and PyTorch's habits where it is silent.

    Attributes:
      model: the network, or the fields that its user's own function `get_network` reads.
      network: path of the Python file of that function; "" for none. That of the config file itself
        needs no mention.
      seed: of the initial weights, the order of the images and their augmentation.
      dataset: "digits" (scikit-learn's, no download), "fake" (random images), the name of any TFDS image
        classification set, or "folder:PATH", a folder of image files (see `data.folder`).
      data_dir: where TFDS looks; "" for the environment variable TFDS_DATA_DIR, or TFDS's default.
      train_split: of the data set, in TFDS's notation ("train[:90%]").
      eval_split: likewise; "" for "validation", or "test" where the set has no such split.
      eval_share: of the images of a folder that are kept for evaluation, where it has none beside those
        for training.
      image_size: height and width that the network sees; `preprocessing` says how images come to it.
      num_classes: number of logits; at least the data set's number of classes. 0 for that number.
      batch_size: images in a step, over all devices. The paper does not say; 256 is a choice.
      num_epochs: passes over the training split.
      num_steps: steps to train; 0 for as many as `num_epochs` takes.
      eval_every: steps between evaluations; 0 for once an epoch. The last step is always evaluated.
      checkpoint_every: steps between checkpoints; 0 for none but those of evaluated steps.
      keep_checkpoints: how many of the latest to keep; the best evaluated one is kept as well.
      log_every: steps over which training metrics are averaged before they are written.
      loggers: where metrics go beside `metrics.jsonl`: some of "tensorboard", "csv" and "wandb".
      learning_rate: at the start, or after the warm-up.
      schedule: "cosine" (to 0), "multistep" or "constant".
      schedule_boundaries: for "multistep", the shares of the training at which the rate drops.
      schedule_factor: for "multistep", what the rate is multiplied with at each of them.
      warmup_steps: of a linear warm-up from 0.
      weight_decay: factor of the L2 term that is added to gradients. The paper gives no number but the
        0 of binary convolutions (section 3).
      decayed: which kinds of parameters get it, some of "binary" (latent weights of binary products),
        "real" (weights of all other products), "norms" (scales and offsets of norms, and other factors),
        "slopes" (of PReLU and FPReLU) and "biases" (of real products). All but the first, as PyTorch
        does to whatever is not set apart.
      label_smoothing: share of the target spread evenly over all classes.
      start_from: work directory of a run whose newest checkpoint gives the first weights and batch
        statistics, where this one has none of its own; "" for random ones. The classifier's begin anew
        where the classes are others.
      freeze: a regular expression; parameters and batch statistics in whose names it is found
        ("stem/conv/kernel") stay as they begin. "" for none.
      teacher: work directory of the run whose newest checkpoint the network learns from, beside the
        labels; "" for none. The next four fields are for this.
      label_weight: of the cross-entropy with the labels; 0 for soft labels alone (Appendix C).
      teacher_weight: of the divergence from the teacher's outputs, whose gradient is that of the
        cross-entropy with them as soft labels.
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
      augment: "resize_crop" (Appendix C, after He et al., 2016: the shorter side is drawn from 256/224
        to 480/224 of `image_size`, and a square taken from anywhere) or "resized_crop" (random area and
        aspect ratio), by which evaluation, and the packed net, take the centre crop; "pad_crop" (random
        shifts by `crop_padding`) or "none", by which they take whole images.
      crop_padding: for "pad_crop", zero pixels added on each side before the crop.
      flip: whether training images are mirrored at random.
      max_corrupt_records: damaged images passed over in each split, on each host; one more ends the run.
      pixel_mean: subtracted from pixel values 0 to 255; one number, or one per channel. () for what the
        training images give.
        It stands in for the paper's mean image where there is none.
      pixel_std: divided by, likewise. The paper divides by nothing; behind the stem's batch norm only
        the ratio of the channels' numbers would be felt.
      mean_image: path of a mean image, as `ftbnn_jax.data.mean_image` writes it, which is subtracted
        pixel by pixel in the place of `pixel_mean` (Appendix C); "" for none.

    Raises:
      UserError: a field has an impossible value; the message names it.
    """

    model: ResNetSpec | OwnModel
    network: str = ""
    seed: int = 0
    dataset: str = "imagenet2012"
    data_dir: str = ""
    train_split: str = "train"
    eval_split: str = ""
    eval_share: float = 0.1
    image_size: int = 224
    num_classes: int = 1000
    batch_size: int = 256
    num_epochs: int = 60
    num_steps: int = 0
    eval_every: int = 0
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    log_every: int = 100
    loggers: tuple[str, ...] = ("tensorboard",)
    learning_rate: float = 0.01
    schedule: str = "cosine"
    schedule_boundaries: tuple[float, ...] = (45 / 60, 55 / 60)
    schedule_factor: float = 0.1
    warmup_steps: int = 0
    weight_decay: float = 1e-5
    decayed: tuple[str, ...] = ("real", "norms", "slopes", "biases")
    label_smoothing: float = 0.0
    start_from: str = ""
    freeze: str = ""
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
    augment: str = "resize_crop"
    crop_padding: int = 4
    flip: bool = True
    max_corrupt_records: int = 10
    pixel_mean: tuple[float, ...] = IMAGENET_MEAN
    pixel_std: tuple[float, ...] = (1.0,)
    mean_image: str = ""

    def __post_init__(self):
        if isinstance(self.model, Mapping):
            object.__setattr__(self, "model", OwnModel(plain(self.model)))
        if not isinstance(self.model, ResNetSpec | OwnModel):
            raise UserError(
                "must be a ResNetSpec, or the fields that get_network reads, by name",
                f"config.model={fields.shown(self.model)}",
            )
        fields.check("config.", self, _ALLOWED)
        if self.network:
            object.__setattr__(self, "network", os.path.abspath(paths.expand(self.network)))
        if self.mean_image:
            path = paths.expand(self.mean_image)
            path = path if paths.is_remote(path) else os.path.abspath(path)
            object.__setattr__(self, "mean_image", path)
        try:
            re.compile(self.freeze)
        except re.error as error:
            raise UserError(
                f"no regular expression: {error}; names of parameters, as in 'stem|block1', would do",
                f"config.freeze={self.freeze!r}",
            ) from error
        named = isinstance(self.stages, Mapping) and all(isinstance(n, str) for n in self.stages)
        if not named or not all(isinstance(stage, Mapping) for stage in self.stages.values()):
            raise UserError(
                "must be each stage's fields by its name", f"config.stages={fields.shown(self.stages)}"
            )
        if any(a >= b for a, b in itertools.pairwise(self.schedule_boundaries)):
            raise UserError("must ascend", f"config.schedule_boundaries={self.schedule_boundaries}")
        if self.batch_size * self.log_every > _INT32:
            raise UserError(
                f"images are counted over so many steps, in int32; of {self.batch_size} a step at most "
                f"{_INT32 // self.batch_size} would do",
                f"config.log_every={self.log_every}",
            )

    @property
    def from_data(self) -> tuple[str, ...]:
        """Names of the fields whose values are still to be found in the data (`data.automatic`)."""
        return tuple(name for name in _FROM_DATA if not getattr(self, name))

    @property
    def crops(self) -> bool:
        """Whether training takes crops of images of any size, and evaluation their centres."""
        return self.augment in CROPPING

    @property
    def mean(self) -> tuple[float, ...] | np.ndarray:
        """What is subtracted from pixels: an image `[S, S, C]`, or one number or one per channel.

        Raises:
          UserError: there is no such mean image.
        """
        if not self.mean_image:
            return self.pixel_mean
        return mean_image.load(self.mean_image, self.image_size)

    @property
    def mean_digest(self) -> str:
        """Text that stands for the numbers of the mean image, "" where there is none."""
        return mean_image.digest(self.mean) if self.mean_image else ""

    def check_classes(self) -> None:
        """Raises a UserError where a command that reads no data is not told the number of classes."""
        if not self.num_classes:
            raise UserError(
                "is as many as the data has, which is not read here; give a number",
                "config.num_classes=0",
            )

    def preprocessing(self, channels: int) -> Preprocessing:
        """Returns how images of so many channels enter the network, in evaluation and when deployed.

        A network that learns from crops of larger images sees their centre, as Appendix C has it; any
        other sees whole images.
        """
        return Preprocessing(
            size=self.image_size,
            channels=channels,
            crop=CROP_SIDES[0] if self.crops else 0,
            antialias=not self.crops,
            mean=self.pixel_mean if not self.mean_image else _by_channel(self.mean),
            std=self.pixel_std,
        )

    def spec(self, purpose: str) -> ResNetSpec:
        """Returns the specification of the network, for what can do with nothing else.

        Raises:
          UserError: the network is its user's own.
        """
        if not isinstance(self.model, ResNetSpec):
            raise UserError(
                f"{purpose} needs a network of a ResNetSpec", f"config.network={self.network}"
            )
        return self.model

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields, the model's nested, as values that JSON can hold."""
        # The model is a value of its own, and no dictionary would become the same again.
        others = dataclasses.replace(self, model=OwnModel({}))
        return {**dataclasses.asdict(others), "model": self.model.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Builds the typed config from a ConfigDict or from `to_dict`'s result.

        Raises:
          UserError: a field is unknown or has an impossible value, or there is no model.
        """
        values = plain(values)
        if not isinstance(values, Mapping):
            raise UserError(
                "must be the fields of an experiment, by name", f"config={fields.shown(values)}"
            )
        known = {field.name: None for field in dataclasses.fields(cls)}
        for name in values:
            overrides.check_key(known, name)
        if "model" not in values:
            raise UserError("must be given", "config.model")
        network = values.get("network", "")
        return cls(**{**values, "model": _model(values["model"], str(network))})


# Fields whose values are lists of names.
LISTS_OF_NAMES = frozenset(f.name for f in dataclasses.fields(TrainConfig) if f.type == tuple[str, ...])


def _by_channel(image: np.ndarray) -> tuple[float, ...]:
    return tuple(image.mean((0, 1), dtype=np.float64).tolist())


def _model(values: Any, network: str) -> ResNetSpec | OwnModel:
    """Returns the fields of a network, its user's own where a file has its function."""
    if not network:
        try:
            return ResNetSpec.from_dict(values)
        except UserError as error:
            if not error.what.startswith("no such field"):
                raise
            raise UserError(
                f"{error.what}; a network with fields of its own needs get_network", error.where
            ) from error
    if not isinstance(values, Mapping):
        raise UserError(
            "must be the fields that get_network reads, by name", f"config.model={fields.shown(values)}"
        )
    if values.keys() >= {field.name for field in dataclasses.fields(ResNetSpec)}:
        raise UserError(
            f"is a ResNetSpec, and {network} has get_network; one of them alone would do, or "
            "config.make with fields of your own",
            "config.model",
        )
    return OwnModel(values)


def plain(value: Any) -> Any:
    """Returns JSON's lists as tuples and ConfigDicts as dictionaries."""
    if isinstance(value, (list, tuple)):
        return tuple(map(plain, value))
    if hasattr(value, "items"):
        return {name: plain(inner) for name, inner in value.items()}
    return value


def make(model: ResNetSpec | Mapping[str, Any], **values: Any) -> "ml_collections.ConfigDict":
    """Returns a ConfigDict with the fields of `TrainConfig`, defaults filled in.

    Args:
      model: the network; fields by name where the config file has `get_network`, which reads them.
      **values: fields of `TrainConfig` that differ from its defaults.

    Raises:
      UserError: a field has an impossible value.
    """
    with extras.named():
        import ml_collections

    return ml_collections.ConfigDict(TrainConfig(model, **values).to_dict())
