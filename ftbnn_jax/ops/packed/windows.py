"""The words of a convolution's windows, gathered from packed positions.

How a group's window becomes words: for each kernel position, row by row, the whole words of its
channels; then, without a gap, what is left of every position (`channels % 32` bits each). So 35 channels
under a 3x3 kernel take 10 words, not 18.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ftbnn_jax.ops.conv.geometry import Pair, output_size
from ftbnn_jax.ops.packed import bits


class Geometry(NamedTuple):
    """Geometry of windows on a padded input: size, step and dilation, rows first."""

    kernel_size: Pair
    strides: Pair
    dilation: Pair

    def shifted(self, x: jax.Array, axis: int) -> list[jax.Array]:
        """Returns for each of a window's rows or columns those that all windows have there.

        Args:
          x: `[N, H, W, ...]`.
          axis: 1 for rows, 2 for columns.

        Returns:
          One array a row or column of the window, with `axis` as long as there are windows along it.
        """
        size, stride, dilation = (pair[axis - 1] for pair in self)
        count = output_size(x.shape[axis], size, stride, dilation=dilation)
        length = stride * (count - 1) + 1
        return [
            lax.slice_in_dim(x, first, first + length, stride, axis)
            for first in range(0, dilation * size, dilation)
        ]


# Whole words `[N, H', W', groups, words]`, and joined ones, `[N, H', W', groups]` each; uint32.
Windows = tuple[jax.Array, list[jax.Array]]


def gather(words: jax.Array, features: int, geometry: Geometry) -> Windows:
    """Gathers the words of every window.

    Args:
      words: uint32 `[N, H, W, groups, words_for(features)]`, padded with positions of no bits.
      features: bits used of each position.
      geometry: of the windows.

    Returns:
      The whole words, uint32 `[N, H', W', groups, words]`, and the joined ones, `[N, H', W', groups]`
      each, in the order that the module's text gives.
    """
    whole, rest = divmod(features, bits.WORD_BITS)
    # Two steps, columns before rows, copy fewer and longer pieces than one.
    rows = jnp.concatenate(geometry.shifted(words[..., :whole], 2), axis=-1)
    gathered = jnp.concatenate(geometry.shifted(rows, 1), axis=-1)
    joined = []
    if rest:
        pieces = [
            piece for row in geometry.shifted(words[..., -1], 1) for piece in geometry.shifted(row, 2)
        ]
        joined = _join(pieces, rest)
    return gathered, joined


def own_bits(words: jax.Array, geometry: Geometry) -> jax.Array:
    """Returns the set bits of each window, for every output channel: int32 `[N, H', W', groups, 1]`."""
    counts = jnp.sum(lax.population_count(words), axis=-1).astype(jnp.int32)
    for axis in (1, 2):
        counts = functools.reduce(jnp.add, geometry.shifted(counts, axis))
    return counts[..., None]


def _join(pieces: list[jax.Array], width: int) -> list[jax.Array]:
    """Puts the lowest `width` bits of each piece one after the other into as few words as hold them."""
    words: list[list[jax.Array]] = [[] for _ in range(bits.words_for(len(pieces) * width))]
    for i, piece in enumerate(pieces):
        word, shift = divmod(i * width, bits.WORD_BITS)
        words[word].append(piece << np.uint32(shift))
        if shift + width > bits.WORD_BITS:
            words[word + 1].append(piece >> np.uint32(bits.WORD_BITS - shift))
    return [functools.reduce(jnp.bitwise_or, parts) for parts in words]
