"""The report of a packed network: what became of each of its products, and why."""

import collections
import dataclasses
from typing import Any

import rich.table

from ftbnn_jax.graph import passes
from ftbnn_jax.report import console


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of a network's convolutions and matrix products.

    Attributes:
      packed: those that are binary.
      not_packed: those that stay products of real numbers, with the reason and what to write instead.
      replaced: layers whose straight-through estimator, a sum like `x + stop_gradient(sign(x) - x)`,
        became the sign that it stands for.
    """

    packed: tuple[passes.Line, ...]
    not_packed: tuple[passes.Line, ...]
    replaced: tuple[str, ...] = ()

    @classmethod
    def of(cls, packed: passes.Packed) -> "Report":
        """Returns the report of a graph."""
        real = tuple(line for line in packed.lines if line.reason)
        return cls(tuple(line for line in packed.lines if line.form), real, packed.replaced)

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as values that JSON can hold."""
        return dataclasses.asdict(self)

    def rows(self) -> list[tuple[str, ...]]:
        """Returns layer, product, form and reason of each; those of a layer that are alike, once."""
        counts: collections.Counter[tuple[str, ...]] = collections.Counter()
        for line in (*self.packed, *self.not_packed):
            kernel = "x".join(map(str, line.kernel))
            where = f"{line.reason} ({line.source})" if line.reason else ""
            counts[(line.layer, f"{line.product} {kernel}".strip(), line.form or "real", where)] += 1
        return [
            (layer, product if count == 1 else f"{count} of {product}", form, where)
            for (layer, product, form, where), count in counts.items()
        ]

    def __str__(self) -> str:
        total = len(self.packed) + len(self.not_packed)
        lines = [f"{len(self.packed)} of {total} products packed"]
        lines += [": ".join(filter(None, ("  ".join(row[:3]), row[3]))) for row in self.rows()]
        return "\n".join([*lines, *self._notes()])

    def print(self) -> None:
        """Prints it as a table."""
        total = len(self.packed) + len(self.not_packed)
        title = f"{len(self.packed)} of {total} products packed"
        table = rich.table.Table(title=title, title_justify="left")
        for header in ("layer", "product", "form", "why it is not packed"):
            table.add_column(header, overflow="fold")
        for row in self.rows():
            table.add_row(*row)
        console.print(table)
        for note in self._notes():
            console.print(note)

    def _notes(self) -> list[str]:
        if not self.replaced:
            return []
        layers = ", ".join(layer or "the network" for layer in self.replaced)
        return [f"straight-through estimators written as a sum became their signs in: {layers}"]
