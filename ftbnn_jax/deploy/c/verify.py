"""`--mode=verify --runtime=c`: builds an exported folder and compares its integers and logits."""

import dataclasses
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import rich.table

from ftbnn_jax.deploy import pixels as pixel_values
from ftbnn_jax.deploy import runtime as runtime_lib
from ftbnn_jax.deploy.c import build, export, golden, rounding
from ftbnn_jax.deploy.c import reference as reference_lib
from ftbnn_jax.report import console, print_json

# More are written to a file, and read, in parts.
_IMAGES_AT_ONCE = 8


@dataclasses.dataclass
class LayerResult:
    """Comparison of one binary convolution, over all images.

    Attributes:
      name: of the layer.
      compared: integers compared.
      differing: integers that differ from the packed runtime's, the inputs being the same.
      end_to_end: integers that differ from the emulation's where the whole program runs by itself.
      rounded: integers of the emulation in single precision that differ from the packed runtime's where
        that runs by itself: a real convolution before rounds another way in the last place, and a sign
        turns.
      unexplained: images on which its real inputs differ from the packed runtime's by more than that.
    """

    name: str
    compared: int = 0
    differing: int = 0
    end_to_end: int = 0
    rounded: int = 0
    unexplained: int = 0


@dataclasses.dataclass
class Result:
    """Outcome of a verification.

    Attributes:
      layers: one entry a binary convolution.
      arithmetic: between the convolutions.
      losses: of fixed point.
      kernels: how the program counts bits.
      images: images compared.
      pixels: pixel values that the program made of stored images and that were compared.
      pixels_differing: how many of them are not evaluation's.
      agreeing: images with the same top-1 class as in the packed runtime, in single precision.
      saturated: images on which the program says that a number left the range of fixed point.
      saturating: images on which the emulation has such a number.
      logits: logits compared.
      logits_differing: logits that differ from the emulation's in any bit.
      logits_bounded: images on which no integer differs between emulation and packed runtime, so that
        logits are compared.
      logits_unexplained: on how many of them a logit differs by more than rounding explains.
      not_finite: images with a value that is not finite in single precision.
      profile: what `test_model --profile` says of one image, if that was asked for.
    """

    layers: list[LayerResult]
    arithmetic: str
    losses: reference_lib.Losses
    kernels: str = ""
    images: int = 0
    pixels: int = 0
    pixels_differing: int = 0
    agreeing: int = 0
    saturated: int = 0
    saturating: int = 0
    logits: int = 0
    logits_differing: int = 0
    logits_bounded: int = 0
    logits_unexplained: int = 0
    not_finite: int = 0
    profile: dict[str, Any] | None = None

    def failures(self) -> Iterator[str]:
        """Yields what is wrong, a line each."""
        yield from pixel_values.failures(self.pixels, self.pixels_differing)
        for layer in self.layers:
            of_all = f"of {layer.compared:,} integers differ from"
            if layer.differing:
                yield f"{layer.name}: {layer.differing:,} {of_all} the packed runtime's"
            elif layer.end_to_end:
                yield f"{layer.name}: {layer.end_to_end:,} {of_all} the emulation's, end to end"
            if layer.unexplained:
                yield (
                    f"{layer.name}: its inputs differ from the packed runtime's by more than float32 "
                    f"rounding explains on {layer.unexplained:,} of {self.images:,} images"
                )
        if self.logits_differing:
            yield (
                f"{self.logits_differing:,} of {self.logits:,} logits differ from the emulation's; a "
                "compiler that reorders or fuses floating point operations gives others"
            )
        if self.saturated != self.saturating:
            yield (
                f"it says on {self.saturated:,} images that a number left the range, the emulation on "
                f"{self.saturating:,}"
            )
        if self.logits_unexplained:
            yield (
                "logits differ from the packed runtime's by more than float32 rounding explains on "
                f"{self.logits_unexplained:,} of {self.logits_bounded:,} images"
            )
        if self.not_finite:
            yield f"values are not finite on {self.not_finite:,} of {self.images:,} images"


def compare(
    folder: pathlib.Path,
    runtime: runtime_lib.Runtime,
    batches: Iterable[dict[str, np.ndarray]],
    flags: Sequence[str] = build.FLAGS,
    with_profile: bool = False,
) -> Result:
    """Builds the program in `folder` and compares it with what it was exported from.

    The program must give every integer and every bit of every logit that its emulation gives. The
    emulation in single precision must give what the packed runtime gives, up to rounding.

    Args:
      folder: written by `export`.
      runtime: the packed network.
      batches: `image`, uint8 pixels that evaluation sees, or what the network takes, and `weight`;
        images of weight 0 are left out. Where there is `decoded`, the images as they are stored, uint8
        `[H, W, C]` each, the program's own pixels are compared with `image`.
      flags: for the compiler.
      with_profile: times every loop as well, in a build of its own.

    Raises:
      UserError: there is no compiler, it failed, or the folder is of another artifact.
    """
    options = export.read_options(folder)
    export.check_is_from(folder, runtime.artifact, options)
    reference = reference_lib.Reference(runtime.artifact, options)
    result = Result(
        [LayerResult(product.name) for product in reference.network.products],
        options.arithmetic,
        reference.losses,
    )
    with build.scratch() as scratch:
        program, classify = scratch / "test_model", scratch / "classify"
        build.build(folder, program, flags)

        def preprocessed(stored):
            if not classify.is_file():
                build.build(folder, classify, flags, "classify")
            shape = runtime.artifact.preprocessing.shape
            return np.stack([build.preprocess(classify, x, scratch).reshape(shape) for x in stored])

        pixels = pixel_values.Pixels(preprocessed)
        for images in pixels.checked(batches):
            for start in range(0, len(images), _IMAGES_AT_ONCE):
                part = images[start : start + _IMAGES_AT_ONCE]
                names = rounding.Bounds.names(reference.network)
                logits, arrays = runtime.arrays(part, names)
                logits = np.asarray(logits).reshape(len(part), -1)
                others = dict(zip(names, map(np.asarray, arrays), strict=True))
                bounds = rounding.Bounds(reference.network, others, len(part))
                single, expected = reference.traces(part, bounds.note)
                content = golden.pack(reference.network, part, expected.records, expected.logits)
                found = build.check(program, content, scratch)
                _add(result, found)
                if expected is not single:
                    result.saturating += int(np.sum(expected.any_outside()))
                result.logits += logits.size
                result.agreeing += int(np.sum(logits.argmax(-1) == found["classes"]))
                finite = np.isfinite(logits).all(-1) & ~single.any_outside()
                result.not_finite += int(np.sum(~finite))
                _add_bounds(result, bounds)
                error = bounds.of(reference.network.graph.output).reshape(len(part), -1)
                explained = np.abs(single.logits.astype(np.float64) - logits) <= error
                result.logits_bounded += int(bounds.agreeing.sum())
                result.logits_unexplained += int(np.sum(bounds.agreeing & ~explained.all(-1)))
        result.pixels, result.pixels_differing = pixels.compared, pixels.differing
        if with_profile:
            timed = scratch / "test_profile"
            build.build(folder, timed, [*flags, f"-D{options.prefix.upper()}_PROFILE"])
            result.profile = build.timed(timed, folder / "golden.bin", "--profile")
    return result


