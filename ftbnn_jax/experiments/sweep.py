"""Runs several configs with several seeds, each in a directory of its own, and compares the results.

    python -m ftbnn_jax.experiments.sweep --workdir=DIR CONFIG... [--seeds=0,1,2] [--grid=K=V,V...]
        [--output=NAME] [-- --config.K=V...]

A run is an ordinary one, of `python -m ftbnn_jax.main`, in `DIR/CONFIG/seedN`; with
`--grid=learning_rate=0.003,0.01 --grid=model.groups=1,3` every config is run four times, in
`DIR/CONFIG-learning_rate=0.003-model.groups=1/seedN` and so on. Finished runs are kept,
interrupted ones go on where they were, so the same command may be given again and again; with
`--shard=1/3` and so on it is split over machines that share the directory, or whose directories are put
together afterwards. The table is made of the runs that have finished; NAME.json and NAME.png hold it.
"""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import rich.table

from ftbnn_jax import command, report
from ftbnn_jax.errors import UserError
from ftbnn_jax.experiments import members, outputs, results
from ftbnn_jax.host import lock, paths


class _Started(NamedTuple):
    """A run that is being made; `claim` keeps other sweeps from it."""

    member: members.Member
    process: subprocess.Popen[bytes]
    at: float
    claim: contextlib.ExitStack


def add_arguments(parser: argparse.ArgumentParser, seeds: str) -> None:
    """Adds the options that all sweeps have."""
    parser.add_argument(
        "--workdir",
        required=True,
        type=paths.local_argument,
        metavar="DIR",
        help="directory of all runs",
    )
    parser.add_argument(
        "--seeds", default=seeds, type=numbers, metavar="N,N", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--jobs",
        default=1,
        type=command.positive,
        metavar="N",
        help="runs at a time, each on its share of the cores (default: %(default)s)",
    )
    parser.add_argument(
        "--shard", default=(1, 1), type=_shard, metavar="I/N", help="make part I of N of the runs"
    )
    parser.add_argument(
        "--report", action="store_true", help="make no runs; show those that have finished"
    )


def add_grid(parser: argparse.ArgumentParser) -> None:
    """Adds the option of values that every config is run with; `grid` reads what it gives."""
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=VALUE,VALUE",
        help="run each config with each of these values of a field; given several times: with every "
        "combination",
    )


def grid(given: Sequence[str]) -> dict[str, list[str]]:
    """Returns the values by field of "model.blocks=(1,1),(2,2)": commas in brackets part nothing.

    Raises:
      UserError: a field has no value, is given twice or has a value twice, or is the seed.
    """
    found: dict[str, list[str]] = {}
    for text in given:
        where = f"--grid={text}"
        key, _, rest = text.removeprefix("--").removeprefix("config.").partition("=")
        values = [value.strip() for value in re.findall(r"(?:\([^()]*\)|[^,()])+", rest)]
        if (
            not key
            or not values
            or not all(values)
            or ",".join(values).replace(" ", "") != rest.replace(" ", "")
        ):
            raise UserError("must be KEY=VALUE,VALUE", where)
        if key == "seed":
            raise UserError("--seeds gives the seeds", where)
        if key in found or len(set(values)) < len(values):
            raise UserError(f"{key} is given twice" if key in found else "a value is given twice", where)
        found[key] = values
    return found


def chosen(option: str, text: str, known: Collection[str]) -> list[str]:
    """Returns the names in `text`, which has commas between them.

    Raises:
      UserError: one of them is not known.
    """
    names = text.split(",")
    for name in names:
        if name not in known:
            raise UserError(f"--{option}={text}: there is no {name!r}; there are {', '.join(known)}")
    return names


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns a sweep's own arguments, and those behind `--`, which are for its runs."""
    arguments = list(arguments)
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:cut], arguments[cut + 1 :]


