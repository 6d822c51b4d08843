"""flax's modules as networks."""

from typing import Any

import jax
import jax.numpy as jnp

from ftbnn_jax import extras
from ftbnn_jax.nn import blocks
from ftbnn_jax.nn.network import ARGUMENTS, Frozen, Names, Network, Outputs, arguments, given, moves

with extras.named():
    from flax import linen as nn
    from flax import nnx
    from flax.core import DenyList


def of(made: Any, frozen: Frozen) -> Network | None:
    """Returns the network that a module stands for; None for what is no module."""
    if isinstance(made, nn.Module):
        return Linen(made, frozen=frozen)
    return Nnx(made, frozen) if isinstance(made, nnx.Module) else None


class Linen(Network):
    """A flax.linen module.

    Its random numbers come from the streams `params` at the start and `dropout`, and any other, in
    training. Batch norms whose statistics are frozen normalise by them in training as well.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        stages: tuple[int, ...] = (),
        uses_progress: bool | None = None,
        uses_keys: bool = True,
        frozen: Frozen = moves,
    ):
        """Takes a module as it is.

        Args:
          module: unbound.
          stages: as for `Network`.
          uses_progress: likewise; None for whether it takes the argument.
          uses_keys: likewise.
          frozen: what does not move.

        Raises:
          UserError: it needs an argument that there is not.
        """
        self.module, self.stages, self.uses_keys, self._frozen = module, stages, uses_keys, frozen
        self._taken = arguments(module.__call__, "images", ARGUMENTS)
        self.uses_progress = "progress" in self._taken if uses_progress is None else uses_progress

    def init(self, key, images):
        rngs = {"params": key, "dropout": jax.random.fold_in(key, 1)}
        made = self.module.init(rngs, images, **given(self._taken, False, 1.0))
        return {"params": {}, **made}

    def run(self, variables, images, train=False, progress=1.0, key=None):
        rngs = {} if key is None else {"params": key, "dropout": jax.random.fold_in(key, 1)}
        kept = ("params",) if self.stages else ("params", "intermediates")
        with nn.intercept_methods(self._with_frozen_statistics):
            logits, state = self.module.apply(
                variables,
                images,
                **given(self._taken, train, progress),
                rngs=rngs,
                mutable=DenyList(kept) if train else ["intermediates"] if self.stages else [],
                capture_intermediates=_is_block if self.stages else False,
            )
        seen = state.pop("intermediates", {}) if self.stages else {}
        found = {name: outputs["__call__"][0] for name, outputs in seen.items()}
        others = {name: tree for name, tree in variables.items() if name != "params"}
        return Outputs(logits, {**others, **state}, found)

    def _with_frozen_statistics(self, call, args, kwargs, context):
        path = "/".join((*context.module.path, "mean"))
        if isinstance(context.module, blocks.BatchNorm) and self._frozen(path):
            names = ("x", "train", "input_scale")
            kwargs = {**dict(zip(names, args, strict=False)), **kwargs, "train": False}
            return call(**kwargs)
        if isinstance(context.module, nn.BatchNorm) and self._frozen(path):
            kwargs = {**kwargs, "use_running_average": True}
            if context.module.use_running_average is not None:
                object.__setattr__(context.module, "use_running_average", None)
        return call(*args, **kwargs)


def _is_block(module: nn.Module, method: str) -> bool:
    return isinstance(module, blocks.BinaryBlock | blocks.RealBlock)


class Nnx(Network):
    """A flax.nnx module, with the weights that it was made with.

    Batch statistics are the collection `batch_stats`, other variables `others`. Random streams are no
    variables: each step begins them anew from its key.
    """

    def __init__(self, module: nnx.Module, frozen: Frozen = moves):
        """Takes a module as it is.

        Raises:
          UserError: it needs an argument that there is not.
        """
        self._taken = arguments(module.__call__, "images", ARGUMENTS)
        self.uses_progress = "progress" in self._taken
        self._frozen = frozen
        kinds = (nnx.Param, nnx.RngState, nnx.BatchStat, ...)
        self._graph, *states = nnx.split(module, *kinds)
        params, self._streams, statistics, others = states
        states = {"params": params, "batch_stats": statistics, "others": others}
        self._states = {n: s for n, s in states.items() if n == "params" or jax.tree.leaves(s)}
        self._names = {name: Names(state) for name, state in self._states.items()}
        self._empty = {n: s for n, s in states.items() if n not in self._states}

    def init(self, key, images):
        return {name: self._names[name].to_dict(state) for name, state in self._states.items()}

    def run(self, variables, images, train=False, progress=1.0, key=None):
        states = {name: names.to_tree(variables[name]) for name, names in self._names.items()}
        states |= self._empty
        streams = self._streams if key is None else _begun(self._streams, key)
        module = nnx.merge(
            self._graph, states["params"], streams, states["batch_stats"], states["others"]
        )
        if train:
            module.train()
        else:
            module.eval()
        for path, part in nnx.iter_modules(module):
            name = "/".join(map(str, (*path, "mean")))
            if isinstance(part, nnx.BatchNorm) and self._frozen(name):
                part.use_running_average = True
        logits = module(images, **given(self._taken, train, progress))
        _, _, _, statistics, others = nnx.split(module, nnx.Param, nnx.RngState, nnx.BatchStat, ...)
        after = {"batch_stats": statistics, "others": others}
        collections = {
            name: names.to_dict(after[name]) for name, names in self._names.items() if name != "params"
        }
        return Outputs(logits, collections, {})


def _begun(streams: Any, key: jax.Array) -> Any:
    """Random streams before their first number, each with a key of its own."""
    leaves, structure = jax.tree.flatten(streams)
    begun = [
        jax.random.fold_in(key, number)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jnp.zeros_like(leaf)
        for number, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, begun)
