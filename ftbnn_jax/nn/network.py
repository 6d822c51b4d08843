"""What training, budgets and export know of a network: how its variables begin, and what it computes.

`Network` is the one interface. A callable that is a pytree of arrays (an equinox module is one) and a
pair of functions each have a class that fits them to it; `flax_networks` has those of flax's modules.
"""

import abc
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ftbnn_jax.errors import UserError

# By collection: `params`, which are trained, and whatever else a network carries, such as `batch_stats`.
Variables = dict[str, Any]

# Whether what lies at a path, "stem/bn/mean", stays as it is in training.
Frozen = Callable[[str], bool]

# What a training step can give a network beside the images, each where its signature has it.
ARGUMENTS = ("train", "progress")


class Outputs(NamedTuple):
    """What a network gives for a batch.

    Attributes:
      logits: `[N, num_classes]`.
      collections: all variables but the parameters, after the batch; in inference as they were.
      blocks: the output of each named block, `[N, H', W', C']`.
    """

    logits: jax.Array
    collections: Variables
    blocks: dict[str, jax.Array]


def moves(path: str) -> bool:
    """Is a `Frozen` by which nothing is."""
    return False


class Network(abc.ABC):
    """A network without its variables.

    Attributes:
      stages: how many named blocks each stage has: `block1_1`, `block1_2` and so on; () where blocks
        have no names.
      uses_progress: whether it depends on the share of the training that is done.
      uses_keys: whether it may draw random numbers in training.
    """

    stages: tuple[int, ...] = ()
    uses_progress: bool = False
    uses_keys: bool = True

    @abc.abstractmethod
    def init(self, key: jax.Array, images: jax.Array) -> Variables:
        """Returns the variables before the first step, for standardised images `[N, H, W, C]`."""

    @abc.abstractmethod
    def run(
        self,
        variables: Variables,
        images: jax.Array,
        train: bool = False,
        progress: jax.Array | float = 1.0,
        key: jax.Array | None = None,
    ) -> Outputs:
        """Returns what the network gives.

        Args:
          variables: as `init` makes them.
          images: standardised, float32 `[N, H, W, C]`.
          train: whether this is a training step.
          progress: scalar, share of the training that is done.
          key: for random numbers, in training; None gives none.
        """

    def __call__(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Returns the logits `[N, num_classes]` in inference."""
        return self.run(variables, images).logits


def arguments(function: Callable[..., Any], first: str, optional: tuple[str, ...]) -> frozenset[str]:
    """Returns which of the optional arguments a function takes, by its signature.

    Raises:
      UserError: it needs another one, or none at all.
    """
    parameters = list(inspect.signature(function).parameters.values())
    several = {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    variadic = {p.kind for p in parameters} & several
    named = [p for p in parameters if p.kind not in several]
    positional = len(first.split(", "))
    for p in named[positional:]:
        if p.name not in optional and p.default is p.empty:
            raise UserError(
                f"its network needs an argument {p.name!r}; it is called with {first}, and with "
                f"{' and '.join(optional)} where it takes them"
            )
    if len(named) < positional and inspect.Parameter.VAR_POSITIONAL not in variadic:
        raise UserError(f"its network must take {first}")
    if inspect.Parameter.VAR_KEYWORD in variadic:
        return frozenset(optional)
    return frozenset(p.name for p in named[positional:]) & frozenset(optional)


def given(taken: frozenset[str], train: bool, progress: Any) -> dict[str, Any]:
    """Returns the arguments among these that are taken, by name."""
    values = {"train": train, "progress": progress}
    return {name: value for name, value in values.items() if name in taken}


class Names:
    """The leaves of any pytree by name, as the nested dictionaries that checkpoints hold."""

    def __init__(self, tree: Any):
        flat, self._structure = jax.tree_util.tree_flatten_with_path(tree)
        self.paths = [_parts(path) for path, _ in flat]

    def to_dict(self, tree: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path, leaf in zip(self.paths, jax.tree.leaves(tree), strict=True):
            place = found
            for part in path[:-1]:
                place = place.setdefault(part, {})
            place[path[-1]] = leaf
        return found

    def to_tree(self, values: Mapping[str, Any]) -> Any:
        leaves = []
        for path in self.paths:
            place = values
            for part in path:
                place = place[part]
            leaves.append(place)
        return jax.tree.unflatten(self._structure, leaves)


def _parts(path: Any) -> tuple[str, ...]:
    parts = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
    # nnx keeps the array of a variable one step below its name.
    return parts[:-1] if len(parts) > 1 and parts[-1] == "value" else parts


class Callables(Network):
    """A callable that is a pytree: its floating point arrays are parameters, all else stays as it is."""

    uses_keys = False

    def __init__(self, function: Callable[..., jax.Array]):
        """Takes a callable as it is.

        Raises:
          UserError: it needs an argument that there is not.
        """
        self._taken = arguments(function, "images", ARGUMENTS)
        self.uses_progress = "progress" in self._taken
        leaves, self._structure = jax.tree.flatten(function)
        self._leaves = [None if is_parameter(leaf) else leaf for leaf in leaves]
        self._params = jax.tree.unflatten(
            self._structure, [leaf if is_parameter(leaf) else None for leaf in leaves]
        )
        self._names = Names(self._params)

    def init(self, key, images):
        return {"params": self._names.to_dict(self._params)}

    def run(self, variables, images, train=False, progress=1.0, key=None):
        params = iter(jax.tree.leaves(self._names.to_tree(variables["params"])))
        leaves = [next(params) if leaf is None else leaf for leaf in self._leaves]
        function = jax.tree.unflatten(self._structure, leaves)
        return Outputs(function(images, **given(self._taken, train, progress)), {}, {})


def is_parameter(leaf: Any) -> bool:
    """Whether a leaf of a callable is an array of floating point numbers, which are trained."""
    return hasattr(leaf, "shape") and jnp.issubdtype(leaf.dtype, jnp.floating)


class Functions(Network):
    """A pair of functions: `init(key, images)` makes the parameters, `apply(params, images)` the logits.

    The parameters are nested dictionaries of arrays. `init` may do without the images; `apply` is given
    `train`, `progress` and `key`, of random numbers in training and None else, where it takes them.
    """

    def __init__(self, init: Callable[..., Any], apply: Callable[..., jax.Array]):
        """Takes both as they are.

        Raises:
          UserError: one needs an argument that there is not.
        """
        self._init, self._apply = init, apply
        self._of_images = "images" in arguments(init, "key", ("images",))
        self._taken = arguments(apply, "params, images", (*ARGUMENTS, "key"))
        self.uses_progress, self.uses_keys = "progress" in self._taken, "key" in self._taken

    def init(self, key, images):
        params = self._init(key, images=images) if self._of_images else self._init(key)
        _check_dictionaries(params)
        return {"params": params}

    def run(self, variables, images, train=False, progress=1.0, key=None):
        values = given(self._taken, train, progress) | ({"key": key} if self.uses_keys else {})
        return Outputs(self._apply(variables["params"], images, **values), {}, {})


def _check_dictionaries(tree: Any) -> None:
    for path, _ in jax.tree_util.tree_leaves_with_path(tree):
        keys = [getattr(key, "key", None) for key in path]
        if not keys or not all(isinstance(key, str) for key in keys):
            place = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(
                f"init must return nested dictionaries of arrays, by text; {place or 'the result'!r} is "
                "something else"
            )
