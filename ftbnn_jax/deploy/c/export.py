"""`--mode=export --format=c`: an artifact as a folder of C, with golden vectors of real images."""

import dataclasses
import itertools
import pathlib
import shlex
from collections.abc import Iterable
from typing import Any

import numpy as np

from ftbnn_jax import command
from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.deploy.c import cortex_m, emulated, generate, golden, lowering, memory_map
from ftbnn_jax.deploy.c import cost as cost_lib
from ftbnn_jax.deploy.c import folder as folder_lib
from ftbnn_jax.deploy.c import options as options_lib
from ftbnn_jax.deploy.c import reference as reference_lib
from ftbnn_jax.deploy.c.options import Options
from ftbnn_jax.errors import UserError
from ftbnn_jax.report import print_json, print_table, warn

# One of them is looked for before a folder is replaced; so is whatever else is there, beside what builds
# leave, what other targets have, and the kernels of other versions.
_MARKS = ("model.h", f"{cortex_m.SOURCE}/model.h")
_BUILT = ("*.o", "*.a", "test_model", "test_profile", "classify")
_NETWORK = ("ftbnn_*.[ch]", "model.[ch]", "weights.[ch]")
_KNOWN = (
    *_BUILT,
    *_NETWORK,
    *(f"{cortex_m.SOURCE}/{pattern}" for pattern in (*_BUILT, *_NETWORK)),
    *cortex_m.patterns(),
)
_NO_LIMITS = memory_map.Limits()
_CALIBRATION_IMAGES = 64
_GOLDEN_IMAGES = 8
# They lie in flash beside the program on a microcontroller.
_GOLDEN_BYTES = {"host": 16 * 2**20, "cortex-m": 2**20}


def real_images(batches: Iterable[dict[str, np.ndarray]]) -> Iterable[np.ndarray]:
    """Yields the images of weight above 0 of each batch, uint8 `[N, H, W, C]`."""
    for batch in batches:
        images = batch["image"][batch["weight"] > 0]
        if len(images):
            yield images


def run(
    path: str,
    folder: str,
    batches: Iterable[dict[str, np.ndarray]],
    with_fixed_point: bool = False,
    options: Options = options_lib.DEFAULT,
    limits: memory_map.Limits = _NO_LIMITS,
    as_json: bool = False,
) -> int:
    """Writes the artifact at `path` as C to `folder`, prints its sizes, returns the exit status.

    Args:
      path: of the artifact.
      folder: replaced at once where it holds an earlier export.
      batches: uint8 `image` and `weight`, for golden vectors and the range of fixed point.
      with_fixed_point: integers instead of single precision between the convolutions.
      options: what shapes the program; fraction bits are chosen here.
      limits: of a microcontroller's memory, with `options.target` "cortex-m".
      as_json: prints a line of JSON instead of a table; what fixed point loses is a warning in both.

    Raises:
      UserError: the artifact cannot be read or turned into C, it does not fit into the memory, or the
        folder cannot be written or is no earlier export.
    """
    artifact = artifact_lib.load(path)
    made = program(artifact, batches, with_fixed_point, options)
    files, options, reference = made.files, made.options, made.reference
    bare_metal = shlex.quote(f"{folder}/bare_metal")
    device, counted = _on_device(made, limits, as_json) if options.target == "cortex-m" else ({}, [])
    write(pathlib.Path(folder), files)
    arena, vectors = reference.network.arena_bytes, len(files["golden.bin"])
    if as_json:
        sizes = {"arena_bytes": arena, "golden_bytes": vectors}
        found = {"folder": folder, "fraction_bits": reference.fraction_bits, **sizes}
        if with_fixed_point:
            found |= reference.losses.to_json()
        if options.real_bits < 32:
            found |= {"real_bits": options.real_bits, "cost": dataclasses.asdict(made.cost)}
            found["losses"] = dataclasses.asdict(reference.losses)
        print_json({**found, **device})
    else:
        print_table(
            "Exported as C",
            [
                ("folder", folder),
                *made.arithmetic(),
                ("memory beside the weights", f"{arena:,} bytes"),
                ("golden vectors", f"{vectors:,} bytes"),
                *counted,
                ("to build and check", f"make -C {shlex.quote(folder)} check"),
                *([("on an emulated Cortex-M4", f"make -C {bare_metal}")] if device else []),
            ],
        )
    reference.losses.warn(folder)
    return 0


