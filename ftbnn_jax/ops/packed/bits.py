"""Bits in uint32 words.

Bit order everywhere: element i of a sequence is bit `i % 32` (from the least significant) of word
`i // 32`; what fills up the last word is 0. A set bit stands for a positive value. `convolution` beside
this takes such words and says in which sequence it takes channels and kernel positions.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

WORD_BITS = 32

_GATHER = np.uint32(1 << 21 | 1 << 14 | 1 << 7 | 1)
_GATHERED_AT = np.uint32(21)


def words_for(bits: int) -> int:
    """Returns the number of words that hold `bits` bits."""
    return -(-bits // WORD_BITS)


def pack_stream(bits: np.ndarray) -> np.ndarray:
    """Packs booleans of any shape, in C order, without a gap: the form of weights in a file.

    Returns:
      Little-endian uint32 `[words_for(bits.size)]`.
    """
    return pack_rows(bits.reshape(-1))


def pack_rows(bits: np.ndarray) -> np.ndarray:
    """Packs booleans `[..., n]` along the last axis into little-endian uint32 `[..., words_for(n)]`."""
    packed = np.packbits(bits, axis=-1, bitorder="little")
    padded = np.pad(packed, [(0, 0)] * (bits.ndim - 1) + [(0, -packed.shape[-1] % 4)])
    return np.ascontiguousarray(padded).view("<u4")


def unpack_stream(words: np.ndarray, count: int) -> np.ndarray:
    """Returns the first `count` booleans of what `pack_stream` packed, `[count]`."""
    return np.unpackbits(words.astype("<u4").view(np.uint8), count=count, bitorder="little") == 1


def pack_channels(bits: jax.Array) -> jax.Array:
    """Packs booleans `[..., C]` along the last axis into uint32 `[..., words_for(C)]`."""
    *_, channels = bits.shape
    whole = channels - channels % WORD_BITS
    parts = []
    if whole:
        parts.append(_pack_whole_words(bits[..., :whole]))
    if channels > whole:
        parts.append(_pack_one_word(bits[..., whole:])[..., None])
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def _pack_whole_words(bits: jax.Array) -> jax.Array:
    """Packs `[..., 32 * words]` into `[..., words]`, four bits at a time."""
    *lead, channels = bits.shape
    quads = bits.astype(jnp.uint8).reshape(*lead, channels // WORD_BITS, WORD_BITS // 4, 4)
    # Bits 0, 8, 16 and 24 of a word become bits 21 to 24 of its product, where no carry meets them.
    nibbles = lax.bitcast_convert_type(quads, jnp.uint32) * _GATHER >> _GATHERED_AT & np.uint32(15)
    return _or_shifted(nibbles, 4)


def _pack_one_word(bits: jax.Array) -> jax.Array:
    """Packs `[..., C]` with `C <= 32` into `[...]`."""
    return _or_shifted(bits.astype(jnp.uint32), 1)


def _or_shifted(pieces: jax.Array, width: int) -> jax.Array:
    """Joins uint32 `[..., n]`, `width` bits each, the first lowest, into `[...]`."""
    shifts = np.arange(pieces.shape[-1], dtype=np.uint32) * np.uint32(width)
    return lax.reduce(pieces << shifts, np.uint32(0), lax.bitwise_or, [pieces.ndim - 1])
