"""Table 3: which non-linear modules a 1-bit ResNet-18 needs.

    python -m ftbnn_jax.experiments.table3 --workdir=DIR [--dataset=cifar10] [--rows=ROW,ROW]
        [--output=NAME]

Trains `configs/ablation.py:ROW` (with `,cifar10` for CIFAR-10) with each seed, and prints the table
beside the published one, of ImageNet. Finished runs are kept, so it may be stopped and started again,
and split over machines with `--shard`.
"""

import sys
from collections.abc import Sequence

from ftbnn_jax import command, published
from ftbnn_jax.experiments import members, outputs, sweep

_DATASETS = {"imagenet2012": "", "cifar10": ",cifar10"}


def main(arguments: Sequence[str]) -> int:
    """Does what the command line says and returns the exit status."""
    parser = command.ArgumentParser(
        prog="python -m ftbnn_jax.experiments.table3",
        description="Repeat the paper's Table 3.",
        epilog="What follows -- is handed to every run: -- --config.num_epochs=2",
    )
    sweep.add_arguments(parser, seeds="0")
    parser.add_argument("--dataset", choices=_DATASETS, default="imagenet2012")
    parser.add_argument(
        "--rows", default=",".join(published.TABLE3), metavar="ROW,ROW", help="(default: all)"
    )
    sweep.add_grid(parser)
    outputs.add_argument(parser)
    own, overrides = sweep.split_arguments(arguments)
    options = parser.parse_args(own)
    outputs.check(options.output)
    rows = sweep.chosen("rows", options.rows, published.TABLE3)
    suffix = _DATASETS[options.dataset]
    configs = {row: f"ablation:{row}{suffix}" for row in rows}
    wanted = members.make(configs, options.seeds, overrides, sweep.grid(options.grid))
    status = 0 if options.report else sweep.run(wanted, options.workdir, options.shard, options.jobs)
    if status != command.UNFINISHED:
        title = f"Table 3 on {options.dataset}"
        # What a grid adds to the name of a row comes after a dash.
        beside = {m.name: "{} / {}".format(*published.TABLE3[m.name.split("-")[0]]) for m in wanted}
        found = sweep.accuracies(wanted, options.workdir)
        sweep.print_table(title, found, beside)
        if options.output:
            outputs.write(options.output, outputs.accuracy_rows(wanted, found), outputs.dots(found))
    return status


if __name__ == "__main__":
    sys.exit(command.run(main))
