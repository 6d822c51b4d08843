"""Golden vectors: images with what every binary product reads and gives, for `test_model` to check.

All numbers are little-endian. Head, uint32 each: "FTBG", bytes of an image, binary products, results, 1
for fixed point, images. Then for each image its pixels, or real numbers of 4 bytes; for each product the
packed signs of its input (positive, and non-zero where the form is ternary) and its integers, int16; and
the results, 4 bytes each.
"""

import math
from collections.abc import Sequence

import numpy as np

from ftbnn_jax.deploy.c import operations
from ftbnn_jax.deploy.c.geometry import Product
from ftbnn_jax.deploy.c.schedule import Network
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import ir
from ftbnn_jax.ops import quantizers
from ftbnn_jax.ops.packed import bits

_MAGIC, _HEAD_NUMBERS = 0x47425446, 6


def image_bytes(network: Network) -> int:
    """Returns how many bytes one image takes, with all that belongs to it."""
    products = sum(
        4 * (p.sign_words - _outside(p) * (2 if p.form == "ternary" else 1)) + 2 * math.prod(p.result)
        for p in network.products
    )
    return pixel_bytes(network) + products + 4 * network.results


def pixel_bytes(network: Network) -> int:
    """Returns how many bytes of an image enter the network."""
    graph = network.graph
    size = 4 if graph.dtype in operations.REAL else np.dtype(graph.dtype).itemsize
    return size * math.prod(ir.sized(graph.shape, 1))


def first(network: Network, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first image, and the bits of its results, uint32, of golden vectors."""
    head = 4 * _HEAD_NUMBERS
    pixels, end = pixel_bytes(network), head + image_bytes(network)
    dtype = np.dtype("float32" if network.graph.dtype in operations.REAL else network.graph.dtype)
    return (
        np.frombuffer(content[head : head + pixels], dtype.newbyteorder("<")).astype(dtype),
        np.frombuffer(content[end - 4 * network.results : end], "<u4").astype(np.uint32),
    )


def images(network: Network, vectors: bytes) -> np.ndarray:
    """Returns the images that golden vectors of a network on pixels hold, uint8 `[N, H, W, C]`."""
    records = np.frombuffer(vectors, np.uint8, offset=4 * _HEAD_NUMBERS).reshape(
        -1, image_bytes(network)
    )
    return records[:, : pixel_bytes(network)].reshape(-1, *network.graph.shape[1:])


def shortened(network: Network, content: bytes) -> bytes:
    """Returns golden vectors of the first image alone."""
    numbers = np.frombuffer(content[: 4 * _HEAD_NUMBERS], "<u4").copy()
    numbers[-1] = 1
    head = numbers.tobytes()
    return head + content[len(head) : len(head) + image_bytes(network)]


def _outside(product: Product) -> int:
    return sum(map(bits.words_for, product.group_inputs))


def pack(
    network: Network,
    images: np.ndarray,
    records: Sequence[tuple[np.ndarray, np.ndarray]],
    logits: np.ndarray,
) -> bytes:
    """Returns the golden vectors of a batch.

    Args:
      network: the program's.
      images: of the graph's dtype, `[N, ...]`.
      records: signs, real numbers, and integers of each binary product.
      logits: float32, or int32 in fixed point, `[N, results]`.

    Raises:
      UserError: a sum may not fit into 16 bits.
    """
    head = (
        _MAGIC,
        pixel_bytes(network),
        len(network.products),
        logits.shape[1],
        logits.dtype == np.int32,
    )
    parts = [np.array([*head, len(images)], "<u4").tobytes()]
    blocks = []
    for product, (x, sums) in zip(network.products, records, strict=True):
        largest = np.iinfo(np.int16).max // product.taps
        if max(product.group_inputs) > largest:
            raise UserError(
                f"{product.name}: sums over {max(product.group_inputs)} channels in a group may not "
                f"fit into the 16 bits of golden.bin; {largest} channels at most, or more groups"
            )
        # Rows of a matrix may have been all images' at once.
        rows, results = (a.reshape(len(images), -1, a.shape[-1]) for a in map(np.asarray, (x, sums)))
        blocks.append((_planes(product, rows), results.astype("<i2")))
    real = images.dtype.name in operations.REAL
    images = images.astype("<f4") if real else images.astype(images.dtype.newbyteorder("<"))
    for n, image in enumerate(images):
        parts.append(image.tobytes())
        for planes, sums in blocks:
            parts += [plane[n].tobytes() for plane in planes]
            parts.append(sums[n].tobytes())
        parts.append(logits[n].astype(logits.dtype.newbyteorder("<")).tobytes())
    return b"".join(parts)


def _planes(product: Product, x: np.ndarray) -> list[np.ndarray]:
    """Packs signs group after group, each beginning with a new word: uint32 `[N, positions, words]`."""
    x = x.astype(np.float32)
    positive = np.asarray(quantizers.is_positive(x))
    planes = [positive]
    if product.form == "ternary":
        planes.append(positive | np.asarray(quantizers.is_negative(x)))
    ends = np.cumsum(product.group_inputs)[:-1]
    return [
        np.concatenate([bits.pack_rows(group) for group in np.split(plane, ends, axis=-1)], axis=-1)
        for plane in planes
    ]
