"""The fields of an experiment, with the paper's ImageNet recipe as defaults.

Config files return `make(model, ...)`, a ConfigDict whose keys are the fields of `TrainConfig`; every
one can be overridden on the command line. Below `main` the code sees the frozen
`TrainConfig` alone.
"""

import ast
import contextlib
import dataclasses
import functools
import glob
import itertools
import os
import re
import runpy
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ftbnn_jax import extras, fields
from ftbnn_jax.errors import UserError, summary
from ftbnn_jax.fields import Range
from ftbnn_jax.host import paths
from ftbnn_jax.nearest import nearest
from ftbnn_jax.nn.own import OwnModel
from ftbnn_jax.nn.spec import ResNetSpec
from ftbnn_jax.ops.preprocessing import Preprocessing

if TYPE_CHECKING:
    import ml_collections

# The configs that come with the package, which lie in `configs/` in a clone.
_SHIPPED = os.path.join(os.path.dirname(__file__), "configs")
_FOLDER = "configs"

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

# Evaluation sees so much of an image that is cropped in training, in 256ths of its shorter side.
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


# What fields are called elsewhere, where no word of their own name says it.
_MEANINGS = {
    "accum": "accumulation_steps",
    "arch": "model",
    "augmentation": "augment",
    "batch": "batch_size",
    "bn": "batch_norm",
    "bs": "batch_size",
    "checkpoint": "start_from",
    "checkpointing": "remat",
    "data_path": "data_dir",
    "dtype": "compute_dtype",
    "gamma": "schedule_factor",
    "grad_accum": "accumulation_steps",
    "hflip": "flip",
    "init_from": "start_from",
    "layers": "model.blocks",
    "lr": "learning_rate",
    "max_steps": "num_steps",
    "milestones": "schedule_boundaries",
    "precision": "compute_dtype",
    "pretrained": "start_from",
    "res": "image_size",
    "resolution": "image_size",
    "save_every": "checkpoint_every",
    "scheduler": "schedule",
    "size": "image_size",
    "steps": "num_steps",
    "total_steps": "num_steps",
    "wd": "weight_decay",
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
    "label_smoothing": fields.SHARE,
    "label_weight": fields.NOT_NEGATIVE,
    "teacher_weight": fields.NOT_NEGATIVE,
    "teacher_temperature": fields.POSITIVE,
    "attention_weight": fields.NOT_NEGATIVE,
    "compute_dtype": ("auto", "float32", "bfloat16", "float16"),
    "batch_norm": ("global", "per_device"),
    "accumulation_steps": Range(1, 2**20),
    "remat": ("none", "outputs", "stages"),
    "augment": ("resized_crop", "pad_crop", "none"),
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
      batch_size: images in a step, over all devices.
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
      weight_decay: L2 term added to the gradients of the real convolutions' and the classifier's
        kernels; binary kernels, batch norm, slopes and biases never get any.
      label_smoothing: share of the target spread evenly over all classes.
      start_from: work directory of a run whose newest checkpoint gives the first weights and batch
        statistics, where this one has none of its own; "" for random ones. The classifier's begin anew
        where the classes are others.
      freeze: a regular expression; parameters and batch statistics in whose names it is found
        ("stem/conv/kernel") stay as they begin. "" for none.
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
      pixel_mean: subtracted from pixel values 0 to 255; one number, or one per channel. () for what the
        training images give.
      pixel_std: divided by, likewise.

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
    augment: str = "resized_crop"
    crop_padding: int = 4
    flip: bool = True
    max_corrupt_records: int = 10
    pixel_mean: tuple[float, ...] = IMAGENET_MEAN
    pixel_std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self):
        if isinstance(self.model, Mapping):
            object.__setattr__(self, "model", OwnModel(_plain(self.model)))
        if not isinstance(self.model, ResNetSpec | OwnModel):
            raise UserError(
                "must be a ResNetSpec, or the fields that get_network reads, by name",
                f"config.model={fields.shown(self.model)}",
            )
        fields.check("config.", self, _ALLOWED)
        if self.network:
            object.__setattr__(self, "network", os.path.abspath(paths.expand(self.network)))
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
        cropped = self.augment == "resized_crop"
        return Preprocessing(
            size=self.image_size,
            channels=channels,
            crop=_EVAL_CROP if cropped else 0,
            antialias=not cropped,
            mean=self.pixel_mean,
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
        values = _plain(values)
        if not isinstance(values, Mapping):
            raise UserError(
                "must be the fields of an experiment, by name", f"config={fields.shown(values)}"
            )
        known = {field.name: None for field in dataclasses.fields(cls)}
        for name in values:
            check_key(known, name)
        if "model" not in values:
            raise UserError("must be given", "config.model")
        network = values.get("network", "")
        return cls(**{**values, "model": _model(values["model"], str(network))})


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


def _plain(value: Any) -> Any:
    """Returns JSON's lists as tuples and ConfigDicts as dictionaries."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    if hasattr(value, "items"):
        return {name: _plain(inner) for name, inner in value.items()}
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


def run_file(file: str) -> dict[str, Any]:
    """Returns what a config file defines, by name. The same text is run once in a process.

    Raises:
      OSError: it cannot be read.
    """
    with open(file, "rb") as stream:
        return _run(file, stream.read())


@functools.lru_cache(maxsize=64)
def _run(file: str, content: bytes) -> dict[str, Any]:
    return runpy.run_path(file)


@contextlib.contextmanager
def told(path: str, file: str = "") -> Iterator[None]:
    """Makes one line of whatever a config file raises, SystemExit included, with the line in the file.

    Args:
      path: what the message begins with.
      file: where `path` leads to; "" for `path` itself.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except UserError as error:
        raise error.within(f"{path}: ") from error
    except BaseException as error:
        if isinstance(error, ImportError) and (missing := extras.missing(error.name or "")):
            raise missing.within(f"{path}: ") from error
        file = os.path.abspath(file or path)
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f"line {f.lineno}: " for f in frames if os.path.abspath(f.filename) == file]
        where = f"{path}: {lines[-1] if lines else ''}{type(error).__name__}"
        hint = "; x.shape[0] would do, len(x) does not" if "_DimExpr" in str(error) else ""
        raise UserError(f"{where}: {summary(error)}{hint}") from error


