"""The variables of a network by their names, "params/head/bias"."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def by_name(tree: Any) -> dict[str, Any]:
    """Returns the arrays of a nested dictionary, the keys on the way to each joined with slashes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def changed(tree: Any, change: Callable[[str, Any], Any]) -> Any:
    """Returns a tree like `tree` of `change(name, array)` for each of its arrays."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: change(_name(path), leaf), tree)


def not_finite(tree: Any) -> list[str]:
    """Returns the names of the arrays that hold a number that is not finite; random keys hold none."""
    arrays = by_name(tree).items()
    numbers = {name: leaf for name, leaf in arrays if not _is_key(leaf)}
    return [name for name, leaf in numbers.items() if not np.isfinite(leaf).all()]


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)
