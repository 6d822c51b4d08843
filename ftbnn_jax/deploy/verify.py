"""Proof that a packed artifact computes what the training graph computes.

Layer by layer, teacher-forced: the runtime's integer convolution runs on the very activations that
reached the training graph's convolution, and every integer is compared. Then end to end: logits, which
the 16 bits of the packed classifier's weights may move a little, and top-1.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.table

from ftbnn_jax.config import TrainConfig
from ftbnn_jax.deploy import runtime as runtime_lib
from ftbnn_jax.nn import folding, recording, resnet
from ftbnn_jax.ops import image
from ftbnn_jax.report import console

# Of the largest logit of an image.
_LOGIT_TOLERANCE = 1e-4


@dataclasses.dataclass
class LayerResult:
    """Comparison of one binary convolution, over all images.

    Attributes:
      name: of the layer.
      form: of the packed convolution, one of `ops.popcount.FORMS`.
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
      agreeing: images with the same top-1 class in both.
      logit_error: largest difference of a logit, relative to the largest logit of the image.
    """

    layers: list[LayerResult]
    images: int = 0
    agreeing: int = 0
    logit_error: float = 0.0

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
      batches: uint8 `image` and `weight`; images of weight 0 are left out.
    """
    model = resnet.make(config.model, config.num_classes, config.compute_dtype)

    @jax.jit
    def training_graph(variables, images):
        x = image.standardize(images, config.image_size, config.pixel_mean, config.pixel_std)
        return recording.binary_convolutions(model, variables, x)

    variables = {**variables, "folded": folding.fold_batch_norms(variables, config.model)}
    plans = runtime.artifact.spec.plan()
    result = Result(
        [LayerResult(plan.name, runtime_lib.packed_conv(config.model, plan).form) for plan in plans]
    )
    for batch in batches:
        images = batch["image"][batch["weight"] > 0]
        with _whole_products():
            logits, convolutions = training_graph(variables, images)
            packed = np.asarray(runtime.logits(images))
        for plan, layer in zip(plans, result.layers, strict=True):
            x, expected = convolutions[plan.name]
            integers = runtime.binary_conv(plan, x)
            layer.compared += integers.size
            layer.differing += int(jnp.sum(integers != expected))
            layer.inputs += x.size
            layer.zeros += int(jnp.sum(x == 0))
        logits = np.asarray(logits)
        result.images += len(images)
        result.agreeing += int(np.sum(packed.argmax(-1) == logits.argmax(-1)))
        largest = np.abs(logits).max(-1, keepdims=True)
        error = np.abs(packed - logits) / np.maximum(largest, np.finfo(np.float32).tiny)
        result.logit_error = max(result.logit_error, float(error.max()))
    return result


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

    It fails where an integer differs, or a logit by more than 1e-4 of its image's largest. A training
    graph that computes in less than float32 rounds its logits itself: there the integers alone count.

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
    runtime_lib.check_same_network(path, runtime.artifact, config.model, config.num_classes)
    result = compare(config, variables, runtime, batches)
    if as_json:
        print(json.dumps(result.to_dict()))
    else:
        _print(result)
    for layer in result.layers:
        if layer.differing:
            print(
                f"error: {path}: {layer.name}: {layer.differing:,} of {layer.compared:,} integers "
                "differ from the training graph's",
                file=sys.stderr,
            )
    wrong_logits = result.logit_error > _LOGIT_TOLERANCE and config.compute_dtype == "float32"
    if wrong_logits:
        print(
            f"error: {path}: logits differ from the training graph's by {result.logit_error:.1e} of the "
            f"largest, allowed is {_LOGIT_TOLERANCE:g}; top-1 agrees on {result.agreeing:,} of "
            f"{result.images:,} images",
            file=sys.stderr,
        )
    return 1 if result.differing or wrong_logits else 0


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
        f"logit difference {result.logit_error:.1e}"
    )
