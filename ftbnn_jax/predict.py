"""Command line: `python -m ftbnn_jax.predict MODEL FILE|FOLDER... [--top=5] [--json|--csv]`.

Says what a packed network sees in images. They are decoded and preprocessed as evaluation does it.
"""

import argparse
import concurrent.futures
import contextlib
import csv
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import rich.progress
import rich.table
import rich.text

from ftbnn_jax import command, report
from ftbnn_jax.errors import UserError, one_line
from ftbnn_jax.host import machine, paths

if TYPE_CHECKING:
    import numpy as np

    from ftbnn_jax.deploy.runtime import Runtime

_MODEL = "model.safetensors"


# A file to read, or why there is none.
_File = str | UserError
# A class of an image: `class`, its name; `index`; `probability`.
_Row = dict[str, Any]


def _parser() -> command.ArgumentParser:
    parser = command.ArgumentParser(
        prog="python -m ftbnn_jax.predict",
        description="Classify images with a packed network: a table for each on a terminal, a line "
        "for each in a pipe.",
        epilog="Images that cannot be read are named on standard error and passed over; the exit status "
        "is then 1.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=paths.local_argument,
        help=f"a {_MODEL}, or the work directory that holds it",
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="FILE|FOLDER",
        type=paths.local_argument,
        help="images; of a folder, all in it and in the folders below, in the order of their names, but "
        "for hidden ones",
    )
    parser.add_argument(
        "--top",
        type=command.positive,
        default=5,
        metavar="N",
        help="how many classes of each image to print (default: 5)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON object a file, one a line")
    form.add_argument("--csv", action="store_true", help="print CSV, a line a class, under a header")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what the command line says; returns the exit status, with a user's mistake in one line."""
    return command.run(_main, arguments)


def _main(arguments: Sequence[str]) -> int:
    flags = _parser().parse_args(arguments)
    for path in flags.images:
        if path == "-":
            raise UserError("standard input is not read; give files or folders", path)
        if not os.path.exists(path):
            raise UserError("no such file or folder", path)
    # Imported late: a mistake in the command line is told without waiting for these.
    from PIL import Image

    from ftbnn_jax.deploy import artifact, runtime

    # Pillow would warn of large images as well as the error that follows.
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
    model = os.path.join(flags.model, _MODEL) if os.path.isdir(flags.model) else flags.model
    machine.configure_jax(keep_programs=True)
    packed = artifact.load(model)
    machine.check_devices()
    net = runtime.Runtime(packed)
    try:
        # Told before anything is read: it may take no images, or not classify them.
        if (shape := net.logits([]).shape[1:]) != (packed.num_classes,):
            raise UserError(f"gives {list(shape)} numbers for an image, not one a class")
    except UserError as error:
        raise error.within(f"{model}: ") from error
    failures = count = 0
    predictions = _predictions(net, _files(flags.images))
    with _progress(flags.images) as advance, contextlib.closing(predictions):
        show = _printer(flags)
        for file, found in predictions:
            count += 1
            if isinstance(found, UserError):
                failures += 1
                report.warn(f"{found}; passed over")
            else:
                show(file, _most_likely(net, found, flags.top))
            advance()
    if failures:
        print(f"error: {failures:,} of {count:,} could not be read", file=sys.stderr)
    return 1 if failures else 0


def _files(arguments: Iterable[str]) -> Iterator[_File]:
    """Yields every file to read, or why there is none; the names in one folder a level are held."""
    # Imported late, as above.
    from ftbnn_jax.ops.decoding import SUFFIXES

    def below(folder: str, above: tuple[str, ...]) -> Iterator[_File]:
        try:
            with os.scandir(folder) as entries:
                found = sorted((e.name, e.is_dir(), e.is_file()) for e in entries if e.name[0] != ".")
        except OSError as error:
            yield UserError(error.strerror or "cannot be listed", folder)
            return
        for name, is_folder, is_file in found:
            path = os.path.join(folder, name)
            if is_file and name.lower().endswith(SUFFIXES):
                yield path
            # A link may lead back to a folder that holds it.
            elif is_folder and (real := os.path.realpath(path)) not in above:
                yield from below(path, (*above, real))

    for argument in arguments:
        if not os.path.isdir(argument):
            yield argument
            continue
        found = below(argument, (os.path.realpath(argument),))
        first = next(found, UserError(f"holds no image ({', '.join(SUFFIXES)})", argument))
        yield first
        yield from found


