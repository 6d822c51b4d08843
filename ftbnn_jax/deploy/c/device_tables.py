"""The tables of `budget --device`."""

from collections.abc import Sequence
from typing import Protocol

from rich.table import Table

from ftbnn_jax.deploy.c.estimate import Estimate


class _Named(Protocol):
    name: str


def totals(networks: Sequence[_Named], estimates: Sequence[Estimate]) -> Table:
    """Returns a table with a line per network."""
    flash = any(estimate.flash_bytes is not None for estimate in estimates)
    table = Table(caption=f"Estimated on {estimates[0].device.name}, one image, one core")
    for index, header in enumerate(
        ["net", "arithmetic", "ms", "weights KB", *(["code KB", "flash KB"] if flash else []), "RAM KB"]
    ):
        table.add_column(header, justify="left" if index < 2 else "right", no_wrap=True)
    for network, estimate in zip(networks, estimates, strict=True):
        sizes = [estimate.weights_bytes]
        sizes += [estimate.code_bytes or 0, estimate.flash_bytes or 0] if flash else []
        cells = [f"{size / 1e3:,.1f}" for size in (*sizes, estimate.ram_bytes)]
        table.add_row(network.name, estimate.arithmetic, _milliseconds(estimate.milliseconds), *cells)
    return table


def layers(network: _Named, estimate: Estimate) -> Table:
    """Returns a table with a line per loop of one network's program."""
    table = Table(caption=f"{network.name} on {estimate.device.name}: what its program does, in order")
    headers = ["layer", "what", "ms", "share", "binary multiply-adds", "real multiply-adds"]
    for index, header in enumerate(headers):
        table.add_column(header, justify="left" if index < 2 else "right", no_wrap=True)
    whole = estimate.milliseconds or 1.0
    for layer in estimate.layers:
        table.add_row(
            layer.name,
            layer.what,
            _milliseconds(layer.milliseconds),
            f"{100 * layer.milliseconds / whole:.1f}%",
            f"{layer.binary_multiply_adds:,}",
            f"{layer.real_multiply_adds:,}",
        )
    return table


def _milliseconds(time: float) -> str:
    """Returns a time with three digits that say something."""
    return f"{time:,.0f}" if time >= 100 else f"{time:.3g}"
