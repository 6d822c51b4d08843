"""The tables that `python -m ftbnn_jax.budget` prints."""

from collections.abc import Sequence

from rich.table import Table

from ftbnn_jax.budget.report import Record


def budgets(records: Sequence[Record]) -> Table:
    """Returns a table with a line per network."""
    memory = any(r.budget.activation_bytes is not None for r in records)
    table = _table(
        "Budget of one image (M = 10^6; total = FLOPs + BOPs / 64)",
        ["net", "input", "FLOPs M", "BOPs M", "of these bridge", "total M", "BOPs share", "MACs only M"]
        + ["real params", "binary params", "float32 MB", "packed MB"]
        + (["activations MB"] if memory else []),
    )
    for r in records:
        b = r.budget
        cells = [
            r.name,
            f"{r.image_size}x{r.image_size}x{r.channels}",
            f"{b.flops / 1e6:.2f}",
            f"{b.bops / 1e6:.1f}",
            f"{b.bops_bridge / 1e6:.1f}",
            f"{b.total / 1e6:.2f}",
            f"{100 * b.bops / 64 / b.total:.1f}%",
            f"{b.total_macs / 1e6:.2f}",
            f"{b.real_params:,}",
            f"{b.binary_params:,}",
            f"{b.bytes_unpacked / 1e6:.3f}",
            f"{b.bytes_packed / 1e6:.3f}",
        ]
        table.add_row(*cells, *([f"{b.activation_bytes / 1e6:.2f}"] if memory else []))
    return table


def comparison(records: Sequence[Record]) -> Table | None:
    """Returns a table of the nets that Table 4 publishes, or None if there are none."""
    records = [r for r in records if r.row]
    if not records:
        return None
    table = _table(
        "Beside Table 4, in M (BOPs: of the blocks; published less the paper's bridge term)",
        [
            *("net", "FLOPs", "published", "diff", "BOPs", "published", "diff", "bridge", "paper's"),
            *("params", "published", "diff", "total", "published", "diff", "top-1"),
        ],
    )
    for r in records:
        b, row, diff = r.budget, r.row, r.deviations()
        table.add_row(
            r.name,
            *(f"{b.flops / 1e6:.2f}", f"{row.flops:.1f}", f"{diff['flops']:+.2f}"),
            f"{b.bops_blocks / 1e6:.1f}",
            f"{row.bops - r.paper_bridge:.1f}",
            f"{diff['bops_blocks']:+.1f}",
            *(f"{b.bops_bridge / 1e6:.1f}", f"{r.paper_bridge:.1f}"),
            *(f"{b.params / 1e6:.3f}", f"{row.params:.2f}", f"{diff['params']:+.3f}"),
            *(f"{b.total / 1e6:.2f}", f"{row.total:.2f}", f"{100 * diff['total'] / row.total:+.1f}%"),
            f"{row.top1:.1f}",
        )
    return table


def totals(records: Sequence[Record]) -> Table | None:
    """Returns a table of the nets that the right half of Table 4 lists, or None if there are none."""
    records = [r for r in records if r.published_total_macs]
    if not records:
        return None
    table = _table(
        "Beside the right half of Table 4, in M (multiply-adds alone; binary ones, each once, / 64)",
        ["net", "MACs", "binary MACs", "total", "published", "diff", "binary share"],
    )
    for r in records:
        b, expected = r.budget, r.published_total_macs
        table.add_row(
            r.name,
            f"{b.macs / 1e6:.2f}",
            f"{b.binary_macs / 1e6:.1f}",
            f"{b.total_macs / 1e6:.2f}",
            f"{expected:.0f}",
            f"{100 * (b.total_macs / 1e6 / expected - 1):+.1f}%",
            f"{100 * b.binary_macs / 64 / b.total_macs:.1f}%",
        )
    return table


def layers(record: Record) -> Table:
    """Returns a table with a line per layer of one network."""
    memory = record.budget.activation_bytes is not None
    table = _table(
        f"{record.name}: layers, for one image",
        ["layer", "FLOPs", "BOPs", "", "real params", "binary params", "bytes packed"]
        + (["activation bytes"] if memory else []),
    )
    for layer in record.budget.layers:
        table.add_row(
            layer.name or "(network)",
            f"{layer.flops:,}",
            f"{layer.bops:,}",
            "x2 after ReLU" if layer.after_relu else "",
            f"{layer.real_params:,}",
            f"{layer.binary_params:,}",
            f"{layer.bytes_packed:,.0f}",
            *([f"{layer.activation_bytes:,}"] if memory else []),
        )
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(caption=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table
