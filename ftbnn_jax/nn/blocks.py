"""The parts of the networks: convolutions, batch norm, stem, and the binary block (Fig. 1b, 3, 4).

`compute_dtype` is the dtype of the convolutions' operands. What flows between blocks is bfloat16
where that is the compute dtype and float32 otherwise: float16's range is too small for gradients.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ftbnn_jax import extras
from ftbnn_jax.nn import activations, quantizers, strategies
from ftbnn_jax.nn.plan import BinaryConvPlan, RealBlockPlan
from ftbnn_jax.nn.spec import ResNetSpec
from ftbnn_jax.ops import batch_norm, binary, pooling, scaling
from ftbnn_jax.ops.conv import convolution
from ftbnn_jax.ops.quantizers import Quantizer, ThreeValuedSign, TwoValuedSign
from ftbnn_jax.ops.recompute import narrowed, recomputed

with extras.named():
    from flax import linen as nn


def stream_dtype(compute_dtype: jnp.dtype) -> jnp.dtype:
    """Returns the dtype of the activations between blocks."""
    return jnp.bfloat16 if jnp.dtype(compute_dtype) == jnp.bfloat16 else jnp.float32


def fan_in_uniform(
    key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32, *, fan_in: int = 0
) -> jax.Array:
    """Draws evenly between -1 / sqrt(fan_in) and 1 / sqrt(fan_in), an initializer of flax's.

    Args:
      key: for the random numbers.
      shape: of the result.
      dtype: likewise.
      fan_in: how many numbers a result is the sum of; 0 for the product of all axes but the last.
    """
    bound = 1 / math.sqrt(fan_in or math.prod(shape[:-1]))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


# How real kernels begin, by the names of `ResNetSpec.real_init`.
REAL_INITS = {"fan_in_uniform": fan_in_uniform, "he_normal": nn.initializers.he_normal()}


class Conv(nn.Module):
    """Real convolution without bias; `[N, H, W, I]` to float32 `[N, H', W', features]`.

    Attributes:
      features: channels of the result.
      kernel_size: height and width.
      stride: in both directions.
      padding: zeros on each side.
      compute_dtype: dtype of the operands.
      init: how the kernel begins, one of `REAL_INITS`.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    compute_dtype: jnp.dtype = jnp.float32
    init: str = "fan_in_uniform"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", REAL_INITS[self.init], shape)
        return convolution.conv2d(x, kernel, self.stride, self.padding, self.compute_dtype)


