"""Counting the bits of packed windows against packed kernels: the inner loop of a binary convolution."""

import functools
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from ftbnn_jax.ops.packed.windows import Windows

COUNTINGS = ("words", "adders")

# Words that one fused expression takes; more are cut into chunks, each a pass over the output. XLA's CPU
# compiler makes scalar code of chunks shorter than these.
_MOST_WORDS = 36
_CHUNKS = range(17, 25)


def accumulate(
    counting: str,
    combine: Callable[..., jax.Array],
    kernel: jax.Array,
    windows: Sequence[Windows],
    start: jax.Array,
    factor: int,
) -> jax.Array:
    """Returns `start + factor * number of bits in combine(kernel, *windows)`.

    Args:
      counting: one of `COUNTINGS`.
      combine: of a word of the kernel and one of each window; no bit set where none is in any of them.
      kernel: uint32 `[words of a window, groups, O]`.
      windows: from `windows.gather`.
      start: int32, of a shape that broadcasts to the result's.
      factor: of the count.

    Returns:
      int32 `[N, H', W', groups, O]`.
    """
    bits = _bits_by_words if counting == "words" else _bits_by_adders

    def columns(windows):
        return [[w[..., k] for k in range(w.shape[-1])] for w in windows]

    def add(sums, kernel, columns):
        words = [
            combine(w, *(c[..., None] for c in column))
            for w, column in zip(kernel, zip(*columns, strict=True), strict=True)
        ]
        return sums + factor * bits(words)

    whole = [gathered for gathered, _ in windows]
    joined = [rest for _, rest in windows]
    total = whole[0].shape[-1]
    if len(kernel) <= _MOST_WORDS:
        return add(start, kernel, [w + r for w, r in zip(columns(whole), joined, strict=True)])
    if len(kernel) > total:
        start = add(start, kernel[total:], joined)
    start = jnp.broadcast_to(start, (*whole[0].shape[:-1], kernel.shape[-1]))
    length = min(_CHUNKS, key=lambda c: (-total % c, abs(c - 18)))
    chunks = -(-total // length)
    missing = chunks * length - total
    kernel = jnp.pad(kernel[:total], ((0, missing), (0, 0), (0, 0)))
    kernel = kernel.reshape(chunks, length, *kernel.shape[1:])
    whole = [jnp.pad(w, [(0, 0)] * 4 + [(0, missing)]) for w in whole]
    whole = [jnp.moveaxis(w.reshape(*w.shape[:-1], chunks, length), -2, 0) for w in whole]
    result, _ = lax.scan(
        lambda sums, chunk: (add(sums, chunk[0], columns(chunk[1])), None), start, (kernel, whole)
    )
    return result


def _bits_by_words(words: list[jax.Array]) -> jax.Array:
    """Sum of the words' population counts, int32."""
    return functools.reduce(jnp.add, map(lax.population_count, words)).astype(jnp.int32)


def _bits_by_adders(words: list[jax.Array]) -> jax.Array:
    """Sum of the words' population counts by carry-save addition, int32.

    A full adder turns three words of one weight into one of that weight and a carry of twice the weight,
    until one word a weight is left to be counted.
    """
    total = jnp.int32(0)
    weight = 0
    while words:
        carries = []
        while len(words) > 1:
            a, b, *words = words
            differ = a ^ b
            if words:
                c, *words = words
                carries.append(a & b | c & differ)
                words = [*words, differ ^ c]
            else:
                carries.append(a & b)
                words = [differ]
        total += lax.population_count(words[0]).astype(jnp.int32) << weight
        words, weight = carries, weight + 1
    return total


@functools.cache
def counting_here() -> str:
    """Returns which of `COUNTINGS` suits this machine: "words" where vectors of words are counted."""
    if jax.default_backend() != "cpu":
        return "words"
    try:
        return "words" if "avx512_vpopcntdq" in pathlib.Path("/proc/cpuinfo").read_text() else "adders"
    except OSError:
        return "adders"
