"""What a checkpoint's net was trained to see and to mean, compared with what it is used for."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ftbnn_jax
from ftbnn_jax import config as config_lib
from ftbnn_jax import networks, report
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.data import batches, sets
from ftbnn_jax.errors import UserError
from ftbnn_jax.train import optimizer

# A checkpoint goes on training, starts another training, teaches, or does what it was trained for.
Use = Literal["resume", "start_from", "teacher", "use"]

# Fields of a config or of `describe`, the uses that refuse another value, and those that go on with a
# warning. A net that gives weights or teaches may have another structure, as far as the shapes allow it,
# a teacher another scale, and one that gives weights other classes, for a classifier that begins anew.
# `warn_of_changes` tells what changes of the config while a run goes on.
_FIELDS: tuple[tuple[str, set[Use], set[Use]], ...] = (
    ("channels", {"resume", "start_from", "teacher", "use"}, set()),
    ("num_classes", {"resume", "teacher", "use"}, set()),
    ("network", {"resume", "use"}, set()),
    ("model", {"resume", "use"}, set()),
    ("freeze", {"resume"}, set()),
    ("image_size", {"teacher", "use"}, {"start_from"}),
    ("pixel_mean", {"use"}, {"start_from"}),
    ("pixel_std", {"use"}, {"start_from"}),
    ("mean_image", {"resume", "use"}, {"start_from"}),
    ("augment", {"use"}, {"start_from"}),
    ("class_names", {"teacher", "use"}, {"resume"}),
)
# Values of `augment` by which evaluation sees whole images.
_WHOLE = ("pad_crop", "none")
_ADVICE = {
    "resume": "; use that value or another --workdir",
    "start_from": "",
    "teacher": "",
    "use": "; use that value",
}


def describe(config: TrainConfig, split: sets.Split) -> dict[str, Any]:
    """Returns what is saved beside a run's weights.

    Args:
      config: of the run.
      split: its training images.

    Returns:
      `config` (all fields), `channels`, `class_names` (one name a class, in the order of the labels),
      `num_examples`, `mean_image` (a digest of its numbers), the package's `version`, and `network`,
      as `networks.identity` has it.
    """
    return {
        "config": config.to_dict(),
        "channels": split.channels,
        "class_names": list(split.class_names),
        "num_examples": split.num_examples,
        "mean_image": config.mean_digest,
        "version": ftbnn_jax.__version__,
        "network": networks.identity(config, split.channels),
    }


def complete(saved: Any) -> dict[str, Any]:
    """Returns `describe`'s result, as a checkpoint holds it; raises a ValueError for whatever else."""
    for name, kind in (("config", dict), ("channels", int), ("class_names", list)):
        if not isinstance(saved, dict) or not isinstance(saved.get(name), kind):
            raise ValueError(f"no {name} beside the weights")
    return saved


def check(
    where: str,
    saved: dict[str, Any],
    config: TrainConfig,
    split: sets.Split | None = None,
    use: Use = "use",
) -> None:
    """Compares what a checkpoint's net was trained with and what it is used with.

    Args:
      where: the checkpoint, as the message names it.
      saved: `describe`'s result, from the checkpoint.
      config: of the use.
      split: the images that the net is used on; None where there are none, or none yet.
      use: decides what is refused and what is told.

    Raises:
      UserError: names the first field that must not differ, both values and what would be right.
    """
    here = {**saved, "config": config.to_dict(), "mean_image": config.mean_digest}
    if split is not None:
        here |= {"channels": split.channels, "class_names": list(split.class_names)}
    # This classifier reads every position, and another image size has others.
    flattens = not config.network and config.model.head == "flatten"
    for name, refused, told in _FIELDS:
        if not (difference := _difference(name, saved, here)):
            continue
        text = f"{where}: was trained with {difference}"
        if use in refused or (name == "image_size" and flattens):
            raise UserError(text + _ADVICE[use])
        if use in told:
            report.warn(f"{text}; the training goes on with the latter")
    if use in ("resume", "use"):
        check_program(where, saved, config)


def check_program(where: str, saved: dict[str, Any], config: TrainConfig) -> None:
    """Compares a user's own network with the one that was trained, by their programs.

    Args:
      where: the checkpoint, as the message names it.
      saved: `describe`'s result, from the checkpoint.
      config: says which file the network is made by.

    Raises:
      UserError: `get_network` does not give what it gave when the training began.
    """
    if not saved.get("network"):
        return
    # What the fields decide is compared by their names: here it is what has been written around them.
    fields = {**saved["config"], "network": config.network}
    now = networks.identity(TrainConfig.from_dict(fields), saved["channels"])
    if networks.differ(saved["network"], now):
        raise UserError(
            f"{where}: was trained with another network than get_network in {config.network} makes now; "
            "undo what has changed there, or train in another --workdir"
        )


