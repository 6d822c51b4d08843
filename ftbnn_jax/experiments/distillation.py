"""What a teacher and training in stages add to a small net on CIFAR-10, for the same number of epochs.

    python -m ftbnn_jax.experiments.distillation --workdir=DIR [--epochs=20] [--output=NAME]

| row | how the net of `configs/cifar10.py`, 16 channels wide, is trained |
|---|---|
| labels | by the labels alone |
| outputs | by the labels and the outputs of a teacher |
| attention | likewise, and by the attention maps of the teacher's stages |
| stages | likewise, in the three stages of `configs/baseline_kd.py`: tanh and sign take a quarter each |

Beside a teacher labels weigh 1, its outputs 3, and attention maps what a config has by default. The
teacher is `configs/resnet18_fp.py:cifar10`, trained once for as many epochs. What follows `--` is handed
to every run. Finished runs are kept, so it may be stopped and started again.
"""

import sys
from collections.abc import Sequence

from ftbnn_jax import command
from ftbnn_jax.errors import UserError
from ftbnn_jax.experiments import members, outputs, sweep

_WIDTH = 16
# Of labels and outputs, alike in all rows that have a teacher.
_WEIGHTS = ("--config.label_weight=1", "--config.teacher_weight=3")


def plan(
    workdir: str, epochs: int, seeds: Sequence[int], overrides: Sequence[str] = ()
) -> tuple[list[members.Member], list[members.Member]]:
    """Returns the teacher's run, which comes first, and those of all rows.

    Args:
      workdir: directory of all runs.
      epochs: of the teacher, and of a row, over all its stages.
      seeds: of the rows.
      overrides: arguments for each run.
    """
    length = f"--config.num_epochs={epochs}"
    teacher = members.make({"teacher": "resnet18_fp:cifar10"}, seeds[:1], [length, *overrides])
    net = [f"--config.model.width={_WIDTH}", f"--config.model.stem_features={_WIDTH}"]
    taught = [*net, *_WEIGHTS, f"--config.teacher={teacher[0].directory(workdir)}"]
    quarter = epochs // 4
    parts = {"tanh": quarter, "sign": quarter, "binary": epochs - 2 * quarter}
    stages = [f"--config.stages.{name}.num_epochs={part}" for name, part in parts.items()]
    arguments = {
        "labels": ("cifar10", [*net, length]),
        "outputs": ("cifar10", [*taught, length, "--config.attention_weight=0"]),
        "attention": ("cifar10", [*taught, length]),
        "stages": ("baseline_kd:cifar10", [*taught, *stages]),
    }
    rows = [
        members.make({row: config}, seeds, [*given, *overrides])
        for row, (config, given) in arguments.items()
    ]
    return teacher, [member for row in rows for member in row]


def main(arguments: Sequence[str]) -> int:
    """Does what the command line says and returns the exit status."""
    parser = command.ArgumentParser(
        prog="python -m ftbnn_jax.experiments.distillation",
        description="Train a small net with and without a teacher and stages, and compare.",
        epilog="What follows -- is handed to every run: -- --config.compute_dtype=float32",
    )
    sweep.add_arguments(parser, seeds="0,1,2")
    parser.add_argument(
        "--epochs", type=command.positive, default=20, metavar="N", help="(default: %(default)s)"
    )
    outputs.add_argument(parser)
    own, overrides = sweep.split_arguments(arguments)
    options = parser.parse_args(own)
    if options.epochs < 4:
        raise UserError(f"--epochs={options.epochs}: four are needed for the three stages")
    outputs.check(options.output)
    teacher, rows = plan(options.workdir, options.epochs, options.seeds, overrides)
    status = 0
    if not options.report:
        # No shard can begin before there is a teacher.
        status = sweep.run(teacher, options.workdir)
        status = status or sweep.run(rows, options.workdir, options.shard, options.jobs)
    if status == command.UNFINISHED:
        return status
    found = sweep.accuracies([*teacher, *rows], options.workdir)
    sweep.print_table(f"Distillation, {options.epochs} epochs", found, {})
    if options.output:
        outputs.write(
            options.output, outputs.accuracy_rows([*teacher, *rows], found), outputs.dots(found)
        )
    return status


if __name__ == "__main__":
    sys.exit(command.run(main))
