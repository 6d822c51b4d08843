"""Proof that a packed artifact computes what the training graph computes.

From the pixels on: the runtime's preprocessing of the test images as they are stored gives the pixels
that evaluation saw. Layer by layer, teacher-forced: the runtime's integer convolution runs on the very
activations that reached the training graph's convolution, and every integer is compared. Then end to
end: logits, no further off than the 16 bits of the packed classifier's weights explain, and top-1.
"""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.table

from ftbnn_jax.config import TrainConfig
from ftbnn_jax.deploy import layout
from ftbnn_jax.deploy import runtime as runtime_lib
from ftbnn_jax.nn import folding, recording, resnet
from ftbnn_jax.ops import image, pooling
from ftbnn_jax.report import console, print_json


@dataclasses.dataclass
class LayerResult:
    """Comparison of one binary convolution, over all images.

    Attributes:
      name: of the layer.
      form: of the packed convolution, one of `ops.packed.convolution.FORMS`.
      compared: integers compared.
      differing: integers that differ.
      inputs: activations that entered the convolution.
      zeros: how many of them were exactly 0.
    """

    name: str
    form: str
    compared: int = 0
    differing: int = 0
    inputs: int = 0
    zeros: int = 0


@dataclasses.dataclass
class Result:
    """Outcome of a verification.

    Attributes:
      layers: one entry a binary convolution.
      images: images compared.
      pixels: pixel values that the runtime made of stored images and that were compared.
      pixels_differing: how many of them are not evaluation's.
      not_finite: images with a logit that is not finite, in either.
      agreeing: images with the same top-1 class in both.
      logit_error: largest difference of a logit, relative to the largest logit of the image.
      logit_share: largest difference of a logit, relative to `layout.classifier_bound`.
    """

    layers: list[LayerResult]
    images: int = 0
    pixels: int = 0
    pixels_differing: int = 0
    not_finite: int = 0
    agreeing: int = 0
    logit_error: float = 0.0
    logit_share: float = 0.0

    @property
    def differing(self) -> int:
        """Integers that differ, over all layers."""
        return sum(layer.differing for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as values that JSON can hold."""
        return {**dataclasses.asdict(self), "differing": self.differing}


def compare(
    config: TrainConfig,
    variables: dict[str, Any],
    runtime: runtime_lib.Runtime,
    batches: Iterable[dict[str, np.ndarray]],
) -> Result:
    """Compares the training graph in inference mode with the packed runtime.

    Args:
      config: of the run.
      variables: `params` and `batch_stats` of the training graph.
      runtime: the packed network.
      batches: uint8 `image`, the pixels that evaluation sees, and `weight`; images of weight 0 are left
        out. Where there is `decoded`, the images as they are stored, uint8 `[H, W, C]` each, the
        runtime's own pixels are compared with `image`.
    """
    model = resnet.make(config.model, config.num_classes, config.compute_dtype)

    @jax.jit
    def training_graph(variables, images):
        x = image.standardize(images, config.pixel_mean, config.pixel_std)
        logits, convolutions, last = recording.binary_convolutions(model, variables, x)
        return logits, convolutions, pooling.head(jnp.abs(last.astype(jnp.float32)), config.model.head)

    variables = {**variables, "folded": folding.fold_batch_norms(variables, config.model)}
    head = jax.tree.map(np.asarray, variables["params"]["head"])
    plans = runtime.artifact.spec.plan()
    result = Result(
        [LayerResult(plan.name, runtime_lib.packed_conv(config.model, plan).form) for plan in plans]
    )
    for batch in batches:
        there = batch["weight"] > 0
        images = batch["image"][there]
        if "decoded" in batch:
            pixels = runtime.pixels([x for x, here in zip(batch["decoded"], there, strict=True) if here])
            result.pixels += images.size
            result.pixels_differing += _differing(pixels, images)
        with _whole_products():
            logits, convolutions, largest = training_graph(variables, images)
            packed = np.asarray(runtime.forward(images))
        for plan, layer in zip(plans, result.layers, strict=True):
            x, expected = convolutions[plan.name]
            integers = runtime.binary_conv(plan, x)
            layer.compared += integers.size
            layer.differing += int(jnp.sum(integers != expected))
            layer.inputs += x.size
            layer.zeros += int(jnp.sum(x == 0))
        logits = np.asarray(logits)
        result.images += len(images)
        finite = (np.isfinite(packed) & np.isfinite(logits)).all(-1)
        result.not_finite += int(np.sum(~finite))
        logits, packed, largest = logits[finite], packed[finite], np.asarray(largest)[finite]
        result.agreeing += int(np.sum(packed.argmax(-1) == logits.argmax(-1)))
        error = np.abs(packed.astype(np.float64) - logits)
        # What the last convolution gives has as many positions as what is averaged.
        terms = math.prod(expected.shape[1:3]) if config.model.head == "mean" else 4
        bound = layout.classifier_bound(head["kernel"], head["bias"], largest, terms)
        _keep_largest(result, "logit_share", error / np.maximum(bound, np.finfo(np.float32).tiny))
        scale = np.abs(logits).max(-1, keepdims=True)
        _keep_largest(result, "logit_error", error / np.maximum(scale, np.finfo(np.float32).tiny))
    return result


def _differing(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.sum(one != other)) if one.shape == other.shape else other.size


def _keep_largest(result: Result, name: str, values: np.ndarray) -> None:
    setattr(result, name, max(getattr(result, name), float(values.max(initial=0.0))))


def _whole_products() -> contextlib.AbstractContextManager[None]:
    """Accelerators round the factors of float32 products unless they are told not to; a CPU does not."""
    on_cpu = jax.default_backend() == "cpu"
    return contextlib.nullcontext() if on_cpu else jax.default_matmul_precision("highest")


def run(
    path: str,
    config: TrainConfig,
    variables: dict[str, Any],
    batches: Iterable[dict[str, np.ndarray]],
    as_json: bool = False,
) -> int:
    """Verifies the artifact at `path`, prints a report, and returns 1 if it fails, else 0.

    It fails where a pixel or an integer differs, a logit is not finite, or it is further from the
    training graph's than `layout.classifier_bound`. A training graph that computes in less than float32
    rounds its logits itself: there the bound does not count.

    Args:
      path: of the artifact.
      config: of the run.
      variables: `params` and `batch_stats` of the training graph.
      batches: as for `compare`.
      as_json: prints one JSON object instead of the table.

    Raises:
      UserError: the artifact is missing, damaged, or of another network.
    """
    runtime = runtime_lib.Runtime.load(path)
    rule = config.preprocessing(runtime.artifact.channels)
    runtime_lib.check_same_network(path, runtime.artifact, config.model, config.num_classes, rule)
    result = compare(config, variables, runtime, batches)
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result)
    failures = list(_failures(result, config.compute_dtype == "float32"))
    for failure in failures:
        print(f"error: {path}: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _failures(result: Result, bounded: bool) -> Iterator[str]:
    """Says what is wrong, a line each; `bounded`: whether logits must lie within their bound."""
    if result.pixels_differing:
        yield (
            f"{result.pixels_differing:,} of {result.pixels:,} pixel values that its preprocessing "
            "gives are not those that evaluation saw"
        )
    for layer in result.layers:
        if layer.differing:
            yield (
                f"{layer.name}: {layer.differing:,} of {layer.compared:,} integers differ from the "
                "training graph's"
            )
    if result.not_finite:
        yield f"logits are not finite on {result.not_finite:,} of {result.images:,} images"
    if bounded and result.logit_share > 1:
        yield (
            f"logits differ from the training graph's by {result.logit_share:.2g} times what the "
            f"classifier's 16 bits explain; top-1 agrees on {result.agreeing:,} of {result.images:,} "
            "images"
        )


def _print(result: Result) -> None:
    table = rich.table.Table(title=f"Verified on {result.images:,} test images", title_justify="left")
    for header in ("binary convolution", "form", "inputs that are 0", "integers compared", "differing"):
        left = header in ("binary convolution", "form")
        table.add_column(header, justify="left" if left else "right")
    for layer in result.layers:
        table.add_row(
            layer.name,
            layer.form,
            f"{layer.zeros / max(1, layer.inputs):.2%}",
            f"{layer.compared:,}",
            f"{layer.differing:,}",
        )
    compared = sum(layer.compared for layer in result.layers)
    table.add_section()
    table.add_row("all", "", "", f"{compared:,}", f"{result.differing:,}")
    console.print(table)
    console.print(
        f"end to end: top-1 agrees on {result.agreeing:,} of {result.images:,} images, largest relative "
        f"logit difference {result.logit_error:.1e}, {result.logit_share:.0%} of what the classifier's "
        "16 bits explain"
    )
    if result.pixels:
        console.print(
            f"preprocessing: {result.pixels_differing:,} of {result.pixels:,} pixel values differ from "
            "evaluation's"
        )
