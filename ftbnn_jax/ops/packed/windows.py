"""The words of a convolution's windows, gathered from packed positions.

How a group's window becomes words: for each kernel position, row by row, the whole words of its
channels; then, without a gap, what is left of every position (`channels % 32` bits each). So 35 channels
under a 3x3 kernel take 10 words, not 18.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ftbnn_jax.ops.conv import convolution
from ftbnn_jax.ops.packed import bits

# Whole words `[N, H', W', groups, words]`, and joined ones, `[N, H', W', groups]` each; uint32.
Windows = tuple[jax.Array, list[jax.Array]]


def gather(words: jax.Array, features: int, kernel_size: int, stride: int) -> Windows:
    """Gathers the words of every window.

    Args:
      words: uint32 `[N, H, W, groups, words_for(features)]`, padded with positions of no bits.
      features: bits used of each position.
      kernel_size: height and width of a window.
      stride: between windows.

    Returns:
      The whole words, uint32 `[N, H', W', groups, words]`, and the joined ones, `[N, H', W', groups]`
      each, in the order that the module's text gives.
    """
    _, height, width, _, _ = words.shape
    out_h = convolution.output_size(height, kernel_size, stride, 0)
    out_w = convolution.output_size(width, kernel_size, stride, 0)

    whole, rest = divmod(features, bits.WORD_BITS)
    # Two steps, columns before rows, copy fewer and longer pieces than one.
    columns = [_shifted(words[..., :whole], 2, j, out_w, stride) for j in range(kernel_size)]
    rows = jnp.concatenate(columns, axis=-1)
    gathered = jnp.concatenate(
        [_shifted(rows, 1, i, out_h, stride) for i in range(kernel_size)], axis=-1
    )
    joined = []
    if rest:
        last = words[..., -1]
        pieces = [
            _shifted(_shifted(last, 1, i, out_h, stride), 2, j, out_w, stride)
            for i in range(kernel_size)
            for j in range(kernel_size)
        ]
        joined = _join(pieces, rest)
    return gathered, joined


def own_bits(words: jax.Array, kernel_size: int, stride: int) -> jax.Array:
    """Set bits of each window, the same for every output channel: int32 `[N, H', W', groups, 1]`."""
    _, height, width, _, _ = words.shape
    counts = jnp.sum(lax.population_count(words), axis=-1).astype(jnp.int32)
    for axis, length in ((1, height), (2, width)):
        out = convolution.output_size(length, kernel_size, stride, 0)
        shifted = [_shifted(counts, axis, first, out, stride) for first in range(kernel_size)]
        counts = functools.reduce(jnp.add, shifted)
    return counts[..., None]


def _shifted(x: jax.Array, axis: int, first: int, count: int, stride: int) -> jax.Array:
    return lax.slice_in_dim(x, first, first + stride * (count - 1) + 1, stride, axis)


def _join(pieces: list[jax.Array], width: int) -> list[jax.Array]:
    """Puts the lowest `width` bits of each piece one after the other into as few words as hold them."""
    words: list[list[jax.Array]] = [[] for _ in range(bits.words_for(len(pieces) * width))]
    for i, piece in enumerate(pieces):
        word, shift = divmod(i * width, bits.WORD_BITS)
        words[word].append(piece << np.uint32(shift))
        if shift + width > bits.WORD_BITS:
            words[word + 1].append(piece >> np.uint32(bits.WORD_BITS - shift))
    return [functools.reduce(jnp.bitwise_or, parts) for parts in words]
