"""Single fields of a config, given on a command line or by their names."""

import ast
import functools
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ftbnn_jax import fields
from ftbnn_jax.errors import UserError
from ftbnn_jax.nearest import nearest

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


def apply(config: dict[str, Any], override: str, lists_of_names: Collection[str]) -> None:
    """Puts the value of an override, "model.width=32", in its place.

    Args:
      config: all fields of an experiment, the model's nested.
      override: one field's key and value.
      lists_of_names: the keys of the fields that hold names, which need no quotes.

    Raises:
      UserError: there is no such field, or it has fields of its own.
    """
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
    if key in lists_of_names and isinstance(value, str):
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
