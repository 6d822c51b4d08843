"""Where in one piece of memory each buffer lies, given when it is in use."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Buffer:
    """A number of elements, in use from step `first` to step `last`, both included."""

    size: int
    first: int
    last: int


def place(buffers: Sequence[Buffer]) -> tuple[list[int], int]:
    """Places buffers so that none in use at the same time overlap: largest first, as low as can be.

    Returns:
      The offset of each buffer, and how many elements all of them take.
    """
    offsets = [0] * len(buffers)
    placed: list[int] = []
    for i in sorted(range(len(buffers)), key=lambda i: (-buffers[i].size, i)):
        offset = 0
        for j in sorted(placed, key=lambda j: offsets[j]):
            apart = buffers[j].last < buffers[i].first or buffers[i].last < buffers[j].first
            if not apart and offset + buffers[i].size > offsets[j]:
                offset = max(offset, offsets[j] + buffers[j].size)
        offsets[i] = offset
        placed.append(i)
    total = max((o + b.size for o, b in zip(offsets, buffers, strict=True)), default=0)
    return offsets, total
