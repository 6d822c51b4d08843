"""Makes a data set of TFDS ready for training: downloads it, or takes files that are there.

    python -m ftbnn_jax.data.prepare NAME [--data_dir=DIR] [--manual_dir=DIR] [--dry_run]

NAME is that of an image classification set, and a config or a version may follow, "mnist/3.0.1". What
can be known beforehand is checked before the work begins. The command does nothing where all is
prepared, and may be interrupted and given again at any time.
"""

import contextlib
import fcntl
import logging
import os
import pathlib
import re
import shutil
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

from ftbnn_jax import command
from ftbnn_jax.data import catalog, folder, imagenet, sets
from ftbnn_jax.data.lazy import first_line, tfds
from ftbnn_jax.errors import UserError, summary
from ftbnn_jax.host import disk, paths

# As TFDS names the directory of a download that is not complete.
_PARTIAL_DOWNLOAD = "*.tmp.*"


def prepare(
    name: str, manual_dir: pathlib.Path, data_dir: pathlib.Path, *, dry_run: bool = False
) -> None:
    """Prepares a set in `data_dir` unless that was done before.

    Args:
      name: of the set.
      manual_dir: directory of files that are not downloaded.
      data_dir: TFDS's directory of data sets.
      dry_run: end after the checks.

    Raises:
      UserError: there is no such set, it has no labelled images, something that it is made of or the
        disk is not fit, or what is prepared is incomplete.
    """
    if name in catalog.BUILT_IN or name.startswith(folder.PREFIX):
        print(f"{name}: needs no preparation")
        return
    catalog.check(name, str(data_dir), name)
    base = re.split("[/:]", name)[0]
    # A first preparation's mistakes are told without waiting for TensorFlow.
    checked = not (data_dir / base).exists()
    needed = _check_files(base, manual_dir, data_dir) if checked else 0
    builder = _builder(name, data_dir)
    sets.features_of(name, builder.info)
    counts = prepared_images(builder)
    if counts is not None:
        print(f"{builder.data_path}: already prepared, {_count(counts)}")
        return
    if not checked:
        needed = _check_files(base, manual_dir, data_dir)
    _check_builder(name, builder, manual_dir)
    needed = needed or builder.info.download_size + builder.info.dataset_size
    check_space(data_dir, needed or sum(i.size for i in (builder.url_infos or {}).values()))
    if dry_run:
        print(f"would prepare {builder.data_path}")
        return
    downloads = data_dir / "downloads"
    with _only_one(data_dir / base):
        for stale in (
            *pathlib.Path(builder.data_path).parent.glob(f"{tfds.core.constants.INCOMPLETE_PREFIX}*"),
            *(downloads / base).glob(_PARTIAL_DOWNLOAD),
        ):
            print(f"removing {stale}, left by a preparation that was interrupted")
            shutil.rmtree(stale)
        _check_network(builder, downloads / base, manual_dir, data_dir)
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
        try:
            builder.download_and_prepare(
                download_dir=downloads,
                download_config=tfds.download.DownloadConfig(
                    manual_dir=manual_dir, try_download_gcs=False
                ),
            )
        # TFDS, and what it decodes, extracts and downloads with, raise errors of all kinds. It has
        # removed what it had written.
        except Exception as error:
            raise _failed(builder, data_dir, error) from error
    print(f"{builder.data_path}: prepared, {_count(prepared_images(builder))}")


def _builder(name: str, data_dir: pathlib.Path) -> Any:
    try:
        return tfds.builder(catalog.name_for_tfds(name), data_dir=data_dir)
    # TFDS hands on whatever its reader of a damaged dataset_info.json raises.
    except Exception as error:
        reason = re.sub(r"^Failed to construct dataset .*?\}\": ", "", first_line(error))
        if (data_dir / name).exists():
            raise UserError(
                f"{data_dir / name}: cannot be opened: {reason}; remove the directory and prepare again"
            ) from error
        raise UserError(f"TFDS cannot make it: {reason}", name) from error


def prepared_images(builder: Any) -> dict[str, int] | None:
    """Returns the number of images of each split, or None if nothing is prepared.

    Raises:
      UserError: what is there is incomplete.
    """
    if not builder.data_path.exists():
        return None
    files = [f for split in builder.info.splits.values() for f in split.filepaths]
    missing = next((f for f in files if not f.exists()), None)
    if missing or not files:
        raise UserError(
            f"{builder.data_path}: {f'lacks {missing.name}' if missing else 'holds no data set'}; "
            "remove the directory and prepare again"
        )
    return {name: split.num_examples for name, split in builder.info.splits.items()}