def _difference(name: str, saved: dict[str, Any], here: dict[str, Any]) -> str:
    """Both values of a field where they differ, else ""."""
    if name == "class_names":
        return other_classes(saved["class_names"], here["class_names"])
    theirs, ours = _values(name, saved), _values(name, here)
    for key in sorted(theirs.keys() | ours.keys()):
        if theirs.get(key) != ours.get(key):
            return f"{key}={theirs.get(key)!r}, here it is {ours.get(key)!r}"
    return ""


def _values(name: str, experiment: dict[str, Any]) -> dict[str, Any]:
    """Values of a field, by the names that messages give them; equal ones have the same meaning."""
    if name == "channels":
        return {"channels of the images": experiment["channels"]}
    if name == "mean_image":
        # The numbers count, and not where they lie.
        return {"a mean image of digest": experiment.get("mean_image", "")}
    # A checkpoint may be older than some fields, which then have their defaults.
    config = TrainConfig.from_dict(_known(experiment["config"]))
    if name == "model":
        return {f"config.model.{k}": v for k, v in config.model.architecture.to_dict().items()}
    if name == "network":
        return {"a network of": "get_network" if config.network else "a ResNetSpec"}
    value = getattr(config, name)
    if name in ("pixel_mean", "pixel_std"):
        value = tuple(value) * (experiment["channels"] if len(value) == 1 else 1)
    if name == "augment":
        # Evaluation sees the centre of an image, or all of it.
        value = " or ".join(map(repr, config_lib.CROPPING if config.crops else _WHOLE))
    return {f"config.{name}": value}


def other_classes(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """Returns how the classes there differ from those here, in words; "" where they do not."""
    for number, (one, other) in enumerate(zip(theirs, ours, strict=False)):
        if one != other:
            return (
                f"other classes, or in another order: number {number} is {one!r} there, {other!r} here"
            )
    if len(theirs) != len(ours):
        return f"{len(theirs)} named classes, here there are {len(ours)}"
    return ""


def warn_of_changes(saved: dict[str, Any], config: TrainConfig, split: sets.Split, step: int) -> None:
    """Says what goes on in another way after `step`: fields of the config, order of images, schedule."""
    before = TrainConfig.from_dict(_known(saved["config"]))
    old = _changeable(before)
    for name, value in _changeable(config).items():
        if old[name] != value:
            report.warn(f"{name} is now {value!r}; the checkpoint was made with {old[name]!r}")
    # Older checkpoints do not say how many images there were.
    count = saved.get("num_examples", split.num_examples)
    moved = _other_order(before, count, config, split, step)
    lengths = [
        batches.num_train_steps(before, count),
        batches.num_train_steps(config, split.num_examples),
    ]
    if lengths[0] != lengths[1]:
        moved.append(f"the last step is {lengths[1]:,} instead of {lengths[0]:,}")
    rates = [
        float(optimizer.learning_rate(c, n)(step))
        for c, n in zip((before, config), lengths, strict=True)
    ]
    if rates[0] != rates[1]:
        moved.append(f"the learning rate is {rates[1]:.4g} instead of {rates[0]:.4g}")
    if moved:
        report.warn(f"from step {step:,} on " + "; ".join(moved))


# A file that has moved is the same file, and `check_program` looks at what it makes.
_NOT_CHANGEABLE = ("model", "network", "num_classes", "freeze", "mean_image")


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config, of whatever version, that this one has."""
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    return {name: value for name, value in fields.items() if name in known}


def _changeable(config: TrainConfig) -> dict[str, Any]:
    """Values that may change while a run goes on, by their names: not what `check` refuses."""
    values = {k: v for k, v in config.to_dict().items() if k not in _NOT_CHANGEABLE}
    values |= {f"model.{name}": value for name, value in config.model.training().items()}
    return {f"config.{name}": value for name, value in values.items()}


def _other_order(
    before: TrainConfig, count: int, config: TrainConfig, split: sets.Split, step: int
) -> list[str]:
    """What becomes of the order of the training images, counted from 0 over all epochs."""
    old, new = step * before.batch_size, step * config.batch_size
    found = []
    if old != new:
        found.append(f"images are taken from number {new:,} of the training on instead of {old:,}")
    if (before.dataset, before.train_split) != (config.dataset, config.train_split):
        found.append("they are those of another split")
    elif count != split.num_examples:
        found.append(
            f"an epoch has {split.num_examples:,} images instead of {count:,}, in another order"
        )
    elif before.seed != config.seed:
        found.append("images come in another order: of this epoch some come again and some never")
    elif old != new:
        found.append(f"{abs(new - old):,} {'come again' if new < old else 'are passed over'}")
    return found
