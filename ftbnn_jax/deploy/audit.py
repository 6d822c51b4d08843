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
from ftbnn_jax.deploy import layout
from ftbnn_jax.nn import recording, resnet
from ftbnn_jax.ops import image, quantizers
from ftbnn_jax.report import console, print_json


def sizes(config: TrainConfig, channels: int) -> dict[str, dict[str, float]]:
    """Returns bytes in the artifact and the least possible, by section.

    Args:
      config: of the run.
      channels: of the images.

    Returns:
      For each of "binary kernels", "real kernels", "batch norm", "slopes", "classifier" and "all":
      `bytes`, and `least`: an eighth of a byte a binary weight, two bytes a weight of the classifier,
      four bytes any other parameter.
    """
    found: dict[str, dict[str, float]] = {}
    tensors = layout.tensors(config.model, channels, config.num_classes, config.image_size)
    for name, (dtype, shape) in tensors.items():
        module, _, leaf = name.rpartition("/")
        # `reduce_kernel` is a real kernel too, `negative_slope` one of the slopes.
        section = {"bits": "binary kernels", "kernel": "real kernels", "bias": "biases"}.get(
            leaf.rpartition("_")[2], "slopes" if leaf.endswith("slope") else "batch norm"
        )
        section = "classifier" if module == "head" else section
        size = dtype.itemsize * int(np.prod(shape))
        entry = found.setdefault(section, {"bytes": 0, "least": 0.0})
        entry["bytes"] += size
        if section != "binary kernels":
            entry["least"] += size
    found["binary kernels"]["least"] = sum(layout.kernel_bits(p) for p in config.model.plan()) / 8
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
            ) / layout.kernel_bits(plan)
        slopes = block.get("act", {})
        found.append(
            {
                "name": plan.name,
                "weights": layout.kernel_bits(plan),
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
        _, convolutions, _ = recording.binary_convolutions(model, variables, x)
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
    by_section = sizes(config, channels)
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
