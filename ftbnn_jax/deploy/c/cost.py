"""What integers cost: the classes of a program beside those of the network that it was made of."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.deploy import runtime as runtime_lib
from ftbnn_jax.deploy.c.reference import Reference

# Pixels, one after the other, that are run at most, whatever their images are: a minute or two.
_PIXELS = 2**22


@dataclasses.dataclass
class Cost:
    """Classes on some images.

    Attributes:
      images: how many there were.
      agreeing: images with the same class as in the packed runtime.
      before: images whose class is right in the packed runtime; None where classes are not known.
      after: images whose class is right in the program.
    """

    images: int = 0
    agreeing: int = 0
    before: int | None = None
    after: int | None = None

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yields what a report says of it."""
        if self.images:
            of = f"of {self.images:,} images"
            yield "same class as before", f"{self.agreeing:,} {of}"
            if self.before is not None and self.after is not None:
                shares = (f"{100 * n / self.images:.2f}%" for n in (self.before, self.after))
                yield f"top-1 {of}", " -> ".join(shares)


def measure(
    artifact: artifact_lib.Artifact, reference: Reference, batches: Iterable[dict[str, Any]]
) -> Cost:
    """Runs images through the packed network and through the emulation of its program.

    Args:
      artifact: the packed network.
      reference: of the program.
      batches: `image` and `weight`, and `label` where classes are known; as many as hold about four
        million pixels.
    """
    runtime, cost = runtime_lib.Runtime(artifact), Cost()
    for batch in batches:
        kept = np.asarray(batch["weight"]) > 0
        images = np.asarray(batch["image"])
        before = np.asarray(runtime.forward(images)).reshape(len(images), -1)[kept].argmax(-1)
        after = reference.program_logits(images)[kept].argmax(-1)
        cost.images += int(kept.sum())
        cost.agreeing += int(np.sum(before == after))
        if "label" in batch:
            labels = np.asarray(batch["label"])[kept]
            cost.before = (cost.before or 0) + int(np.sum(before == labels))
            cost.after = (cost.after or 0) + int(np.sum(after == labels))
        if cost.images * images[0].size >= _PIXELS:
            break
    return cost