def _check_files(base: str, manual_dir: pathlib.Path, data_dir: pathlib.Path) -> int:
    """Checks the files that a set is made of, where they are known; returns their size in bytes."""
    if base != imagenet.NAME:
        return 0
    needed = imagenet.check_archives(manual_dir)
    check_space(data_dir, needed)
    return needed


def _check_builder(name: str, builder: Any, manual_dir: pathlib.Path) -> None:
    """Raises a UserError if TFDS would need what is not there."""
    if not hasattr(builder, "_split_generators"):
        raise UserError(f"is in no version that TFDS can prepare here: {builder.data_path}", name)
    if isinstance(builder, tfds.core.BeamBasedBuilder) and not _is_installed("apache_beam"):
        raise UserError("is prepared with Apache Beam: pip install apache-beam", name)
    instructions = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    if instructions and not (manual_dir.is_dir() and any(manual_dir.iterdir())):
        text = " ".join(instructions.split())
        raise UserError(f"holds no files; TFDS says: {text}", f"--manual_dir={manual_dir}")


def _is_installed(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True


def check_space(data_dir: pathlib.Path, needed: int) -> None:
    """Raises UserError unless the disk of `data_dir` has `needed` bytes free."""
    there = next(p for p in [data_dir, *data_dir.parents] if p.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(f"--data_dir={data_dir}: {free:,} bytes free, needs {needed:,}")


def _check_network(
    builder: Any, downloads: pathlib.Path, manual_dir: pathlib.Path, data_dir: pathlib.Path
) -> None:
    """Raises a UserError if nothing is here and no server has an address: TFDS tries for minutes."""
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return
    infos = builder.url_infos or {}
    there = downloads.is_dir() and any(downloads.iterdir())
    given = any(i.filename and (manual_dir / i.filename).exists() for i in infos.values())
    # A proxy may know the address.
    if not infos or there or given or urllib.request.getproxies():
        return
    by_host = {urllib.parse.urlsplit(url).hostname: url for url in reversed(infos)}
    for host in by_host:
        try:
            socket.getaddrinfo(host, None)
            return
        except (OSError, UnicodeError):
            continue
    raise UserError(f"{next(iter(infos))}: there is no network; {_without(builder, data_dir)}")


def _without(builder: Any, data_dir: pathlib.Path) -> str:
    place = pathlib.Path(builder.data_path).relative_to(data_dir)
    return f"where there is one, prepare the set and copy its directory to {data_dir / place}"


def _failed(builder: Any, data_dir: pathlib.Path, error: Exception) -> UserError:
    """Says in one line what stopped a preparation."""
    where = f"{builder.data_path}: preparing failed"
    if disk.is_full(error):
        return UserError(f"{where}: no space left; what was written is removed")
    # The library that downloads puts its request into what it raises.
    if url := getattr(getattr(error, "request", None), "url", None):
        return UserError(f"{url}: cannot be downloaded; try again, or {_without(builder, data_dir)}")
    if isinstance(error, ImportError) and error.name:
        return UserError(f"{where}: it needs the package {error.name}: {summary(error)}")
    return UserError(f"{where}: {summary(error)}")


@contextlib.contextmanager
def _only_one(directory: pathlib.Path) -> Iterator[None]:
    """Keeps other preparations out of a directory; the lock goes with the process, however it ends."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(f"{directory}: being prepared by another process") from error
    finally:
        os.close(descriptor)


def _count(images: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {split} images" for split, number in images.items())


def _parser() -> command.ArgumentParser:
    parser = command.ArgumentParser(
        prog="python -m ftbnn_jax.data.prepare",
        description="Makes an image classification set of TFDS ready for training.",
    )
    parser.add_argument("name", metavar="NAME", help='of the set, "cifar10" or "mnist/3.0.1"')
    parser.add_argument(
        "--data_dir",
        type=paths.local_argument,
        metavar="DIR",
        help="TFDS's directory of data sets (default: $TFDS_DATA_DIR, or ~/tensorflow_datasets)",
    )
    parser.add_argument(
        "--manual_dir",
        type=paths.local_argument,
        metavar="DIR",
        help="directory of files that are not downloaded (default: DATA_DIR/downloads/manual)",
    )
    parser.add_argument("--dry_run", action="store_true", help="end after the checks")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Does what the command line says; returns the exit status."""
    options = _parser().parse_args(arguments)
    data_dir = options.data_dir or paths.local_argument(
        os.environ.get("TFDS_DATA_DIR") or catalog.DATA_DIR
    )
    data_dir = pathlib.Path(data_dir).absolute()
    manual_dir = pathlib.Path(options.manual_dir or data_dir / "downloads" / "manual").absolute()
    # It tells of every try.
    logging.getLogger("urllib3").setLevel(logging.CRITICAL)
    prepare(options.name, manual_dir, data_dir, dry_run=options.dry_run)
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main))
