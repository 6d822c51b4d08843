"""Convolution by population count against a float64 convolution of signs in NumPy."""

import dataclasses
import os

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from ftbnn_jax.ops import binary
from ftbnn_jax.ops.packed import convolution as packed
from ftbnn_jax.ops.packed import popcount as counting

_COMMON = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": list(hypothesis.HealthCheck),
    "database": None,
}
# Compiling takes nearly all the time of an example, which is why it runs on several drawn contents: at
# least 200 cases of geometry and contents in CI, 2,000 every night.
_CONTENTS = 4
hypothesis.settings.register_profile("ci", max_examples=100, **_COMMON)
hypothesis.settings.register_profile("nightly", max_examples=500, **{**_COMMON, "derandomize": False})
_PROFILE = hypothesis.settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Code of the lowest level is compiled several times faster.
_QUICK_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

# Exact zeros of both signs, subnormal numbers, and the smallest normal ones.
_TINY = np.finfo(np.float32).tiny
_PLANTED = np.array([0.0, -0.0, 1e-40, -1e-40, _TINY, -_TINY, 1e30, -1e30], np.float32)


def _signs(x):
    """Three-valued signs in NumPy's float64; a subnormal number is 0 by definition."""
    return np.where(x >= _TINY, 1.0, np.where(x <= -_TINY, -1.0, 0.0))


def _convolve(signs, kernels, stride, padding):
    """Float64 convolution: `signs` `[N, H, W, I]`, `kernels` one `[K, K, I_g, O_g]` a group."""
    signs = np.pad(signs, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    outputs, start = [], 0
    for kernel in kernels:
        size, _, features, _ = kernel.shape
        group = signs[..., start : start + features]
        start += features
        windows = np.lib.stride_tricks.sliding_window_view(group, (size, size), axis=(1, 2))
        windows = windows[:, ::stride, ::stride]
        outputs.append(np.einsum("nhwcij,ijco->nhwo", windows, kernel))
    return np.concatenate(outputs, axis=-1)


@dataclasses.dataclass(frozen=True)
class _Case:
    form: str
    counting: str
    channels: int
    features: int
    groups: int
    kernel_size: int
    stride: int
    padding: int
    batch: int
    height: int
    width: int
    contents: list[tuple[float, int]]  # Share of planted values, seed of the others.

    def conv(self):
        return packed.PackedConv(
            binary.group_sizes(self.channels, self.groups),
            binary.group_sizes(self.features, self.groups),
            self.form,
            self.kernel_size,
            self.stride,
            self.padding,
            self.counting,
        )

    def values(self, planted, seed):
        """Inputs and latent weights, with planted values, and what the form promises of the inputs."""
        rng = np.random.default_rng(seed)

        def draw(shape):
            x = rng.standard_normal(shape).astype(np.float32)
            plant = rng.random(shape) < planted
            return np.where(plant, rng.choice(_PLANTED, shape), x)

        x = draw((self.batch, self.height, self.width, self.channels))
        if self.form == "and":
            x = np.maximum(x, 0)
        ins = binary.group_sizes(self.channels, self.groups)
        outs = binary.group_sizes(self.features, self.groups)
        size = self.kernel_size
        return x, [draw((size, size, i, o)) for i, o in zip(ins, outs, strict=True)]

    def expected(self, x, kernels):
        signs = _signs(x)
        if self.form == "xnor":
            signs = np.where(signs > 0, 1.0, -1.0)
        two_valued = [np.where(_signs(k) > 0, 1.0, -1.0) for k in kernels]
        return _convolve(signs, two_valued, self.stride, self.padding)


@st.composite
def _cases(draw):
    kernel_size = draw(st.sampled_from([1, 3, 5]))
    padding = draw(st.integers(0, 2))
    least = max(1, kernel_size - 2 * padding)
    # Widths around whole words are where packing can go wrong; the rest is drawn evenly.
    channels = draw(st.one_of(st.integers(1, 300), st.sampled_from([31, 32, 33, 63, 64, 65, 128, 300])))
    features = draw(st.integers(1, 40))
    return _Case(
        form=draw(st.sampled_from(packed.FORMS)),
        counting=draw(st.sampled_from(counting.COUNTINGS)),
        channels=channels,
        features=features,
        groups=draw(st.integers(1, min(8, channels, features))),
        kernel_size=kernel_size,
        stride=draw(st.sampled_from([1, 2])),
        padding=padding,
        batch=draw(st.integers(1, 2)),
        height=draw(st.integers(least, least + 4)),
        width=draw(st.integers(least, least + 4)),
        contents=draw(
            st.lists(
                st.tuples(st.sampled_from([0.0, 0.05, 0.5, 1.0]), st.integers(0, 2**32 - 1)),
                min_size=_CONTENTS,
                max_size=_CONTENTS,
            )
        ),
    )


@_PROFILE
@hypothesis.given(_cases())
def test_integers_equal_a_float64_convolution_of_signs(case):
    conv = case.conv()
    compiled = jax.jit(conv, compiler_options=_QUICK_COMPILE)
    for planted, seed in case.contents:
        x, kernels = case.values(planted, seed)
        weights = conv.prepare([_signs(k) > 0 for k in kernels], case.height, case.width)
        actual = compiled(weights, x)
        assert actual.dtype == jnp.int32
        np.testing.assert_array_equal(np.asarray(actual, np.float64), case.expected(x, kernels))