def _on_device(
    made: "Program", limits: memory_map.Limits, as_json: bool
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Says what a program for microcontrollers takes; returns that for JSON, and what was counted.

    Raises:
      UserError: it takes more than there is.
    """
    text = {name: data.decode() for name, data in made.files.items() if name.endswith((".c", ".h"))}
    network = made.reference.network
    found = memory_map.measure(text, network, made.options.prefix)
    if not as_json:
        print_table("On a microcontroller", list(found.rows()))
    found.check(limits)
    try:
        counted = emulated.count(made.files, network)
    except UserError as error:
        counted = None
        warn(str(error))
    as_one = {"memory_map": found.as_json(), emulated.CORE: counted and counted._asdict()}
    return as_one, list(counted.rows()) if counted else []


@dataclasses.dataclass(frozen=True)
class Program:
    """A program in C.

    Attributes:
      files: of its folder, by name, with its golden vectors, `golden.bin`.
      options: what shapes it, with the fraction bits that were chosen.
      reference: what gave the golden vectors; it has seen the images and knows what fixed point loses.
      cost: what real layers in integers cost, on images; of none where there are no such layers.
    """

    files: dict[str, bytes]
    options: Options
    reference: reference_lib.Reference
    cost: cost_lib.Cost = dataclasses.field(default_factory=cost_lib.Cost)

    def arithmetic(self) -> list[tuple[str, str]]:
        """Returns what a report says of its arithmetic, by name."""
        losses = self.reference.losses
        rows = [("between the convolutions", self.options.arithmetic)]
        if self.options.fraction_bits is not None:
            ranges = "no image can overflow"
            if losses.too_large:
                ranges = f"those of {losses.images:,} images, and eight times as much"
            elif losses.cut:
                ranges = "no sum can overflow"
            bits = f"{self.reference.fraction_bits} fraction bits of a logit"
            rows.append(("ranges", f"{ranges}; {bits}"))
        return [*rows, *losses.lines(), *losses.differences(), *self.cost.lines()]


def program(
    artifact: artifact_lib.Artifact,
    batches: Iterable[dict[str, np.ndarray]],
    with_fixed_point: bool = False,
    options: Options = options_lib.DEFAULT,
) -> Program:
    """Returns an artifact as a program, with golden vectors of real images.

    Args:
      artifact: the packed network.
      batches: as for `run`, and so are the next two.
      with_fixed_point: likewise.
      options: likewise.

    Raises:
      UserError: the artifact cannot be turned into C, or there is no image.
    """
    most = _GOLDEN_BYTES[options.target]
    count = most // golden.image_bytes(lowering.lower(artifact))
    count = min(max(count, 1), _GOLDEN_IMAGES)
    batches, first = iter(batches), []
    images = _take(real_images(_kept(batches, first)), _CALIBRATION_IMAGES)
    # One size of batch, so that each convolution is compiled once.
    parts = [images[i : i + count] for i in range(0, len(images), count)]
    parts = [part for part in parts if len(part) == len(parts[0])]
    options = reference_lib.calibrated(artifact, options, with_fixed_point, parts)
    files = {name: text.encode() for name, text in generate.files(artifact, options).items()}
    reference = reference_lib.Reference(artifact, options)
    files["golden.bin"] = reference.golden(parts[0])
    if options.target == "cortex-m":
        example = generate.example(reference.network, files["golden.bin"], options)
        files |= {name: text.encode() for name, text in example.items()}
    # What integers lose is asked of every image; single precision has nothing to lose.
    for part in parts[1:] if with_fixed_point or options.real_bits < 32 else ():
        reference.traces(part)
    cost = cost_lib.Cost()
    if options.real_bits < 32:
        cost = cost_lib.measure(artifact, reference, itertools.chain(first, batches))
    return Program(files, options, reference, cost)


def _kept(batches: Iterable[dict[str, np.ndarray]], kept: list) -> Iterable[dict[str, np.ndarray]]:
    for batch in batches:
        kept.append(batch)
        yield batch


def write(folder: pathlib.Path, files: dict[str, bytes]) -> None:
    """Writes a program's folder, as a whole or not at all: see `folder.write`."""
    folder_lib.write(folder, files, _MARKS, _KNOWN)


def read_options(folder: pathlib.Path) -> Options:
    """Returns what shaped an exported folder.

    Raises:
      UserError: there is no such folder.
    """
    path = next((folder / mark for mark in _MARKS if (folder / mark).is_file()), folder / _MARKS[0])
    try:
        header = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{folder}: no exported C program; {command.mode('export --format=c')} writes it"
        ) from error
    try:
        return options_lib.read(header)
    except UserError as error:
        raise error.within(f"{path}: ") from None


def check_is_from(folder: pathlib.Path, artifact: artifact_lib.Artifact, options: Options) -> None:
    """Raises a UserError unless every file in the folder is what the artifact gives."""
    for name, text in generate.files(artifact, options).items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != text.encode():
            raise UserError(
                f"{path}: not what the artifact gives; {command.mode('export --format=c')} writes it "
                "anew"
            )


def _take(batches: Iterable[np.ndarray], count: int) -> np.ndarray:
    """Returns the first `count` images, or as many as there are."""
    taken: list[np.ndarray] = []
    for images in itertools.islice(batches, count):
        taken.append(images)
        if sum(map(len, taken)) >= count:
            break
    if not taken:
        raise UserError("no test image: golden vectors need at least one")
    return np.concatenate(taken)[:count]
