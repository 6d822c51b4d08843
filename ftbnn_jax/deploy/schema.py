"""Typed metadata: what a file may say, checked before anything is built from it.

The types are a dataclass's own annotations: `read` takes JSON's values for exactly its fields, each of
exactly its type, and every number finite and within its limits.
"""

import dataclasses
import math
import re
import types
import typing
from typing import Any

from ftbnn_jax import fields
from ftbnn_jax.errors import UserError

# Least and largest; other integers only need to fit into 32 bits, and the specification of a network
# checks its own. Limits keep what follows from a number, such as the shapes of tensors, small enough to
# be compared with what a file really holds.
_LIMITS = {
    "step": (0, 2**31 - 1),
    "preprocessing.size": (1, 4096),
    "preprocessing.channels": (1, 256),
    "preprocessing.crop": (0, 256),
}
_INTEGERS = (-(2**31), 2**31 - 1)
# Elements of a list, and characters of a string, but for the names of classes.
_LONGEST_LIST = 2**20
_LONGEST_STRING = 64
_LONGEST_NAME = 2**16


def read(kind: type, value: Any, path: str = "", without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns the fields of a dataclass from what JSON holds, nested ones as dictionaries.

    Args:
      kind: the dataclass.
      value: from JSON.
      path: of the value, to begin a message with.
      without: fields that are not in JSON.

    Raises:
      UserError: a field is missing or unknown, or not of its type, finite and within its limits.
    """
    if not isinstance(value, dict):
        raise UserError(
            f"metadata {path or 'of the file'}: an object expected, found {fields.shown(value)}"
        )
    annotations = {f.name: f.type for f in dataclasses.fields(kind) if f.name not in without}
    for name in sorted(annotations.keys() ^ value.keys()):
        found = "no such field is known" if name in value else "is missing"
        raise UserError(f"metadata {fields.shown(_below(path, name))}: {found}")
    return {name: _read(a, value[name], _below(path, name)) for name, a in annotations.items()}


def plain(value: Any) -> Any:
    """Returns a field's value as JSON can hold it."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _read(annotation: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(annotation):
        return annotation(**read(annotation, value, path))
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is types.UnionType:
        return None if value is None else _read(arguments[0], value, path)
    if origin is tuple:
        if not isinstance(value, list) or len(value) > _LONGEST_LIST:
            raise UserError(
                f"metadata {path}: a list of at most {_LONGEST_LIST:,} expected, found "
                f"{fields.shown(value)}"
            )
        return tuple(_read(arguments[0], item, path) for item in value)
    if origin is dict:
        return _read_strings(value, path)
    found = type(value)
    # JSON has one kind of number, and writes a whole one without its point.
    if annotation is float and found is int and abs(value) <= 2**53:
        value, found = float(value), float
    if found is not annotation:
        raise UserError(f"metadata {path}: {annotation.__name__} expected, found {fields.shown(value)}")
    if annotation is int:
        least, most = _LIMITS.get(path, _INTEGERS)
        if not least <= value <= most:
            raise UserError(f"metadata {path}: {least} to {most} expected, found {fields.shown(value)}")
    if annotation is float and not math.isfinite(value):
        raise UserError(f"metadata {path}: a finite number expected, found {value}")
    if annotation is str:
        longest = _LONGEST_NAME if path == "class_names" else _LONGEST_STRING
        if len(value) > longest:
            raise UserError(
                f"metadata {path}: at most {longest} characters expected, found {len(value):,}"
            )
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise UserError(f"metadata {path}: holds half of a surrogate pair: {fields.shown(value)}")
    return value


def _read_strings(value: Any, path: str) -> dict[str, str]:
    """Reads an object of short words: names and versions."""
    word = re.compile(r"[\w.+-]{1,64}", re.ASCII)
    if not isinstance(value, dict):
        raise UserError(f"metadata {path}: an object expected, found {fields.shown(value)}")
    for name, text in value.items():
        if not isinstance(text, str) or not word.fullmatch(text) or not word.fullmatch(name):
            raise UserError(
                f"metadata {path}: names and versions expected, found {fields.shown({name: text})}"
            )
    return dict(value)