class BinaryConv(nn.Module):
    """Binary convolution in groups; `[N, H, W, I]` to float32 integers `[N, H', W', features]`.

    Real numbers instead where a quantizer gives real ones, which are steps towards it.

    The latent weights are one parameter a group, `kernel_0` and on, `[K, K, I_g, O_g]` each, since
    groups may differ in width. They start Xavier normal with gain 2 on the grouped shape:
    `std = 2 * sqrt(2 / (K*K*I_g + K*K*features))`.
    """

    features: int
    groups: int = 1
    kernel_size: int = 3
    stride: int = 1
    padding: int = 1
    input_quantizer: Quantizer = ThreeValuedSign()
    kernel_quantizer: Quantizer = TwoValuedSign()
    compute_dtype: jnp.dtype = jnp.float32
    recompute: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, progress: jax.Array | float = 1.0) -> jax.Array:
        ins = binary.group_sizes(x.shape[-1], self.groups)
        outs = binary.group_sizes(self.features, self.groups)
        area = self.kernel_size**2
        kernels = []
        for g, (i, o) in enumerate(zip(ins, outs, strict=True)):
            init = nn.initializers.normal(2 * math.sqrt(2 / (area * i + area * self.features)))
            shape = (self.kernel_size, self.kernel_size, i, o)
            kernels.append(self.param(f"kernel_{g}", init, shape))
        return binary.binary_conv2d(
            x,
            kernels,
            input_quantizer=self.input_quantizer,
            kernel_quantizer=self.kernel_quantizer,
            stride=self.stride,
            padding=self.padding,
            compute_dtype=self.compute_dtype,
            recompute=self.recompute,
            progress=progress,
        )

    def weight_scale(self, scaling: str) -> jax.Array:
        """Returns the factors of `scaling` from the weights, `[features]`, once it has been called."""
        kernels = [self.get_variable("params", f"kernel_{g}") for g in range(self.groups)]
        power_of_two = scaling == "power_of_two"
        return binary.power_of_two_scale(kernels) if power_of_two else binary.weight_scale(kernels)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last; returns float32.

    In training, the statistics are those of the whole batch, over every device it is spread on.
    Otherwise the running statistics are folded into one multiplication and one addition. An input scale,
    `[C]`, multiplies the input first.

    Attributes:
      momentum: share of the old running statistics kept in each step.
      epsilon: added to the variance.
      unbiased: whether the running variance is that of `n - 1` of a batch's `n` numbers.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased: bool = True

    def __call__(self, x: jax.Array, train: bool, input_scale: jax.Array | None = None) -> jax.Array:
        return self.normalizer(x, train, input_scale)(x)

    @nn.compact
    def normalizer(
        self, x: jax.Array, train: bool, input_scale: jax.Array | None = None
    ) -> Callable[[jax.Array], jax.Array]:
        """Returns what normalises `x`, in training a `Normalizer`; updates the running statistics."""
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        if not train:
            statistics = running_mean.value, running_var.value
            folded = batch_norm.fold(scale, bias, *statistics, self.epsilon, input_scale)
            return batch_norm.Folded(*folded)
        normalizer = batch_norm.Normalizer.of(x, scale, bias, self.epsilon, input_scale)
        if not self.is_initializing():
            keep, count = self.momentum, x.size // x.shape[-1]
            # One number has no unbiased variance; its biased one is 0.
            factor = count / max(count - 1, 1) if self.unbiased else 1.0
            running_mean.value = keep * running_mean.value + (1 - keep) * normalizer.mean
            running_var.value = keep * running_var.value + (1 - keep) * factor * normalizer.variance
        return normalizer


def _batch_norm(spec: ResNetSpec, name: str) -> BatchNorm:
    unbiased = spec.running_variance == "unbiased"
    return BatchNorm(spec.batch_norm_momentum, spec.batch_norm_epsilon, unbiased, name=name)


def _activation(spec: ResNetSpec, kind: str, name: str) -> nn.Module:
    prelu, *fprelu = spec.slope_start
    starts = {"prelu": {"start": prelu}, "fprelu": {"start": tuple(fprelu)}}
    return activations.MODULES[kind](**starts.get(kind, {}), name=name)


class Stem(nn.Module):
    """Real convolution, batch norm, activation and max pool, as the spec says (Fig. 4a, 4b)."""

    spec: ResNetSpec
    compute_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        s = self.spec
        x = Conv(
            s.stem_features,
            s.stem_kernel,
            s.stem_stride,
            s.stem_kernel // 2,
            self.compute_dtype,
            s.real_init,
            name="conv",
        )(x)
        x = _batch_norm(s, "bn")(x, train).astype(stream_dtype(self.compute_dtype))
        x = _activation(s, s.stem_activation, "act")(x)
        return pooling.max_pool(x) if s.stem_pool else x


