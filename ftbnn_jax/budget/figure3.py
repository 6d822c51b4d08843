"""Figure 3, right: how the budgets of the baseline and of a binary-purified net are distributed."""

from typing import Any

from ftbnn_jax import plots, published
from ftbnn_jax.budget.count import BOPS_PER_FLOP, Budget, count
from ftbnn_jax.nn import architectures
from ftbnn_jax.nn.resnet import ResNet

# Part, colour and hatch. The colours differ in lightness too, so that they stay apart in gray, and the
# hatches tell apart what is left.
_PARTS = (
    ("binary convolutions / 64", "#0b3c5d", ""),
    ("stem convolution", "#d98032", "//"),
    ("shortcut convolutions", "#f2c57c", "\\\\"),
    ("batch norm, activations, pooling", "#a9cfe0", ".."),
    ("classifier", "#ffffff", ""),
)


def distribution(budget: Budget) -> dict[str, float]:
    """Returns the parts of a residual net's budget in M.

    Each binary multiply-add counts once here, after a ReLU too: with this the shares that Figure 3
    prints, 15% and 77%, come out.
    """
    parts = dict.fromkeys((name for name, _, _ in _PARTS), 0.0)
    for layer in budget.layers:
        parts["binary convolutions / 64"] += layer.binary_macs / BOPS_PER_FLOP / 1e6
        parts["batch norm, activations, pooling"] += (layer.flops - layer.macs) / 1e6
        kind = {"stem": "stem convolution", "head": "classifier"}.get(
            layer.name.split("/")[0], "shortcut convolutions"
        )
        parts[kind] += layer.macs / 1e6
    return parts


def distributions() -> dict[str, dict[str, float]]:
    """Returns the parts of both nets' budgets, in M, by the title of their bar."""
    shape = (published.IMAGE_SIZE, published.IMAGE_SIZE, 3)
    nets = {
        "FTBNN baseline": architectures.baseline(),
        "binary-purified\n(18 layers, G=1, ~90M)": architectures.derived(layers=18, groups=1, budget=90),
    }
    return {
        title: distribution(count(ResNet(net, published.NUM_CLASSES), shape, memory=False))
        for title, net in nets.items()
    }


def draw(path: str) -> str:
    """Draws the figure.

    Args:
      path: file to write; its ending says the format.

    Returns:
      `path`.

    Raises:
      UserError: matplotlib is missing, or the file cannot be written.
    """
    plots.check_path(path)
    figure = plots.new_figure(8.5, 3.4)
    _bars(figure, distributions())
    plots.save(figure, path)
    return path


def _bars(figure: Any, nets: dict[str, dict[str, float]]) -> None:
    axes = figure.subplots()
    for row, parts in enumerate(nets.values()):
        total, left = sum(parts.values()), 0.0
        for name, colour, hatch in _PARTS:
            share = 100 * parts[name] / total
            axes.barh(
                row,
                share,
                left=left,
                height=0.55,
                color=colour,
                hatch=hatch,
                edgecolor="black",
                linewidth=0.8,
                label=name if row == 0 else None,
            )
            if share > 4:
                dark = colour == _PARTS[0][1]
                axes.text(
                    left + share / 2,
                    row,
                    f"{share:.0f}%" if share >= 10 else f"{share:.1f}%",
                    ha="center",
                    va="center",
                    color="white" if dark else "black",
                    bbox=None if dark else {"facecolor": "white", "edgecolor": "none", "pad": 1.5},
                )
            left += share
    axes.set_yticks(
        range(len(nets)),
        [f"{title}\n{sum(parts.values()):.0f}M" for title, parts in nets.items()],
    )
    axes.set_ylim(len(nets) - 0.55, -0.45)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the budget, FLOPs + binary multiply-adds / 64 (%)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
