"""`--mode=audit`: what a trained network's weights, slopes and activations look like.

Bytes against the least possible, latent weights at exactly 0, channels that no longer do anything,
activations at exactly 0, learnt slopes (the paper's Table 2), and how many weights' signs differ from
another checkpoint's.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.table

from ftbnn_jax.config import TrainConfig
from ftbnn_jax.deploy import export
from ftbnn_jax.graph import ir
from ftbnn_jax.nn import blocks, recording, resnet
from ftbnn_jax.ops import image, quantizers
from ftbnn_jax.report import console, print_json


def sizes(graph: ir.Graph) -> dict[str, dict[str, float]]:
    """Returns bytes in the artifact and the least possible, by section.

    Args:
      graph: the packed network.

    Returns:
      For each of "binary kernels", "real kernels", "classifier", "slopes", "batch norm" (and other
      constants) and "all": `bytes`, and `least`: an eighth of a byte a binary weight, and as many bytes
      as there are for any other number.
    """
    sections: dict[str, str] = {}
    least: dict[str, float] = {}
    for node in graph.nodes:
        for name in node.inputs:
            if node.op in ir.BINARY:
                sections[name], least[name] = "binary kernels", ir.kernel_bits(node.attributes) / 8
            elif node.layer == "head":
                sections[name] = "classifier"
            elif node.op in ("conv", "dot"):
                sections[name] = "real kernels"
    found: dict[str, dict[str, float]] = {}
    for name, tensor in graph.tensors.items():
        other = "slopes" if name.endswith("slope") else "batch norm"
        entry = found.setdefault(sections.get(name, other), {"bytes": 0, "least": 0.0})
        entry["bytes"] += tensor.nbytes
        entry["least"] += least.get(name, tensor.nbytes)
    found["all"] = {key: sum(entry[key] for entry in found.values()) for key in ("bytes", "least")}
    return found


def layers(
    config: TrainConfig,
    variables: dict[str, Any],
    batches: Iterable[dict[str, np.ndarray]],
    other: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Looks at every binary convolution and the block around it.

    Args:
      config: of the run.
      variables: `params` and `batch_stats`.
      batches: uint8 `image` and `weight`, to measure activations on; may be empty.
      other: variables of another checkpoint of the same network.

    Returns:
      For each: `name`; `weights`; `latent_zeros`, weights at exactly 0; `dead`, output channels whose
      batch norm multiplies by 0; `zero_activations`, share of the convolution's inputs at exactly 0
      (None without batches); `negative_slope` and `positive_slope`, mean, least and largest (None where
      there is none); `flipped`, share of weights whose signs differ from `other`'s (None without).
    """
    zeros = _zero_activations(config, variables, batches)
    found = []
    for plan in config.model.plan():
        block = variables["params"][plan.name]
        kernels = [np.asarray(block["conv"][f"kernel_{g}"]) for g in range(plan.groups)]
        flipped = None
        if other is not None:
            others = other["params"][plan.name]["conv"]
            flipped = sum(
                int(
                    np.sum(
                        quantizers.is_positive(k)
                        != quantizers.is_positive(np.asarray(others[f"kernel_{g}"]))
                    )
                )
                for g, k in enumerate(kernels)
            ) / sum(k.size for k in kernels)
        slopes = block.get("act", {})
        found.append(
            {
                "name": plan.name,
                "weights": sum(k.size for k in kernels),
                "latent_zeros": sum(int(np.sum(k == 0)) for k in kernels),
                "dead": int(np.sum(np.asarray(block["bn"]["scale"]) == 0)),
                "zero_activations": zeros.get(plan.name),
                "negative_slope": _spread(slopes.get("negative_slope")),
                "positive_slope": _spread(slopes.get("positive_slope")),
                "flipped": flipped,
            }
        )
    return found


def _spread(values: Any) -> list[float] | None:
    """Mean, least and largest."""
    if values is None:
        return None
    values = np.asarray(values, np.float64)
    return [float(values.mean()), float(values.min()), float(values.max())]


def _zero_activations(config, variables, batches) -> dict[str, float]:
    model = resnet.make(config.model, config.num_classes, config.compute_dtype)

    @jax.jit
    def shares(images):
        x = image.standardize(images, config.pixel_mean, config.pixel_std)
        convolutions = recording.calls(model, variables, x, blocks.BinaryConv)
        return {name: jnp.mean(inputs == 0) for name, (inputs, _) in convolutions.items()}

    totals: dict[str, float] = {}
    count = 0
    for batch in batches:
        images = batch["image"][batch["weight"] > 0]
        count += len(images)
        for name, share in shares(images).items():
            totals[name] = totals.get(name, 0.0) + float(share) * len(images)
    return {name: total / count for name, total in totals.items()}


def run(
    config: TrainConfig,
    variables: dict[str, Any],
    channels: int,
    batches: Iterable[dict[str, np.ndarray]],
    other: dict[str, Any] | None = None,
    as_json: bool = False,
) -> int:
    """Prints the report as tables or as one JSON object, and returns the exit status.

    Args:
      config: of the run.
      variables: `params` and `batch_stats`.
      channels: of the images.
      batches: as for `layers`.
      other: likewise.
      as_json: prints JSON.
    """
    experiment = {"channels": channels, "class_names": ()}
    by_section = sizes(export.to_artifact(config, variables, experiment, step=0).graph)
    by_layer = layers(config, variables, batches, other)
    if as_json:
        print_json({"sizes": by_section, "layers": by_layer})
        return 0
    table = rich.table.Table(title="Bytes in the packed file", title_justify="left")
    for header in ("section", "bytes", "least possible"):
        table.add_column(header, justify="left" if header == "section" else "right")
    for section, entry in by_section.items():
        table.add_row(section, f"{entry['bytes']:,}", f"{entry['least']:,.0f}")
    console.print(table)

    table = rich.table.Table(title="Binary convolutions", title_justify="left")
    headers = ["block", "weights", "latent 0", "dead", "inputs 0", "negative slope"]
    headers += ["positive slope", *(["flipped"] if other is not None else [])]
    for header in headers:
        if header == "block":
            table.add_column(header, min_width=max(len(row["name"]) for row in by_layer))
        else:
            table.add_column(header, justify="right")
    for row in by_layer:
        cells = [row["name"], f"{row['weights']:,}", f"{row['latent_zeros']:,}", str(row["dead"])]
        share = row["zero_activations"]
        cells.append("" if share is None else f"{share:.2%}")
        for slope in (row["negative_slope"], row["positive_slope"]):
            cells.append("" if slope is None else "{:.2f} ({:.2f} {:.2f})".format(*slope))
        if other is not None:
            cells.append(f"{row['flipped']:.2%}")
        table.add_row(*cells)
    console.print(table)
    console.print(
        "latent 0: weights at exactly 0; dead: outputs whose batch norm multiplies by 0; inputs 0: "
        "share of inputs at exactly 0; slopes: mean (least largest); flipped: signs that differ"
    )
    return 0