def _predictions(net: "Runtime", files: Iterable[_File]) -> Iterator[tuple[_File, Any]]:
    """Yields each file with its logits, or with the UserError that says what is wrong with it, in order.

    While a batch runs, threads decode the next one.
    """
    import numpy as np

    def pixels_of(file):
        try:
            return file if isinstance(file, UserError) else net.pixels(file)
        except UserError as error:
            return error

    def start():
        return [(f, pool.submit(pixels_of, f)) for f in itertools.islice(files, net.batch_size)]

    files, pool = iter(files), concurrent.futures.ThreadPoolExecutor(machine.num_cores())
    try:
        following = start()
        while following:
            batch, following = following, start()
            found = [(file, future.result()) for file, future in batch]
            pixels = [x for _, x in found if not isinstance(x, UserError)]
            logits = iter(net.forward_padded(np.stack(pixels)) if pixels else ())
            yield from ((file, x if isinstance(x, UserError) else next(logits)) for file, x in found)
    finally:
        pool.shutdown(cancel_futures=True)


def _most_likely(net: "Runtime", logits: "np.ndarray", count: int) -> list[_Row]:
    from ftbnn_jax.deploy import runtime

    probabilities = runtime.softmax(logits)
    # A number of 32 bits has fewer digits than the one of 64 bits that it becomes.
    return [
        {"class": net.class_names[i], "index": i, "probability": float(str(probabilities[i]))}
        for i in (-logits).argsort(kind="stable")[:count].tolist()
    ]


def _printer(flags: argparse.Namespace) -> Callable[[str, list[_Row]], None]:
    """Returns what prints the classes of a file; in a pipe, as soon as they are known."""
    if flags.json:
        return lambda file, rows: print(report.to_json({"file": file, "classes": rows}), flush=True)
    if flags.csv:
        writer = csv.DictWriter(
            sys.stdout, ("file", "class", "index", "probability"), lineterminator="\n"
        )
        writer.writeheader()

        def write(file, rows):
            writer.writerows({"file": file, **row} for row in rows)
            sys.stdout.flush()

        return write
    return _print_table if report.console.is_terminal else _print_line


def _print_line(file: str, rows: list[_Row]) -> None:
    classes = ", ".join(f"{row['class']} {row['probability']:.2%}" for row in rows)
    print(one_line(f"{file}: {classes}"), flush=True)


def _print_table(file: str, rows: list[_Row]) -> None:
    table = rich.table.Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(f"{row['probability']:.2%}", one_line(row["class"]))
    report.console.print(rich.text.Text(one_line(file), style="bold"))
    report.console.print(table)


@contextlib.contextmanager
def _progress(arguments: list[str]) -> Iterator[Callable[[], None]]:
    """Shows a bar where there is a folder and a terminal; gives what to call after each file."""
    console = report.console if report.console.is_terminal else report.make_console(stderr=True)
    shown = console.is_terminal and any(map(os.path.isdir, arguments))
    bar = rich.progress.Progress(
        rich.progress.TextColumn("predict"),
        rich.progress.BarColumn(bar_width=None),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(compact=True),
        console=console,
        disable=not shown,
        expand=True,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task("", total=sum(1 for _ in _files(arguments)) if shown else None)
        yield lambda: bar.advance(task)


if __name__ == "__main__":
    machine.keep_memory()
    sys.exit(main())
