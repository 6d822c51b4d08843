"""Bits in uint32 words, and convolution by population count.

Bit order everywhere: element i of a sequence is bit `i % 32` (from the least significant) of word
`i // 32`; what fills up the last word is 0. A set bit stands for a positive value.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ftbnn_jax.ops import convolution

WORD_BITS = 32

# Words summed up in one fused expression; each pass over the output costs a read and a write of it.
_WORDS_PER_PASS = 16


def words_for(bits: int) -> int:
    """Returns the number of words that hold `bits` bits."""
    return -(-bits // WORD_BITS)


def pack_stream(bits: np.ndarray) -> np.ndarray:
    """Packs booleans of any shape, in C order, without a gap: the form of weights in a file.

    Returns:
      Little-endian uint32 `[words_for(bits.size)]`.
    """
    packed = np.packbits(bits.reshape(-1), bitorder="little")
    padded = np.pad(packed, (0, -len(packed) % 4))
    return padded.view("<u4")


def unpack_stream(words: np.ndarray, count: int) -> np.ndarray:
    """Returns the first `count` booleans of what `pack_stream` packed, `[count]`."""
    return np.unpackbits(words.astype("<u4").view(np.uint8), count=count, bitorder="little") == 1


def pack_channels(bits: jax.Array) -> jax.Array:
    """Packs booleans `[..., C]` along the last axis into uint32 `[..., words_for(C)]`."""
    *lead, channels = bits.shape
    words = words_for(channels)
    bits = jnp.pad(bits, [(0, 0)] * len(lead) + [(0, words * WORD_BITS - channels)])
    bits = bits.reshape(*lead, words, WORD_BITS).astype(jnp.uint32)
    return jnp.sum(bits << jnp.arange(WORD_BITS, dtype=jnp.uint32), axis=-1, dtype=jnp.uint32)


def pack_kernel(positive: jax.Array) -> jax.Array:
    """Packs the signs of a kernel for `popcount_conv2d`.

    Args:
      positive: boolean `[K, K, I, O]`, True for a weight of +1.

    Returns:
      uint32 `[K * K * words_for(I), O]`: row, column, word of the channels; outputs run fastest.
    """
    words = pack_channels(jnp.moveaxis(positive, 2, 3))
    return jnp.moveaxis(words, 3, 2).reshape(-1, positive.shape[-1])


def popcount_conv2d(
    positive: jax.Array,
    nonzero: jax.Array,
    kernel: jax.Array,
    kernel_size: int,
    stride: int,
    padding: int,
) -> jax.Array:
    """Binary convolution of signs in {-1, 0, +1} with weights in {-1, +1}, on bits.

    With V the positions of a window that hold no 0, and a, w the bits there:
    `S = |V| - 2 * popcount(nonzero & (a ^ w))`. A padded position is one more 0, so that padding is
    exact, and so are the 0s of a ReLU (Eq. 6 is the case without -1).

    Args:
      positive: uint32 `[N, H, W, words]`, channels packed by `pack_channels`; set where the sign is +1.
      nonzero: likewise; set where the sign is not 0.
      kernel: uint32 `[kernel_size**2 * words, O]` from `pack_kernel`.
      kernel_size: height and width of the kernel.
      stride: step in both directions.
      padding: zeros added on each of the four sides.

    Returns:
      int32 `[N, H', W', O]`.
    """
    positive = _windows(positive, kernel_size, stride, padding)
    nonzero = _windows(nonzero, kernel_size, stride, padding)
    valid = jnp.sum(lax.population_count(nonzero), axis=0, dtype=jnp.int32)
    count = len(kernel)
    passes = -(-count // _WORDS_PER_PASS)
    per_pass = -(-count // passes)

    def chunks(words):
        # What fills up the last pass has no bit set in `nonzero`, so it counts nothing.
        filled = jnp.pad(words, [(0, passes * per_pass - count)] + [(0, 0)] * (words.ndim - 1))
        return filled.reshape(passes, per_pass, *words.shape[1:])

    def add(total, chunk):
        p, n, k = chunk
        for i in range(per_pass):
            differing = n[i][..., None] & (p[i][..., None] ^ k[i])
            total += lax.population_count(differing).astype(jnp.int32)
        return total, None

    zeros = jnp.zeros((*valid.shape, kernel.shape[-1]), jnp.int32)
    differing, _ = lax.scan(add, zeros, (chunks(positive), chunks(nonzero), chunks(kernel)))
    return valid[..., None] - 2 * differing


def _windows(words: jax.Array, kernel_size: int, stride: int, padding: int) -> jax.Array:
    """Returns `[kernel_size**2 * words, N, H', W']`: for each position of the kernel, a shifted view."""
    _, height, width, _ = words.shape
    out_h = convolution.output_size(height, kernel_size, stride, padding)
    out_w = convolution.output_size(width, kernel_size, stride, padding)
    words = jnp.pad(words, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    words = jnp.moveaxis(words, 3, 0)
    views = [
        words[:, :, i : i + stride * (out_h - 1) + 1 : stride, j : j + stride * (out_w - 1) + 1 : stride]
        for i in range(kernel_size)
        for j in range(kernel_size)
    ]
    return jnp.concatenate(views)


def binary_conv2d(
    x: jax.Array,
    kernels: Sequence[jax.Array],
    in_features: Sequence[int],
    *,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int = 1,
    two_valued: bool = False,
) -> jax.Array:
    """The packed counterpart of `ops.binary.binary_conv2d`: same integers from bits.

    Args:
      x: real activations `[N, H, W, sum(in_features)]`.
      kernels: one packed kernel a group.
      in_features: input channels of each group; each group starts at a word boundary.
      kernel_size: height and width of the kernels.
      stride: step in both directions.
      padding: zeros added on each side after binarisation.
      two_valued: whether an exact 0 among the activations counts as -1.

    Returns:
      int32 `[N, H', W', O]`.
    """
    outputs = []
    start = 0
    for kernel, features in zip(kernels, in_features, strict=True):
        group = x[..., start : start + features]
        start += features
        positive = pack_channels(group > 0)
        nonzero = pack_channels(jnp.ones_like(group, bool) if two_valued else group != 0)
        outputs.append(popcount_conv2d(positive, nonzero, kernel, kernel_size, stride, padding))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=-1)
