"""The residual network that a `ResNetSpec` describes."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from ftbnn_jax import extras
from ftbnn_jax.nn import blocks, flax_networks
from ftbnn_jax.nn.network import Frozen, Network
from ftbnn_jax.nn.plan import BinaryConvPlan, RealBlockPlan
from ftbnn_jax.nn.spec import ResNetSpec
from ftbnn_jax.ops import pooling

with extras.named():
    from flax import linen as nn


class ResNet(nn.Module):
    """Stem, bridge, binary or real blocks, average pool and a real classifier.

    Variables are the collections `params` and `batch_stats`, float32 throughout.

    Attributes:
      spec: the network's structure.
      num_classes: number of logits.
      compute_dtype: dtype of the convolutions' operands; see `nn.blocks`.
      remat: what the backward pass keeps: "none" computes nothing again; "outputs" keeps what each
        binary convolution reads and gives, and batch statistics; "stages" what enters each stage.
    """

    spec: ResNetSpec
    num_classes: int
    compute_dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, progress: jax.Array | float = 1.0
    ) -> jax.Array:
        """Maps standardised images `[N, H, W, C]` to float32 logits `[N, num_classes]`.

        Args:
          x: images.
          train: whether batch norms take the batch's own statistics.
          progress: scalar, share of the training that is done; the evolving gradients depend on it.
        """
        x = blocks.Stem(self.spec, self.compute_dtype, name="stem")(x, train)
        run = ResNet._stage
        if self.remat == "stages":
            run = nn.remat(run, static_argnums=(2, 3))
        for stage in self._stages():
            x = run(self, x, stage, train, progress)
        x = pooling.head(x.astype(jnp.float32), self.spec.head)
        init = blocks.REAL_INITS[self.spec.real_init]
        bias = nn.initializers.zeros
        if self.spec.real_init == "fan_in_uniform":
            bias = functools.partial(blocks.fan_in_uniform, fan_in=x.shape[-1])
        return nn.Dense(self.num_classes, kernel_init=init, bias_init=bias, name="head")(x)

    def _stages(self) -> list[tuple[BinaryConvPlan | RealBlockPlan, ...]]:
        """The blocks, cut before each that halves the resolution."""
        plans = [*self.spec.plan(), *self.spec.real_plan()]
        cuts = [i for i, plan in enumerate(plans) if i and plan.stride == 2]
        return [tuple(plans[i:j]) for i, j in itertools.pairwise([0, *cuts, len(plans)])]

    def _stage(
        self, x: jax.Array, plans: tuple[Any, ...], train: bool, progress: jax.Array | float
    ) -> jax.Array:
        inputs = []
        for plan in plans:
            inputs.append(x)
            if isinstance(plan, BinaryConvPlan):
                recompute = self.remat == "outputs"
                block = blocks.BinaryBlock(
                    self.spec, plan, self.compute_dtype, recompute, name=plan.name
                )
                # A stage is cut before a block that reduces, which begins a shortcut.
                x = block(x, train, progress, inputs[-plan.shortcut_span :][0])
            else:
                x = blocks.RealBlock(self.spec, plan, self.compute_dtype, name=plan.name)(x, train)
        return x


def make(
    spec: ResNetSpec, num_classes: int, compute_dtype: str = "float32", remat: str = "none"
) -> ResNet:
    """Returns the module of a config's fields; "auto" is the dtype that suits the backend."""
    return ResNet(spec, num_classes, jnp.dtype(resolved_dtype(compute_dtype)), remat)


def resolved_dtype(compute_dtype: str) -> str:
    """Returns the name of a dtype: of "auto" the one that suits the backend."""
    if compute_dtype != "auto":
        return compute_dtype
    # Both accelerators multiply bfloat16 far faster, and a CPU does not.
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def network(
    spec: ResNetSpec,
    num_classes: int,
    compute_dtype: str = "float32",
    remat: str = "none",
    frozen: Frozen | None = None,
) -> Network:
    """Returns the network of a config's fields, whose blocks have names."""
    return flax_networks.Linen(
        make(spec, num_classes, compute_dtype, remat),
        stages=spec.blocks,
        uses_progress="evolving" in (spec.activation_gradient, spec.weight_gradient),
        uses_keys=False,
        **({"frozen": frozen} if frozen else {}),
    )
