"""`--mode=audit`: what a trained network's weights, slopes and activations look like.

Bytes against the least possible, latent weights at exactly 0, channels that no longer do anything,
activations at exactly 0, learnt slopes (the paper's Table 2), and how many weights' signs differ from
another checkpoint's.
"""

import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.table

from ftbnn_jax import networks
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.deploy import export
from ftbnn_jax.graph import ir, lower, trace, walk
from ftbnn_jax.nn import variables as nn_variables
from ftbnn_jax.ops import quantizers
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
    sixteen = {name for name, tensor in graph.tensors.items() if tensor.dtype == np.int16}
    heads = {node.layer for node in graph.nodes if node.layer and sixteen & set(node.inputs)}
    for node in graph.nodes:
        for name in node.inputs:
            if node.op in ir.BINARY:
                sections[name], least[name] = "binary kernels", ir.kernel_bits(node.attributes) / 8
            elif node.layer in heads or name in sixteen:
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
    channels: int,
    batches: Iterable[dict[str, np.ndarray]],
    other: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Looks at every binary convolution and the block around it.

    Args:
      config: of the run.
      variables: of the network.
      channels: of the images.
      batches: uint8 `image` and `weight`, to measure activations on; may be empty.
      other: variables of another checkpoint of the same network.

    Returns:
      For each: `name`; `weights`; `latent_zeros`, weights at exactly 0; `dead`, output channels whose
      batch norm multiplies by 0 (None where none stands beside it as `bn`); `zero_activations`, share of
      its inputs at exactly 0 (None without batches); `negative_slope` and `positive_slope`, mean, least
      and largest (None where there is none); `flipped`, share of weights whose signs differ from
      `other`'s (None without).
    """
    kernels: dict[str, list[str]] = {}
    for name in networks.weights(config, channels).binary:
        kernels.setdefault(re.sub(r"/kernel_\d+$", "", name), []).append(name)
    zeros = _zero_activations(config, variables, batches)
    params, others = nn_variables.by_name(variables["params"]), {}
    if other is not None:
        others = nn_variables.by_name(other["params"])
    found = []
    for number, (convolution, names) in enumerate(kernels.items()):
        block = convolution.removesuffix("/conv")
        weights = [np.asarray(params[name]) for name in names]
        flips = [
            np.sum(quantizers.is_positive(w) != quantizers.is_positive(np.asarray(others[name])))
            for name, w in zip(names, weights, strict=True)
            if others
        ]
        count, scale = sum(w.size for w in weights), params.get(f"{block}/bn/scale")
        found.append(
            {
                "name": block,
                "weights": count,
                "latent_zeros": sum(int(np.sum(w == 0)) for w in weights),
                "dead": None if scale is None else int(np.sum(np.asarray(scale) == 0)),
                "zero_activations": zeros[number] if len(zeros) == len(kernels) else None,
                "negative_slope": _spread(params.get(f"{block}/act/negative_slope")),
                "positive_slope": _spread(params.get(f"{block}/act/positive_slope")),
                "flipped": int(sum(flips)) / count if others else None,
            }
        )
    return found


def _spread(values: Any) -> list[float] | None:
    """Mean, least and largest."""
    if values is None:
        return None
    values = np.asarray(values, np.float64)
    return [float(values.mean()), float(values.min()), float(values.max())]


def _zero_activations(config, variables, batches) -> list[float]:
    """Share of exact zeros among what enters each binary product, those of one layer together."""
    function = export.network(config, config.compute_dtype)

    @jax.jit
    def count(images):
        traced = trace.trace(function, variables, images, len(images))
        steps, _ = walk.collect(traced.run(images))
        found: dict[Any, list[Any]] = {}
        for number, step in enumerate(filter(lower.is_product, steps)):
            read = [x for x in step.operands if x.value.from_input]
            if len(read) == 1 and all(x.value.is_sign for x in step.operands):
                sums = found.setdefault(step.layer or number, [0, 0])
                sums[0], sums[1] = (
                    sums[0] + jnp.sum(read[0].numbers == 0),
                    sums[1] + read[0].numbers.size,
                )
        return list(found.values())

    totals = np.zeros((0, 2))
    for batch in batches:
        counted = np.asarray(jax.device_get(count(batch["image"][batch["weight"] > 0])), np.float64)
        totals = counted if not len(totals) else totals + counted
    return [zeros / inputs for zeros, inputs in totals]


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
      variables: of the network.
      channels: of the images.
      batches: as for `layers`.
      other: likewise.
      as_json: prints JSON.
    """
    experiment = {"channels": channels, "class_names": ()}
    by_section = sizes(export.to_artifact(config, variables, experiment, step=0).graph)
    by_layer = layers(config, variables, channels, batches, other)
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
        cells = [row["name"], f"{row['weights']:,}", f"{row['latent_zeros']:,}"]
        cells.append("" if row["dead"] is None else str(row["dead"]))
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
