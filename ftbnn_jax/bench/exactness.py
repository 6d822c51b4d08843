"""Whether binary convolutions come out as integers, to the last one, on the device of this machine.

    python -m ftbnn_jax.bench.exactness [--config=FILE ...]

Of every shape that the networks have, once each: the convolution as training computes it, in the compute
dtype that training would take here, against float32 sums on the CPU. Float32 holds such sums exactly
whatever their order. Without `--config`, the shapes are those of the paper's tables, at 224.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.progress
import rich.table

from ftbnn_jax import command, published, report
from ftbnn_jax import config as config_lib
from ftbnn_jax.errors import UserError
from ftbnn_jax.host import machine
from ftbnn_jax.nn import resnet
from ftbnn_jax.nn.spec import ResNetSpec
from ftbnn_jax.ops import binary
from ftbnn_jax.ops.conv import algorithms, convolution

_KERNEL_SIZE, _PADDING = 3, 1
_IMAGES = 2
# Of the activations' signs, as after a ReLU or a sum that happens to be 0.
_ZEROS = 0.2


@dataclasses.dataclass(frozen=True, order=True)
class Shape:
    """A 3x3 binary convolution of padding 1.

    Attributes:
      size: height and width of the input.
      stride: in both directions.
      features_in: channels of the input.
      features_out: channels of the output.
      groups: of channels.
    """

    size: int
    stride: int
    features_in: int
    features_out: int
    groups: int

    @property
    def largest_sum(self) -> int:
        """The largest magnitude that a sum can have."""
        return binary.largest_sum(_KERNEL_SIZE, self.features_in, self.groups)


def shapes(spec: ResNetSpec, image_size: int) -> set[Shape]:
    """Returns the shapes of a network's binary convolutions for images of this height and width."""
    size = -(-image_size // spec.stem_stride)
    size = -(-size // 2) if spec.stem_pool else size
    found = set()
    for plan in spec.plan():
        found.add(Shape(size, plan.stride, plan.conv_in_features, plan.features, plan.groups))
        size = -(-size // plan.stride)
    return found


def count_differences(shape: Shape, compute_dtype: jnp.dtype) -> tuple[int, int]:
    """Convolves random signs, zeros among them, and signs that give the largest sum.

    Args:
      shape: of the convolution.
      compute_dtype: as in `ops.conv.convolution`.

    Returns:
      How many of the device's sums differ from the exact ones, and how many there are.
    """
    rng = np.random.default_rng(0)
    x = rng.choice([-1.0, 1.0], (_IMAGES, shape.size, shape.size, shape.features_in))
    x[rng.random(x.shape) < _ZEROS] = 0
    x[0] = 1
    widths = [binary.group_sizes(n, shape.groups) for n in (shape.features_in, shape.features_out)]
    kernels = []
    for width in zip(*widths, strict=True):
        kernels.append(rng.choice([-1.0, 1.0], (_KERNEL_SIZE, _KERNEL_SIZE, *width)))
        kernels[-1][..., 0] = 1
    arrays = jax.tree.map(lambda a: a.astype(np.float32), (x, kernels))
    actual = _device_sums(*arrays, shape.stride, compute_dtype)
    with jax.default_device(jax.devices("cpu")[0]):
        expected = _exact_sums(*arrays, shape.stride)
    return int(np.count_nonzero(np.asarray(actual) != np.asarray(expected))), expected.size


@functools.partial(jax.jit, static_argnums=(2, 3))
def _device_sums(x, kernels, stride, compute_dtype):
    return convolution.grouped_conv2d(x, kernels, stride, _PADDING, compute_dtype, signs=True)


@functools.partial(jax.jit, static_argnums=2)
def _exact_sums(x, kernels, stride):
    ends = np.cumsum([kernel.shape[2] for kernel in kernels])[:-1].tolist()
    padding = ((_PADDING, _PADDING),) * 2
    parts = zip(jnp.split(x, ends, -1), kernels, strict=True)
    sums = [algorithms.direct(part, kernel, stride, padding) for part, kernel in parts]
    return jnp.concatenate(sums, -1)


def measure(found: Iterable[Shape], compute_dtype: jnp.dtype) -> list[dict[str, Any]]:
    """Returns the fields of each shape with its `largest_sum`, and how many `sums` are `different`."""
    rows = []
    # On standard error, so that the result can be piped.
    console = report.make_console(stderr=True)
    for shape in rich.progress.track(
        sorted(found), "convolving", console=console, transient=True, disable=not console.is_terminal
    ):
        different, count = count_differences(shape, compute_dtype)
        fields = dataclasses.asdict(shape) | {"largest_sum": shape.largest_sum}
        rows.append(fields | {"sums": count, "different": different})
    return rows


def print_table(rows: Sequence[dict[str, Any]], compute_dtype: jnp.dtype) -> None:
    """Prints the shapes whose sums differ, if any, and how many do over all."""
    wrong = [row for row in rows if row["different"]]
    if wrong:
        table = rich.table.Table(title="Sums that are not exact", title_justify="left")
        for name in wrong[0]:
            table.add_column(name.replace("_", " "), justify="right")
        for row in wrong:
            table.add_row(*(f"{value:,}" for value in row.values()))
        report.console.print(table)
    different, sums = (sum(row[key] for row in rows) for key in ("different", "sums"))
    report.console.print(
        f"{different:,} of {sums:,} sums differ, in {len(wrong)} of {len(rows)} shapes; the largest can "
        f"be {max(row['largest_sum'] for row in rows):,}; {jnp.dtype(compute_dtype).name} on "
        f"{jax.devices()[0].device_kind}"
    )


def _parser() -> command.ArgumentParser:
    parser = command.ArgumentParser(
        prog="python -m ftbnn_jax.bench.exactness",
        description="Compare binary convolutions on this machine's device with exact sums.",
    )
    parser.add_argument(
        "--config",
        action="append",
        metavar="FILE",
        help="config, any number of times (default: all nets)",
    )
    parser.add_argument(
        "--compute_dtype", metavar="DTYPE", default="auto", help="(default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Does what the command line says; returns the exit status, 1 where a sum differs."""
    return command.run(_main, arguments)


def _main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    configs = [config_lib.load(path) for path in options.config or ()]
    if not configs:
        specs = (*published.table4_specs(), *published.total_macs_specs())
        configs = [config_lib.TrainConfig(spec) for spec in specs]
    sizes = [(config.spec("this command"), config.image_size) for config in configs]
    found = {shape for spec, size in sizes for shape in shapes(spec, size)}
    if not found:
        raise UserError(f"--config={options.config[0]}: a network without binary convolutions")
    config = dataclasses.replace(configs[0], compute_dtype=options.compute_dtype)
    machine.start_jax()
    dtype = jnp.dtype(resnet.resolved_dtype(config.compute_dtype))
    rows = measure(found, dtype)
    if options.json:
        report.print_json(rows)
    else:
        print_table(rows, dtype)
    return int(any(row["different"] for row in rows))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