class Gate(nn.Module):
    """Real-to-Bin's scaling factors, `[N, 1, 1, features]` from `[N, H, W, I]`."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ins, init = x.shape[-1], nn.initializers.he_normal()
        inner = max(1, ins // strategies.REAL_TO_BIN_REDUCTION)
        reduce = self.param("reduce_kernel", init, (ins, inner))
        expand = self.param("expand_kernel", init, (inner, self.features))
        return scaling.gate(x, reduce, expand)


class BinaryBlock(nn.Module):
    """`act(BN(bconv(sign(x))) + shortcut(x))`: basic block, both reduction blocks and the bridge.

    Takes `[N, H, W, plan.in_features]` and returns `[N, H', W', plan.features]`, with H' and W' halved
    and rounded up where the stride is 2. A shortcut that spans two blocks begins at `start`, the input
    of the block before.
    """

    spec: ResNetSpec
    plan: BinaryConvPlan
    compute_dtype: jnp.dtype = jnp.float32
    recompute: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        train: bool,
        progress: jax.Array | float = 1.0,
        start: jax.Array | None = None,
    ) -> jax.Array:
        s, p = self.spec, self.plan
        # What the shortcut begins with: the input, or that of a block before.
        start = x if start is None else start
        if p.shortcut == "duplicate":
            # Pooling before duplicating gives the same values for half the additions.
            pooled = pooling.avg_pool_3x3(x)
            shortcut = jnp.concatenate([pooled, pooled], axis=-1)
            x = jnp.concatenate([x, x], axis=-1)
        elif p.shortcut == "conv":
            shortcut = pooling.avg_pool_2x2(start)
            conv = Conv(p.features, 1, 1, 0, self.compute_dtype, s.real_init, name="shortcut_conv")
            shortcut = conv(shortcut)
            shortcut = _batch_norm(s, "shortcut_bn")(shortcut, train)
        else:
            shortcut = start if p.shortcut == "identity" else None
        if p.thresholds != (0.0,):
            x = jnp.concatenate([x - threshold for threshold in p.thresholds], axis=-1)
        conv = BinaryConv(
            p.features,
            p.groups,
            stride=p.stride,
            input_quantizer=quantizers.input_quantizer(s, p),
            kernel_quantizer=quantizers.kernel_quantizer(s),
            compute_dtype=self.compute_dtype,
            recompute=self.recompute,
            name="conv",
        )
        y = conv(x, progress)
        scale = conv.weight_scale(s.scaling) if s.scaling in strategies.FROM_WEIGHTS else None
        if s.scaling == "xnor_net++":
            scale = self.param("channel_scale", nn.initializers.ones, (p.features,))
        elif s.scaling == "xnor_net":
            y = scaling.apply(y, scaling.input_magnitude(x, p.groups, p.features, p.stride))
        elif s.scaling == "real_to_bin":
            y = scaling.apply(y, Gate(p.features, name="gate")(x))
        if (copies := len(p.thresholds)) > 1:
            # The mean over the thresholds.
            share = jnp.full((p.features,), 1 / copies)
            scale = share if scale is None else scale * share
        bn = _batch_norm(s, "bn")
        act = _activation(s, p.activation, "act")
        function = activations.FUNCTIONS[p.activation]

        def finish(batch, normalizer, slopes):
            y, *shortcut = batch
            y = normalizer(y)
            if shortcut:
                y = y + shortcut[0].astype(jnp.float32)
            return function(y.astype(stream_dtype(self.compute_dtype)), *slopes)

        batch = (y,) if shortcut is None else (y, shortcut)
        slopes = act.slopes(p.features)
        if not (self.recompute and train):
            return finish(batch, lambda y: bn(y, train, scale), slopes)
        integers = conv.input_quantizer.gives_signs and conv.kernel_quantizer.gives_signs
        integers = integers and s.scaling not in strategies.FROM_INPUT
        largest = binary.largest_sum(conv.kernel_size, x.shape[-1], p.groups)
        kept = narrowed(y, largest if integers else None)
        return recomputed(finish)(batch, kept, bn.normalizer(y, train, scale), slopes)


class RealBlock(nn.Module):
    """`act(BN(conv(act(BN(conv(x))))) + shortcut(x))`, in full precision; a bottleneck has three.

    Takes `[N, H, W, C]` and returns `[N, H', W', plan.features]`, with H' and W' halved and rounded up
    where the stride is 2.
    """

    spec: ResNetSpec
    plan: RealBlockPlan
    compute_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        s, p = self.spec, self.plan
        stream = stream_dtype(self.compute_dtype)
        y, last = x, len(p.convolutions())
        for number, (features, size, stride) in enumerate(p.convolutions(), 1):
            geometry = features, size, stride, size // 2
            conv = Conv(*geometry, self.compute_dtype, s.real_init, name=f"conv{number}")
            y = _batch_norm(s, f"bn{number}")(conv(y), train)
            if number < last:
                y = _activation(s, p.inner_activation, f"act{number}")(y.astype(stream))
        if p.shortcut == "conv":
            conv = Conv(
                p.features, 1, p.stride, 0, self.compute_dtype, s.real_init, name="shortcut_conv"
            )
            x = conv(x)
            x = _batch_norm(s, "shortcut_bn")(x, train)
        y = (y + x.astype(jnp.float32)).astype(stream)
        return _activation(s, p.activation, f"act{last}")(y)
