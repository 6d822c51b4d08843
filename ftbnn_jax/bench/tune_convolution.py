"""Measures every algorithm for the shapes of `ops.conv.table`, and prints rows for it.

    python -m ftbnn_jax.bench.tune_convolution [--batch=N] [--rounds=N]

All algorithms of a pass take turns; the fastest median wins. The lines replace `ROWS[backend]`. What is
measured is what a network computes there: 3x3 convolutions are binary, but for those of images, others
are real; gradients are float32 on a CPU and bfloat16 elsewhere.
"""

import functools
import sys
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ftbnn_jax import command
from ftbnn_jax.bench import timing
from ftbnn_jax.host import machine
from ftbnn_jax.ops.conv import algorithms, convolution, table


def _parser() -> command.ArgumentParser:
    parser = command.ArgumentParser(
        prog="python -m ftbnn_jax.bench.tune_convolution",
        description="Measure which algorithm computes each pass of a convolution fastest here, "
        "and print the rows of ftbnn_jax/ops/conv/table.py.",
    )
    for name, default, what in (("batch", 16, "images"), ("rounds", 7, "turns of each")):
        parser.add_argument(
            f"--{name}",
            type=command.positive,
            default=default,
            metavar="N",
            help=f"{what} (default: %(default)s)",
        )
    return parser


# Channels of images.
_IMAGE_FEATURES = 3
# Calls that follow one another before a clock is looked at, lest an accelerator's start of each counts.
_CALLS = {"cpu": 1}
_CALLS_ELSEWHERE = 20


def fastest(calls: dict[str, Callable[[], jax.Array]], rounds: int) -> str:
    """Returns the name of the call with the least median time, all taking turns."""

    def turn(call):
        for _ in range(_CALLS.get(jax.default_backend(), _CALLS_ELSEWHERE)):
            result = call()
        return result

    times = timing.medians([functools.partial(turn, call) for call in calls.values()], rounds)
    return min(zip(times, calls, strict=True))[1]


def measure(row: table.Row, batch: int, rounds: int) -> table.Row:
    """Returns `row` with the algorithms that are fastest for its shape on this machine."""
    k, stride = row.kernel_size, row.stride
    # The smallest input that gives this output.
    size, pad = (row.size - 1) * stride + 1, k // 2
    padding = ((pad, pad), (pad, pad))
    rng = np.random.default_rng(0)
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    signs = k == 3 and row.features_in != _IMAGE_FEATURES

    def random(*shape):
        values = rng.standard_normal(shape)
        return jnp.asarray(np.sign(values) if signs else values, dtype)

    x = random(batch, size, size, row.features_in)
    g = jnp.asarray(rng.standard_normal((batch, row.size, row.size, row.features_out)), dtype)
    kernel = random(k, k, row.features_in, row.features_out)

    def chosen(names, call):
        """Returns the fastest of `names`; `call` is of a name, `x`, `g` and `kernel`."""
        compiled = {
            name: jax.jit(functools.partial(call, name))
            for name in names
            if algorithms.fits(name, k, stride)
        }
        return fastest({n: lambda f=f: f(x, g, kernel) for n, f in compiled.items()}, rounds)

    def forward(name, x, g, kernel):
        with table.forced(name, "transposed", "transposed"):
            return convolution.conv2d(x, kernel, stride, pad, dtype, signs)

    def input_gradient(name, x, g, kernel):
        gradient = algorithms.INPUT_GRADIENT[name]
        return gradient(g, kernel, x.shape, stride, padding, convolution.forward)

    def kernel_gradient(name, x, g, kernel):
        return algorithms.KERNEL_GRADIENT[name](x, g, kernel.shape, stride, padding)

    return row._replace(
        forward=chosen(algorithms.FORWARD, forward),
        input_gradient=chosen(algorithms.INPUT_GRADIENT, input_gradient),
        kernel_gradient=chosen(algorithms.KERNEL_GRADIENT, kernel_gradient),
    )


def main(arguments: Sequence[str]) -> int:
    """Measures and prints; returns the exit status.

    Raises:
      UserError: an argument is wrong.
    """
    options = _parser().parse_args(arguments)
    machine.start_jax()
    # Every shape of the CPU's rows is of interest on any backend.
    for row in table.ROWS["cpu"]:
        shape = ", ".join(repr(value) for value in row[:5])
        names = ", ".join(f'"{name}"' for name in measure(row, options.batch, options.rounds)[5:])
        print(f"        Row({shape}, {names}),", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main))
