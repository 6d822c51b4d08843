"""The fields `config.model` of a network that its user has written; plain data."""

import math
from collections.abc import Mapping
from typing import Any

from ftbnn_jax import fields
from ftbnn_jax.errors import UserError
from ftbnn_jax.nearest import nearest


class OwnModel:
    """Values by name, `model.width`, which do not change.

    Raises:
      UserError: a name is no word or one that is taken, or a value is none that JSON can hold.
    """

    def __init__(self, values: Mapping[str, Any], path: str = "config.model"):
        """Takes over values.

        Args:
          values: numbers, truth values, text, None, tuples of these, and such values by name.
          path: of the fields, for messages.
        """
        found = {}
        for name, value in values.items():
            if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
                raise UserError("must be a word of letters, digits and _", f"{path}.{name}")
            if hasattr(type(self), name):
                raise UserError("stands for something else; any other name would do", f"{path}.{name}")
            found[name] = _value(value, f"{path}.{name}")
        object.__setattr__(self, "_values", found)

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("_values", {})
        if name in values:
            return values[name]
        hint = f"; the nearest is {nearest(name, values)}" if values else ""
        raise AttributeError(f"config.model has no field {name!r}{hint}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"config.model.{name}: does not change; get_config says what it is")

    def __getstate__(self) -> dict[str, Any]:
        return self._values

    def __setstate__(self, values: dict[str, Any]) -> None:
        object.__setattr__(self, "_values", values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnModel) and self._values == other._values

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return repr(self.to_dict())

    @property
    def architecture(self) -> "OwnModel":
        """What decides what a trained network computes: any of the fields might."""
        return self

    def training(self) -> dict[str, Any]:
        """Returns the fields that matter in training alone, of which nothing is known."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as values that JSON can hold."""
        return {
            name: value.to_dict() if isinstance(value, OwnModel) else value
            for name, value in self._values.items()
        }


def _value(value: Any, path: str) -> Any:
    if isinstance(value, OwnModel):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return OwnModel(value, path)
    if isinstance(value, list | tuple):
        found = tuple(_value(inner, path) for inner in value)
        if not any(isinstance(inner, OwnModel) for inner in found):
            return found
    elif (
        value is None
        or type(value) in (bool, int, str)
        or (type(value) is float and math.isfinite(value))
    ):
        return value
    raise UserError(
        "must be a finite number, a truth value, text, None, a tuple of these or fields of its own",
        f"{path}={fields.shown(value)}",
    )
