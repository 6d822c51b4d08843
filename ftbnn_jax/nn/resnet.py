"""The residual network that a `ResNetSpec` describes."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from ftbnn_jax.nn import blocks
from ftbnn_jax.nn.spec import ResNetSpec
from ftbnn_jax.ops import pooling


class ResNet(nn.Module):
    """Stem, bridge, binary or real blocks, global average pool and a real classifier.

    Variables are the collections `params` and `batch_stats`, float32 throughout.

    Attributes:
      spec: the network's structure.
      num_classes: number of logits.
      compute_dtype: dtype of the convolutions' operands; see `nn.blocks`.
    """

    spec: ResNetSpec
    num_classes: int
    compute_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps standardised images `[N, H, W, C]` to float32 logits `[N, num_classes]`."""
        x = blocks.Stem(self.spec, self.compute_dtype, name="stem")(x, train)
        for plan in self.spec.plan():
            x = blocks.BinaryBlock(self.spec, plan, self.compute_dtype, name=plan.name)(x, train)
        for plan in self.spec.real_plan():
            x = blocks.RealBlock(self.spec, plan, self.compute_dtype, name=plan.name)(x, train)
        x = pooling.global_avg_pool(x.astype(jnp.float32))
        return nn.Dense(self.num_classes, name="head")(x)
