"""The network of a config, made in one place: of a `ResNetSpec`, or what `get_network` returns."""

import contextlib
import dataclasses
import hashlib
import inspect
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

import ftbnn_jax
from ftbnn_jax import config as config_lib
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import trace
from ftbnn_jax.graph import weights as weights_lib
from ftbnn_jax.nn import network as network_lib
from ftbnn_jax.nn import variables as nn_variables
from ftbnn_jax.nn.network import Network, Variables


def make(config: TrainConfig) -> Network:
    """Returns the network of a config.

    Raises:
      UserError: there is no `get_network`, it raises, or returns what is no network.
    """
    frozen = re.compile(config.freeze).search if config.freeze else None
    if not config.network:
        # Imported late: an own network may need no flax.
        from ftbnn_jax.nn import resnet

        fields = config.num_classes, config.compute_dtype, config.remat
        return resnet.network(config.spec("training"), *fields, frozen)
    with _told(config):
        if not os.path.isfile(config.network):
            raise UserError("no such file; the network's get_network was read from there")
        function = config_lib.run_file(config.network).get("get_network")
        if not callable(function):
            raise UserError("has no function get_network, which takes the config and returns a network")
        try:
            inspect.signature(function).bind(config)
        except TypeError:
            raise UserError("get_network must take one argument, the config") from None
        # Weights that it makes are numbers, even where this is part of a program that is traced.
        with jax.ensure_compile_time_eval():
            made = function(config)
        try:
            return _Own(_of(made, frozen or network_lib.moves), config)
        except UserError as error:
            raise UserError(f"get_network: {error.what}") from error


def _of(made: Any, frozen: network_lib.Frozen) -> Network:
    """Returns the network that an object stands for.

    Args:
      made: a flax.linen or nnx module, a callable that is a pytree of arrays, or a pair of functions.
      frozen: what does not move in training.

    Raises:
      UserError: it is something else, or needs an argument that there is not.
    """
    if isinstance(made, type):
        raise UserError(f"returns the class {made.__name__}; one object of it would do")
    if "flax" in sys.modules:
        # Imported late: whoever has one of flax's modules has imported flax.
        from ftbnn_jax.nn import flax_networks

        if found := flax_networks.of(made, frozen):
            return found
    if isinstance(made, tuple) and len(made) == 2 and all(map(callable, made)):
        return network_lib.Functions(*made)
    if callable(made) and any(map(network_lib.is_parameter, jax.tree.leaves(made))):
        return network_lib.Callables(made)
    what = "a function, which has no parameters" if callable(made) else f"{type(made).__name__}"
    raise UserError(
        f"returns {'nothing' if made is None else what}; a flax module, a callable that is a pytree of "
        "arrays, or a pair of functions (init, apply) would do"
    )


@contextlib.contextmanager
def _told(config: TrainConfig) -> Iterator[None]:
    with config_lib.told(_shown(config.network)):
        yield


def _shown(path: str) -> str:
    """A file's path from here, where that is shorter."""
    return min(os.path.relpath(path), path, key=len)


class _Own(Network):
    """A user's network, whose mistakes are one line each."""

    def __init__(self, network: Network, config: TrainConfig):
        self._network, self._config = network, config
        self.uses_progress, self.uses_keys = network.uses_progress, network.uses_keys

    def init(self, key, images):
        with _told(self._config):
            variables = self._network.init(key, images)
            self._check_variables(variables)
            return variables

    def run(self, variables, images, train=False, progress=1.0, key=None):
        with _told(self._config):
            found = self._network.run(variables, images, train, progress, key)
            self._check_result(found.logits, images)
            before = {name: tree for name, tree in variables.items() if name != "params"}
            if _kinds(before) != _kinds(found.collections):
                names = ", ".join(found.collections.keys() | before.keys())
                raise UserError(
                    f"the network's variables besides the parameters ({names}) are others after a "
                    "training step; those of every step must have the same shapes"
                )
            return found._replace(logits=found.logits.astype(jnp.float32))

    def _check_variables(self, variables: Variables) -> None:
        params = nn_variables.by_name(variables["params"])
        if not params:
            raise UserError("the network has no parameters; there is nothing to train")
        for name, leaf in params.items():
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise UserError(
                    f"its parameter {name} is {leaf.dtype}; a floating point number can be trained"
                )

    def _check_result(self, logits: Any, images: jax.Array) -> None:
        shape = getattr(logits, "shape", None)
        wanted = (images.shape[0], self._config.num_classes)
        if shape != wanted or not jnp.issubdtype(logits.dtype, jnp.floating):
            found = type(logits).__name__ if shape is None else f"{logits.dtype} {list(shape)}"
            raise UserError(
                f"the network returns {found} for images {list(images.shape)}; logits [N, "
                f"config.num_classes], here {list(wanted)}, are expected"
            )


def _kinds(variables: Variables) -> dict[str, Any]:
    return {n: (leaf.shape, leaf.dtype) for n, leaf in nn_variables.by_name(variables).items()}


def shapes(config: TrainConfig, channels: int) -> Variables:
    """Returns the shapes of the variables of a config's network; nothing is computed.

    Args:
      config: the experiment.
      channels: of the images.

    Raises:
      UserError: the network cannot be made, or gives no logits for the classes of the config.
    """
    network, images = make(config), _images(config, channels)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(network.init, key, images)
    jax.eval_shape(network, variables, images)
    return variables


def weights(config: TrainConfig, channels: int) -> weights_lib.Weights:
    """Returns which parameters are weights, and of these the latent ones, whose signs are multiplied.

    Args:
      config: the experiment.
      channels: of the images.

    Raises:
      UserError: as `shapes` does.
    """
    shapes(config, channels)
    return weights_lib.find(make(config), (config.image_size, config.image_size, channels))


def classifier(config: TrainConfig, channels: int) -> frozenset[str]:
    """Returns the names of the variables whose shapes depend on the number of classes."""
    ours, others = (
        _kinds(jax.eval_shape(make(c).init, jax.random.key(0), _images(c, channels)))
        for c in (config, dataclasses.replace(config, num_classes=config.num_classes + 1))
    )
    return frozenset(name for name in ours if ours[name] != others.get(name))


def identity(config: TrainConfig, channels: int) -> dict[str, str]:
    """Returns what tells a user's own network from another: {} where the fields of a config say it all.

    Returns:
      `program`, a SHA-256 of its program in inference and of the shapes of its variables; and the
      versions of what the program's text depends on, by the names of the packages.
    """
    if not config.network:
        return {}
    config = dataclasses.replace(config, compute_dtype="float32", remat="none", freeze="")
    network, images = make(config), _images(config, channels)
    variables = shapes(config, channels)
    traced = trace.plainly(lambda: jax.jit(network).trace(variables, images))
    lowered = traced.lower(lowering_platforms=("cpu",))
    text = repr(sorted(_kinds(variables).items())) + lowered.as_text()
    versions = {"ftbnn_jax": ftbnn_jax.__version__, "jax": jax.__version__}
    if "flax" in sys.modules:
        versions["flax"] = sys.modules["flax"].__version__
    return {"program": hashlib.sha256(text.encode()).hexdigest(), **versions}


def differ(one: dict[str, str], other: dict[str, str]) -> bool:
    """Whether two results of `identity` are of different networks, as far as they can be compared."""
    programs = [{**network, "program": ""} for network in (one, other)]
    return programs[0] == programs[1] and one != other


def _images(config: TrainConfig, channels: int) -> jax.ShapeDtypeStruct:
    shape = (1, config.image_size, config.image_size, channels)
    return jax.ShapeDtypeStruct(shape, jnp.float32)
