"""`--mode=export --format=c`: an artifact as a folder of C, with golden vectors of real images."""

import dataclasses
import fnmatch
import itertools
import os
import pathlib
import shlex
import tempfile
from collections.abc import Container, Iterable, Sequence

import numpy as np

from ftbnn_jax import command
from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.deploy.c import generate, golden, lowering
from ftbnn_jax.deploy.c import options as options_lib
from ftbnn_jax.deploy.c import reference as reference_lib
from ftbnn_jax.deploy.c.options import Options
from ftbnn_jax.errors import UserError
from ftbnn_jax.report import print_json, print_table

# Looked for before a folder is replaced; so is whatever else is there, beside what its builds leave and
# the kernels of other versions.
_MARK = "model.h"
_BUILT = ("*.o", "*.a", "ftbnn_*.[ch]", "test_model", "test_profile", "classify")
_CMAKE_BUILD = "build"
_CALIBRATION_IMAGES = 64
_GOLDEN_IMAGES = 8
_GOLDEN_BYTES = 16 * 2**20


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
    as_json: bool = False,
) -> int:
    """Writes the artifact at `path` as C to `folder`, prints its sizes, returns the exit status.

    Args:
      path: of the artifact.
      folder: replaced at once where it holds an earlier export.
      batches: uint8 `image` and `weight`, for golden vectors and the range of fixed point.
      with_fixed_point: integers instead of single precision between the convolutions.
      options: what shapes the program; fraction bits are chosen here.
      as_json: prints a line of JSON instead of a table; what fixed point loses is a warning in both.

    Raises:
      UserError: the artifact cannot be read or turned into C, or the folder cannot be written or is no
        earlier export.
    """
    artifact = artifact_lib.load(path)
    made = program(artifact, batches, with_fixed_point, options)
    files, options, reference = made.files, made.options, made.reference
    write(pathlib.Path(folder), files)
    arena, vectors = reference.network.arena_bytes, len(files["golden.bin"])
    if as_json:
        sizes = {"arena_bytes": arena, "golden_bytes": vectors}
        print_json({"folder": folder, "fraction_bits": options.fraction_bits, **sizes})
    else:
        print_table(
            "Exported as C",
            [
                ("folder", folder),
                ("between the convolutions", options.arithmetic),
                ("memory beside the weights", f"{arena:,} bytes"),
                ("golden vectors", f"{vectors:,} bytes"),
                *reference.losses.lines(),
                ("to build and check", f"make -C {shlex.quote(folder)} check"),
            ],
        )
    reference.losses.warn(folder)
    return 0


@dataclasses.dataclass(frozen=True)
class Program:
    """A program in C.

    Attributes:
      files: of its folder, by name, with its golden vectors, `golden.bin`.
      options: what shapes it, with the fraction bits that were chosen.
      reference: what gave the golden vectors; it has seen the images and knows what fixed point loses.
    """

    files: dict[str, bytes]
    options: Options
    reference: reference_lib.Reference


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
    count = _GOLDEN_BYTES // golden.image_bytes(lowering.lower(artifact))
    count = min(max(count, 1), _GOLDEN_IMAGES)
    images = _take(real_images(batches), _CALIBRATION_IMAGES)
    # One size of batch, so that each convolution is compiled once.
    parts = [images[i : i + count] for i in range(0, len(images), count)]
    parts = [part for part in parts if len(part) == len(parts[0])]
    if with_fixed_point:
        fraction_bits = reference_lib.calibrate(artifact, parts)
        options = dataclasses.replace(options, fraction_bits=fraction_bits)
    files = {name: text.encode() for name, text in generate.files(artifact, options).items()}
    reference = reference_lib.Reference(artifact, options)
    files["golden.bin"] = reference.golden(parts[0])
    # What fixed point loses is asked of every image; single precision has nothing to lose.
    for part in parts[1:] if with_fixed_point else ():
        reference.traces(part)
    return Program(files, options, reference)


def write(
    folder: pathlib.Path,
    files: dict[str, bytes],
    mark: str = _MARK,
    built: Sequence[str] = _BUILT,
) -> None:
    """Writes a folder so that it is there as a whole or not at all; an earlier export is replaced.

    Nothing else is touched: a folder with files that neither an export wrote nor its Makefile built is
    refused.

    Args:
      folder: where.
      files: by name.
      mark: name of a file that only an earlier export has.
      built: patterns of names that are made from an export's files.

    Raises:
      UserError: it cannot be written, or something else is there.
    """
    folder = pathlib.Path(os.path.realpath(folder))
    _check_replaceable(folder, files, mark, built)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=".export-", ignore_cleanup_errors=True
        ) as scratch:
            new, old = pathlib.Path(scratch, "new"), pathlib.Path(scratch, "old")
            new.mkdir()
            for name, content in files.items():
                (new / name).write_bytes(content)
            _replace(folder, new, old)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from error


def _replace(folder: pathlib.Path, new: pathlib.Path, old: pathlib.Path) -> None:
    """Puts `new` in the place of `folder`, which is moved to `old`; on any failure it is moved back."""
    try:
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise


def _check_replaceable(
    folder: pathlib.Path, files: Container[str], mark: str, built: Sequence[str]
) -> None:
    """Raises a UserError if there is anything at `folder` that is not from an export."""
    if not os.path.lexists(folder):
        return
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"{folder}: cannot be replaced: {error.strerror}") from error
    if mark not in names:
        raise UserError(f"{folder}: is there already and is no earlier export; move it away")
    for name in names:
        own = name in files or any(fnmatch.fnmatchcase(name, pattern) for pattern in built)
        if name == _CMAKE_BUILD:
            own = (folder / name / "CMakeCache.txt").is_file()
        if not own:
            raise UserError(f"{folder / name}: is from no export and would be lost; move it away")


def read_options(folder: pathlib.Path) -> Options:
    """Returns what shaped an exported folder.

    Raises:
      UserError: there is no such folder.
    """
    try:
        header = (folder / _MARK).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{folder}: no exported C program; {command.mode('export --format=c')} writes it"
        ) from error
    try:
        return options_lib.read(header)
    except UserError as error:
        raise error.within(f"{folder / _MARK}: ") from None


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