def _add(result: Result, found: dict[str, Any]) -> None:
    result.kernels = found["kernels"]
    for count in ("images", "saturated", "logits_differing"):
        setattr(result, count, getattr(result, count) + found[count])
    for layer, block in zip(result.layers, found["blocks"], strict=True):
        for count in ("compared", "differing", "end_to_end"):
            setattr(layer, count, getattr(layer, count) + block[count])


def _add_bounds(result: Result, bounds: rounding.Bounds) -> None:
    """Adds what emulation and packed runtime differ in, each image up to the first integer that does."""
    for layer in result.layers:
        layer.unexplained += int(bounds.unexplained[layer.name].sum())
        layer.rounded += bounds.rounded[layer.name]


def run(
    path: str,
    folder: str,
    network: runtime_lib.Description,
    batches: Iterable[dict[str, np.ndarray]],
    as_json: bool = False,
    with_profile: bool = False,
) -> int:
    """Verifies the exported folder, prints a report, and returns 1 if something is wrong, else 0.

    What fixed point loses is a warning.

    Args:
      path: of the artifact.
      folder: of the C program.
      network: what the artifact must say.
      batches: as for `compare`.
      as_json: prints one JSON object instead of the table.
      with_profile: says as well how long every loop takes.

    Raises:
      UserError: as `compare` does, or the artifact is missing, damaged or of another network.
    """
    build.compiler()
    runtime = runtime_lib.Runtime.load(path)
    network.check(path, runtime.artifact)
    result = compare(pathlib.Path(folder), runtime, batches, with_profile=with_profile)
    failures = list(result.failures())
    if as_json:
        print_json({**dataclasses.asdict(result), "passed": not failures})
    else:
        _print(result)
    result.losses.warn(folder)
    for failure in failures:
        print(f"error: {folder}: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _print(result: Result) -> None:
    table = rich.table.Table(
        title=f"Verified in C on {result.images:,} test images", title_justify="left"
    )
    counts = ("compared", "differing", "end_to_end", "rounded")
    table.add_column("binary convolution")
    for header in ("integers compared", "differing", "end to end", "runtime rounds otherwise"):
        table.add_column(header, justify="right")
    for layer in result.layers:
        table.add_row(layer.name, *(f"{getattr(layer, count):,}" for count in counts))
    table.add_section()
    totals = (sum(getattr(layer, count) for layer in result.layers) for count in counts)
    table.add_row("all", *(f"{total:,}" for total in totals))
    console.print(table)
    console.print(
        f"{result.arithmetic}, bits counted by {result.kernels}; {result.logits_differing:,} of "
        f"{result.logits:,} logits differ in some bit; top-1 agrees with the packed runtime's on "
        f"{result.agreeing:,} of {result.images:,} images"
    )
    pixel_values.show(result.pixels, result.pixels_differing)
    for kind, where in (*result.losses.lines(), *result.losses.differences()):
        console.print(f"{kind}: {where}")
    if result.profile is not None:
        _print_profile(result.profile)


def _print_profile(profile: dict[str, Any]) -> None:
    table = rich.table.Table(
        title=f"{profile['ns'] / 1e6:.4f} ms, the quickest of {profile['predictions']:,} predictions",
        title_justify="left",
    )
    table.add_column("layer")
    table.add_column("what")
    for header in ("ms", "share", "multiply-adds", "per ns"):
        table.add_column(header, justify="right")

    def add(layer: str, what: str, ns: float, multiply_adds: int) -> None:
        share, speed = 100 * ns / profile["ns"], multiply_adds / max(ns, 1)
        table.add_row(
            layer, what, f"{ns / 1e6:.4f}", f"{share:.1f}%", f"{multiply_adds:,}", f"{speed:.1f}"
        )

    counts = [loop["binary_multiply_adds"] + loop["real_multiply_adds"] for loop in profile["loops"]]
    for loop, count in zip(profile["loops"], counts, strict=True):
        add(loop["layer"], loop["parts"], loop["ns"], count)
    add("the rest", "", profile["ns"] - sum(loop["ns"] for loop in profile["loops"]), 0)
    table.add_section()
    add("all", "", profile["ns"], sum(counts))
    console.print(table)
