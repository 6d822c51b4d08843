"""A `ResNetSpec`'s network as a user of flax would write it: its own layers, JAX's own gradients."""

import jax
import jax.numpy as jnp

from ftbnn_jax import extras
from ftbnn_jax.nn import activations
from ftbnn_jax.nn.plan import BinaryConvPlan, RealBlockPlan
from ftbnn_jax.nn.spec import ResNetSpec
from ftbnn_jax.ops import binary
from ftbnn_jax.ops.quantizers import Clipped, ThreeValuedSign, TwoValuedSign

with extras.named():
    from flax import linen as nn

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class _BinaryConv(nn.Module):
    spec: ResNetSpec
    plan: BinaryConvPlan

    @nn.compact
    def __call__(self, x):
        p, gradient = self.plan, Clipped(self.spec.ste_bound)
        ins = binary.group_sizes(x.shape[-1], p.groups)
        outs = binary.group_sizes(p.features, p.groups)
        x = ThreeValuedSign(gradient)(x)
        equal = len({*zip(ins, outs, strict=True)}) == 1
        parts, shapes, groups = ([x], [(ins[0], p.features)], p.groups) if equal else ([], [], 1)
        if not equal:
            parts = jnp.split(x, [sum(ins[:g]) for g in range(1, p.groups)], -1)
            shapes = list(zip(ins, outs, strict=True))
        outputs = []
        for g, (part, shape) in enumerate(zip(parts, shapes, strict=True)):
            kernel = self.param(f"kernel_{g}", nn.initializers.xavier_normal(), (3, 3, *shape))
            outputs.append(
                jax.lax.conv_general_dilated(
                    part,
                    TwoValuedSign(gradient)(kernel).astype(part.dtype),
                    (p.stride, p.stride),
                    ((1, 1), (1, 1)),
                    dimension_numbers=_DIMENSIONS,
                    feature_group_count=groups,
                )
            )
        return jnp.concatenate(outputs, -1)


class PlainResNet(nn.Module):
    """The network of `nn.resnet.ResNet` in plain flax; parameters have other names and shapes."""

    spec: ResNetSpec
    num_classes: int
    compute_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        """Maps standardised images `[N, H, W, C]` to float32 logits `[N, num_classes]`."""
        s = self.spec
        x = self._conv_bn(x.astype(self.compute_dtype), s.stem_features, s.stem_kernel, s.stem_stride)
        x = activations.MODULES[s.stem_activation]()(x)
        if s.stem_pool:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for plan in s.plan():
            x = self._binary_block(x, plan)
        for plan in s.real_plan():
            x = self._real_block(x, plan)
        return nn.Dense(self.num_classes)(x.mean((1, 2)).astype(jnp.float32))

    def _conv_bn(self, x, features, size, stride=1):
        padding = ((size // 2, size // 2),) * 2
        conv = nn.Conv(features, (size, size), stride, padding, use_bias=False, dtype=self.compute_dtype)
        return self._batch_norm(conv(x))

    def _batch_norm(self, x):
        return nn.BatchNorm(use_running_average=False, momentum=0.9, dtype=self.compute_dtype)(x)

    def _binary_block(self, x, plan):
        shortcut = x
        if plan.shortcut == "conv":
            pooled = nn.avg_pool(x, (2, 2), (2, 2), "SAME", count_include_pad=False)
            shortcut = self._conv_bn(pooled, plan.features, 1)
        elif plan.shortcut == "duplicate":
            x = jnp.concatenate([x, x], -1)
            shortcut = nn.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        y = self._batch_norm(_BinaryConv(self.spec, plan)(x))
        y = y if plan.shortcut == "none" else y + shortcut
        return activations.MODULES[plan.activation]()(y)

    def _real_block(self, x, plan: RealBlockPlan):
        y, last = x, len(plan.convolutions())
        for number, (features, size, stride) in enumerate(plan.convolutions(), 1):
            y = self._conv_bn(y, features, size, stride)
            if number < last:
                y = activations.MODULES[plan.inner_activation]()(y)
        if plan.shortcut == "conv":
            x = self._conv_bn(x, plan.features, 1, plan.stride)
        return activations.MODULES[plan.activation]()(y + x)
