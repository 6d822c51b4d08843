"""Command line: `python -m ftbnn_jax.budget configs/X.py ...`, `--table4` or `--figure3`."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Any

from ftbnn_jax import command, config, published, report
from ftbnn_jax.budget import figure3, tables
from ftbnn_jax.budget import report as budget_report
from ftbnn_jax.deploy.c import device, options
from ftbnn_jax.errors import UserError
from ftbnn_jax.host import machine, paths
from ftbnn_jax.nn import architectures


def _parser() -> command.ArgumentParser:
    parser = command.ArgumentParser(
        prog="python -m ftbnn_jax.budget",
        description="Count parameters, FLOPs, BOPs, bytes and activation memory of networks, from the "
        "traced program; no weights are made.",
    )
    parser.add_argument(
        "configs", nargs="*", metavar="CONFIG", help="config files, X.py:ARG, or names: derived44_g5:90"
    )
    parser.add_argument("--table4", action="store_true", help="all 20 nets of Table 4")
    parser.add_argument(
        "--figure3", action="store_true", help="draw the budget distribution of Figure 3"
    )
    parser.add_argument(
        "--output",
        type=paths.local_argument,
        metavar="FILE",
        help="figure to write (default: figure3.png)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--layers", action="store_true", help="list the layers too")
    parser.add_argument(
        "--image-size", type=command.whole(1, 2**14), metavar="N", help="instead of the config's own"
    )
    parser.add_argument(
        "--channels",
        type=command.whole(1, 2**14),
        metavar="N",
        help="of the images (default: one per pixel mean)",
    )
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="estimate milliseconds and kilobytes of the C program there too; --device=help lists them",
    )
    parser.add_argument(
        "--fixed_point", action="store_true", help="with --device: as export --fixed_point writes it"
    )
    parser.add_argument(
        "--real_bits",
        type=int,
        choices=options.REAL_BITS,
        help="with --device: likewise, of real layers' weights (default: 32)",
    )
    return parser


def _name(path: str) -> str:
    file, colon, argument = path.partition(":")
    return os.path.splitext(os.path.basename(file))[0] + colon + argument


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what the command line says; returns the exit status, with a user's mistake in one line."""
    return command.run(_main, arguments)


def _main(arguments: Sequence[str]) -> int:
    flags = _parser().parse_args(arguments)
    if flags.device == "help":
        print(", ".join(device.names()))
        return 0
    chosen = [bool(flags.configs), flags.table4, flags.figure3]
    if sum(chosen) != 1:
        raise UserError("give config files, --table4 or --figure3, and one of these alone")
    if flags.output and not flags.figure3:
        raise UserError(f"--output {flags.output}: is for --figure3 alone")
    how = _options(flags)
    if flags.figure3:
        print(figure3.draw(flags.output or "figure3.png"))
        return 0
    if flags.table4:
        configs = [
            (
                published.derived_name(budget, layers, groups),
                config.TrainConfig(architectures.derived(layers=layers, groups=groups, budget=budget)),
            )
            for budget, layers, groups in published.TABLE4
        ]
    else:
        configs = [(_name(path), config.load(path)) for path in flags.configs]
    # Only shapes are traced: accelerators are left to those who need them.
    machine.start_jax("cpu")
    # The whole of Table 4 in seconds: tracing for activation memory takes as long as all the rest.
    counted = budget_report.count_configs(
        configs, flags.image_size, flags.channels, memory=not flags.table4
    )
    from ftbnn_jax.deploy.c import device_tables

    estimates = [_estimate(r, flags.device, how) for r in counted] if flags.device else []
    if flags.json:
        found = [budget_report.to_json(r, flags.layers) for r in counted]
        for record, estimate in zip(found, estimates, strict=False):
            record["device"] = estimate.to_dict(flags.layers)
        report.print_json(found, indent=2)
        return 0
    for table in (
        *([] if flags.table4 else [tables.budgets(counted)]),
        tables.comparison(counted),
        tables.totals(counted),
        *([tables.layers(r) for r in counted] if flags.layers else []),
        *([device_tables.totals(counted, estimates)] if estimates else []),
        *(map(device_tables.layers, counted, estimates) if flags.layers else []),
    ):
        if table is not None:
            report.print_wide(table)
    if estimates:
        report.console.print(estimates[0].device.source())
    return 0


def _options(flags: argparse.Namespace) -> options.Options:
    """Returns how the program is exported that is estimated.

    Raises:
      UserError: an option goes with others than these, or there are no times of such a program.
    """
    if flags.device is None:
        for name in ("fixed_point", "real_bits"):
            if getattr(flags, name):
                raise UserError(f"--{name}: goes with --device=NAME")
        return options.DEFAULT
    if not flags.configs:
        raise UserError("is for config files alone", f"--device={flags.device}")
    # How many fraction bits there are takes no time.
    bits = options.FRACTION_BITS[0] if flags.fixed_point else None
    found = options.Options(bits, flags.real_bits or options.DEFAULT.real_bits)
    device.load(flags.device).rates_of(found)
    return found


def _estimate(record: budget_report.Record, name: str, how: options.Options) -> Any:
    """Returns the `deploy.c.estimate.Estimate` of a network that need not be trained."""
    # Imported late: what only counts does not wait for what packs.
    from ftbnn_jax.deploy import export
    from ftbnn_jax.deploy.c import estimate

    config = dataclasses.replace(record.config, image_size=record.image_size)
    try:
        return estimate.estimate(export.drawn(config, record.channels), name, how)
    except UserError as error:
        raise error.within(f"{record.name}: ") from error


if __name__ == "__main__":
    sys.exit(main())
