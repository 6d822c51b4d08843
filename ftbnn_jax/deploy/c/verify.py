"""`--mode=verify --runtime=c`: builds an exported folder and compares its integers."""

import dataclasses
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import rich.table

from ftbnn_jax.deploy import runtime as runtime_lib
from ftbnn_jax.deploy.c import build, export
from ftbnn_jax.nn.spec import ResNetSpec
from ftbnn_jax.report import console

# More are written to a file, and read, in parts.
_IMAGES_AT_ONCE = 8


@dataclasses.dataclass
class LayerResult:
    """Comparison of one binary convolution, over all images.

    Attributes:
      name: of the layer.
      compared: integers compared.
      differing: integers that differ, the inputs being the reference's.
      end_to_end: integers that differ where the whole program runs by itself.
    """

    name: str
    compared: int = 0
    differing: int = 0
    end_to_end: int = 0


@dataclasses.dataclass
class Result:
    """Outcome of a verification.

    Attributes:
      layers: one entry a binary convolution.
      arithmetic: between the convolutions.
      kernels: how the program counts bits.
      passed: whether no integer differs that must not.
      images: images compared.
      agreeing: images with the same top-1 class as in the packed runtime, in single precision.
      saturated: images on which a number left the range of fixed point.
      logits_differing: logits that differ in any bit.
    """

    layers: list[LayerResult]
    arithmetic: str
    kernels: str = ""
    passed: bool = True
    images: int = 0
    agreeing: int = 0
    saturated: int = 0
    logits_differing: int = 0


def compare(
    folder: pathlib.Path,
    runtime: runtime_lib.Runtime,
    batches: Iterable[dict[str, np.ndarray]],
    flags: Sequence[str] = build.FLAGS,
) -> Result:
    """Builds the program in `folder` and compares it with what it was exported from.

    Args:
      folder: written by `export`.
      runtime: the packed network.
      batches: uint8 `image` and `weight`; images of weight 0 are left out.
      flags: for the compiler.

    Raises:
      UserError: there is no compiler, it failed, or the folder is of another artifact.
    """
    fraction_bits, prefix = export.read_options(folder)
    export.check_is_from(folder, runtime.artifact, fraction_bits, prefix)
    reference = export.Reference(runtime, fraction_bits)
    result = Result(
        [LayerResult(block.plan.name) for block in reference.network.blocks],
        export.arithmetic_name(fraction_bits),
    )
    with tempfile.TemporaryDirectory() as directory:
        scratch = pathlib.Path(directory)
        program = scratch / "test_model"
        build.build(folder, program, flags)
        for images in export.real_images(batches):
            for start in range(0, len(images), _IMAGES_AT_ONCE):
                part = images[start : start + _IMAGES_AT_ONCE]
                found = build.check(program, reference.golden(part), scratch)
                _add(result, found)
                result.agreeing += int(np.sum(_classes(runtime, part) == found["classes"]))
    return result


def _classes(runtime: runtime_lib.Runtime, pixels: np.ndarray) -> np.ndarray:
    return np.asarray(runtime.forward(pixels)).argmax(-1)


def _add(result: Result, found: dict[str, Any]) -> None:
    result.kernels = found["kernels"]
    result.passed = result.passed and found["passed"]
    for count in ("images", "saturated", "logits_differing"):
        setattr(result, count, getattr(result, count) + found[count])
    for layer, block in zip(result.layers, found["blocks"], strict=True):
        for count in ("compared", "differing", "end_to_end"):
            setattr(layer, count, getattr(layer, count) + block[count])


def run(
    path: str,
    folder: str,
    spec: ResNetSpec,
    num_classes: int,
    batches: Iterable[dict[str, np.ndarray]],
    as_json: bool = False,
) -> int:
    """Verifies the exported folder, prints a report, and returns 1 if an integer differs, else 0.

    Args:
      path: of the artifact.
      folder: of the C program.
      spec: of the config's network.
      num_classes: likewise.
      batches: as for `compare`.
      as_json: prints one JSON object instead of the table.

    Raises:
      UserError: as `compare` does, or the artifact is missing, damaged or of another network.
    """
    build.compiler()
    runtime = runtime_lib.Runtime.load(path)
    runtime_lib.check_same_network(path, runtime.artifact, spec, num_classes)
    result = compare(pathlib.Path(folder), runtime, batches)
    if as_json:
        print(json.dumps(dataclasses.asdict(result)))
    else:
        _print(result)
    for layer in result.layers:
        if layer.differing:
            print(
                f"error: {folder}: {layer.name}: {layer.differing:,} of {layer.compared:,} integers "
                "differ from the packed runtime's",
                file=sys.stderr,
            )
    if not result.passed and not any(layer.differing for layer in result.layers):
        print(f"error: {folder}: the whole program differs from the emulation", file=sys.stderr)
    return 0 if result.passed else 1


def _print(result: Result) -> None:
    table = rich.table.Table(
        title=f"Verified in C on {result.images:,} test images", title_justify="left"
    )
    headers = ("binary convolution", "integers compared", "differing", "differing end to end")
    for header in headers:
        table.add_column(header, justify="left" if header == headers[0] else "right")
    for layer in result.layers:
        table.add_row(layer.name, f"{layer.compared:,}", f"{layer.differing:,}", f"{layer.end_to_end:,}")
    table.add_section()
    totals = [sum(getattr(x, n) for x in result.layers) for n in ("compared", "differing", "end_to_end")]
    table.add_row("all", *(f"{total:,}" for total in totals))
    console.print(table)
    console.print(
        f"{result.arithmetic}, bits counted by {result.kernels}; end to end: top-1 agrees on "
        f"{result.agreeing:,} of {result.images:,} images, {result.logits_differing:,} logits differ in "
        f"some bit, {result.saturated:,} images left the range"
    )