def load(path: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Runs a config file and returns its experiment.

    Args:
      path: path of a Python file with a function `get_config`, or what `find` takes; what follows a
        colon is its argument, as in "derived44_g5:90".
      overrides: values for some of its fields, "model.width=32".

    Raises:
      UserError: there is no such file, it does not hold a config, or an override does not fit it.
    """
    file, _, argument = paths.expand(path).partition(":")
    file = find(file)
    with told(path, file):
        defined = run_file(file)
        get_config = defined.get("get_config")
        if get_config is None:
            raise UserError("has no function get_config, which returns what config.make does")
        values = _plain(get_config(argument) if argument else get_config())
        if "get_network" in defined and isinstance(values, Mapping) and not values.get("network"):
            values = {**values, "network": file}
        config = TrainConfig.from_dict(values).to_dict()
    for override in overrides:
        _override(config, override)
    return TrainConfig.from_dict(config)


def find(file: str) -> str:
    """Returns the path of a config file.

    Args:
      file: its path; or one that comes with the package, by its name, "derived44_g5", or as it lies in a
        clone, "configs/derived44_g5.py". A file of that very path goes before one of the package's.

    Raises:
      UserError: there is neither; it names the nearest.
    """
    if os.path.isfile(file):
        return file
    folder, name = os.path.split(file)
    stem, ending = os.path.splitext(name)
    shipped = {os.path.splitext(n)[0] for n in os.listdir(_SHIPPED) if re.fullmatch("[a-z].*[.]py", n)}
    known = sorted(glob.glob(os.path.join(glob.escape(folder), "*.py")))
    if folder in ("", _FOLDER) and ending in ("", ".py"):
        if stem in shipped:
            return os.path.join(_SHIPPED, f"{stem}.py")
        known += [os.path.join(folder, one) + ending for one in sorted(shipped)]
    raise UserError(
        f"{file}: no such config file" + (f"; the nearest is {nearest(file, known)}" if known else "")
    )


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the overrides among the arguments of a command, "model.width=32", and the other arguments.

    They are written `--config.KEY=VALUE` or `--config.KEY VALUE`.

    Raises:
      UserError: an override has no value, or there are two for one field.
    """
    prefix = "--config."
    overrides, keys, others = [], [], []
    remaining = iter(arguments)
    for argument in remaining:
        if not argument.startswith(prefix):
            others.append(argument)
            continue
        key, equals, value = argument.removeprefix(prefix).partition("=")
        if not equals:
            value = next(remaining, "--")
            # No value begins so: this is the next option.
            if value.startswith("--"):
                raise UserError(f"{prefix}{key}: is written {prefix}{key}=VALUE or {prefix}{key} VALUE")
        overrides.append(f"{key}={value}")
        keys.append(key)
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"{prefix}{key}: given {keys.count(key)} times; once would do")
    return overrides, others


def _override(config: dict[str, Any], override: str) -> None:
    """Puts the value of "model.width=32" in its place."""
    key, _, text = override.partition("=")
    check_key(config, key)
    *parents, name = key.split(".")
    place = functools.reduce(dict.__getitem__, parents, config)
    if isinstance(place[name], dict):
        inner = ", ".join(place[name]) or "none here"
        raise UserError(
            f"has fields of its own, which can be overridden: {inner}", f"config.{key}={text}"
        )
    value = text if isinstance(place[name], str) else _literal(text)
    names = {field.name for field in dataclasses.fields(TrainConfig) if field.type == tuple[str, ...]}
    if key in names and isinstance(value, str):
        # Names need no quotes: "csv", "tensorboard,csv", or "" for none of them.
        value = tuple(part.strip() for part in text.split(",") if part.strip())
    # Nobody else knows what a user's own fields can be.
    if config["network"] and parents[:1] == ["model"] and not _alike(value, place[name]):
        raise UserError(
            f"must be of the kind of {fields.shown(place[name])}, {type(place[name]).__name__}",
            f"config.{key}={text}",
        )
    place[name] = value


def _alike(value: Any, default: Any) -> bool:
    """Whether a value can take the place of a default: a whole number that of a real one as well."""
    kinds = {float: (float, int), type(None): (object,)}.get(type(default), (type(default),))
    return isinstance(value, kinds) and isinstance(value, bool) <= isinstance(default, bool | None)


def _literal(text: str) -> Any:
    """Returns a number, truth value or tuple as Python writes it; text where it is none."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        with warnings.catch_warnings(action="ignore"):  # Text that is no literal can warn.
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def check_key(config: Mapping[str, Any], key: str) -> None:
    """Raises a UserError naming the nearest known key where `config` has no `key` ("model.width")."""
    if key not in (known := _dotted(config)):
        meant = nearest(str(key), known, _MEANINGS)
        raise UserError(f"no such key; the nearest is config.{meant}", f"config.{key}")


def _dotted(config: Mapping[str, Any]) -> list[str]:
    keys = []
    for name, value in config.items():
        if not isinstance(name, str) or "." in name:
            continue  # This is no key of ours, and could not be told from a nested one.
        keys.append(name)
        if isinstance(value, Mapping):
            keys += [f"{name}.{inner}" for inner in _dotted(value)]
    return keys
