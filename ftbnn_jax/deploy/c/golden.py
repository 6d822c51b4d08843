"""Golden vectors: images with what every binary convolution reads and gives, for `test_model` to check.

All numbers are little-endian. Head, uint32 each: "FTBG", bytes of an image, blocks, classes, 1 for fixed
point, images. Then for each image its pixels; for each block the packed signs of its input (positive,
and non-zero where the form is ternary) and its integers, int16; and the logits, 4 bytes each.
"""

import math
from collections.abc import Sequence

import numpy as np

from ftbnn_jax.deploy.c import schedule
from ftbnn_jax.errors import UserError
from ftbnn_jax.ops import quantizers
from ftbnn_jax.ops.packed import bits

_MAGIC = 0x47425446


def image_bytes(network: schedule.Network) -> int:
    """Returns how many bytes one image takes, with all that belongs to it."""
    described = network.described
    blocks = sum(
        4 * block.plane * (2 if block.form == "ternary" else 1)
        + 2 * block.out_size**2 * block.plan.features
        for block in network.blocks
    )
    return math.prod(described.preprocessing.shape) + blocks + 4 * described.num_classes


def pack(
    network: schedule.Network,
    images: np.ndarray,
    records: Sequence[tuple[np.ndarray, np.ndarray]],
    logits: np.ndarray,
) -> bytes:
    """Returns the golden vectors of a batch.

    Args:
      network: the program's.
      images: uint8 `[N, image_size, image_size, channels]`.
      records: input, float32 or int32, and integers of each binary convolution.
      logits: float32, or int32 in fixed point.

    Raises:
      UserError: a sum may not fit into 16 bits.
    """
    head = (_MAGIC, images[0].size, len(network.blocks), logits.shape[1], logits.dtype == np.int32)
    parts = [np.array([*head, len(images)], "<u4").tobytes()]
    blocks = []
    for block, (x, sums) in zip(network.blocks, records, strict=True):
        if 9 * max(block.group_inputs) > np.iinfo(np.int16).max:
            raise UserError(
                f"{block.plan.name}: sums over {max(block.group_inputs)} channels in a group may not "
                "fit into the 16 bits of golden.bin; 3640 channels at most, or more groups"
            )
        blocks.append((_planes(block, np.asarray(x)), np.asarray(sums).astype("<i2")))
    for n, image in enumerate(images):
        parts.append(image.tobytes())
        for planes, sums in blocks:
            parts += [plane[n].tobytes() for plane in planes]
            parts.append(sums[n].tobytes())
        parts.append(logits[n].astype(logits.dtype.newbyteorder("<")).tobytes())
    return b"".join(parts)


def _planes(block: schedule.Block, x: np.ndarray) -> list[np.ndarray]:
    """Packs signs group after group, each beginning with a new word: uint32 `[N, H, W, words]`."""
    x = x.astype(np.float32)
    positive = np.asarray(quantizers.is_positive(x))
    planes = [positive]
    if block.form == "ternary":
        planes.append(positive | np.asarray(quantizers.is_negative(x)))
    ends = np.cumsum(block.group_inputs)[:-1]
    return [
        np.concatenate([bits.pack_rows(group) for group in np.split(plane, ends, axis=-1)], axis=-1)
        for plane in planes
    ]