def numbers(text: str) -> tuple[int, ...]:
    """Returns what `--seeds=0,1` lists, a `type` for argparse."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers with commas between them expected")
    return tuple(dict.fromkeys(map(int, text.split(","))))


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: I/N expected, with I from 1 to N")
    return int(match[1]), int(match[2])


def run(
    wanted: Sequence[members.Member], workdir: str, shard: tuple[int, int] = (1, 1), jobs: int = 1
) -> int:
    """Makes the runs that have not finished.

    SIGINT and SIGTERM are handed to the runs, which save their state.

    Args:
      wanted: the runs.
      workdir: directory of all of them.
      shard: (i, n): the i-th of n parts is made.
      jobs: runs at a time.

    Returns:
      The exit status: 0, 1 where a run failed, or `command.UNFINISHED` where they were interrupted.
    """
    part, parts = shard
    waiting = [m for i, m in enumerate(wanted) if i % parts == part - 1 and not m.is_finished(workdir)]
    shares = _shares_of_cores(min(jobs, len(waiting)))
    running: dict[int, _Started] = {}
    total, done, failed, told = len(waiting), 0, 0, 0
    with _stop_signals() as caught:
        while running or (waiting and not caught):
            for slot, cores in enumerate(shares):
                while slot not in running and waiting and not caught:
                    if started := _start(waiting.pop(0), workdir, cores):
                        running[slot] = started
                    else:
                        total -= 1
            # Each signal is handed on once: a second one tells a run to hurry.
            for _ in range(len(caught) - told):
                for started in running.values():
                    started.process.send_signal(signal.SIGTERM)
                told += 1
            time.sleep(0.2)
            for slot, started in list(running.items()):
                status, member = started.process.poll(), started.member
                if status is None:
                    continue
                del running[slot]
                if status == 0:
                    done += 1
                    member.finish(workdir)
                started.claim.close()
                if status == 0:
                    accuracy = results.read(member.directory(workdir)).final_accuracy()
                    minutes = (time.monotonic() - started.at) / 60
                    report.console.print(
                        f"{done}/{total}  {member.label}  {accuracy:.2%}  {minutes:.1f} minutes"
                    )
                elif not caught:
                    failed += 1
                    report.warn(f"{member.label}: exit status {status}; {member.last_line(workdir)}")
        if caught:
            print("interrupted; the same command goes on from there", file=sys.stderr)
            return command.UNFINISHED
    return 1 if failed else 0


def _start(member: members.Member, workdir: str, cores: set[int] | None) -> _Started | None:
    """Starts a run, unless another sweep is making it, which is told, or has finished it meanwhile."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.held(member.directory(workdir), "sweep"))
        except UserError as error:
            report.warn(f"{member.label}: left out; {error}")
            return None
        if member.is_finished(workdir):
            return None
        process = member.start(workdir, cores)
        return _Started(member, process, time.monotonic(), stack.pop_all())


def _shares_of_cores(jobs: int) -> list[set[int] | None]:
    """Cores for each of so many runs at a time; None for all."""
    if jobs <= 1 or not hasattr(os, "sched_getaffinity"):
        return [None] * jobs
    cores = sorted(os.sched_getaffinity(0))
    parts = min(jobs, len(cores))
    return [set(cores[job % parts :: parts]) for job in range(jobs)]


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list instead of ending the process."""
    caught: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(s, lambda number, _: caught.append(number)) for s in signals]
    try:
        yield caught
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def accuracies(wanted: Sequence[members.Member], workdir: str) -> dict[str, list[float]]:
    """Returns the final test accuracies of the finished runs, by name of the config."""
    found: dict[str, list[float]] = {member.name: [] for member in wanted}
    for member in wanted:
        if member.is_finished(workdir):
            found[member.name].append(results.read(member.directory(workdir)).final_accuracy())
    return found


def print_table(title: str, found: dict[str, list[float]], published: dict[str, str]) -> None:
    """Prints number of runs, mean and sample standard deviation in percent, beside published numbers."""
    table = rich.table.Table(title=title, title_justify="left")
    table.add_column("config")
    for header in ("runs", "test accuracy, %", *(["published, %"] if published else [])):
        table.add_column(header, justify="right")
    for name, values in found.items():
        cells = [name, str(len(values)), results.spread(values, 100)]
        table.add_row(*cells, *([published.get(name, "")] if published else []))
    report.console.print(table)
    report.console.print("mean ± sample standard deviation over the seeds of the last evaluation")


def main(arguments: Sequence[str]) -> int:
    """Does what the command line says and returns the exit status."""
    parser = command.ArgumentParser(
        prog="python -m ftbnn_jax.experiments.sweep",
        description="Run configs with several seeds and compare them.",
        epilog="What follows -- is handed to every run: -- --config.num_epochs=2",
    )
    parser.add_argument(
        "configs", nargs="+", metavar="CONFIG", help="config files, X.py:ARG, or names: ablation:relu"
    )
    add_arguments(parser, seeds="0,1,2")
    add_grid(parser)
    outputs.add_argument(parser)
    own, overrides = split_arguments(arguments)
    options = parser.parse_args(own)
    outputs.check(options.output)
    configs: dict[str, str] = {}
    for config in options.configs:
        name = members.name_of(config)
        if name in configs:
            raise UserError(f"{configs[name]} and {config} would share the directory {name}")
        configs[name] = config
    wanted = members.make(configs, options.seeds, overrides, grid(options.grid))
    status = 0 if options.report else run(wanted, options.workdir, options.shard, options.jobs)
    if status != command.UNFINISHED:
        found = accuracies(wanted, options.workdir)
        print_table("Sweep", found, {})
        if options.output:
            outputs.write(options.output, outputs.accuracy_rows(wanted, found), outputs.dots(found))
    return status


if __name__ == "__main__":
    sys.exit(command.run(main))
