"""Time of one training step beside those of plain flax and of PyTorch.

    python -m ftbnn_jax.bench.train_step [--config=FILE ...] [--json]

The variants take turns in one run, each on one batch of random images that is on the device already, and
medians are compared, so that a busy machine hurts them alike. PyTorch takes part where it is installed
(the extra `torch`). The configs' batches are halved until a step fits into memory. On a GPU,
`XLA_PYTHON_CLIENT_PREALLOCATE=false` leaves PyTorch some of its memory.
"""

import dataclasses
import functools
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.table

from ftbnn_jax import budget, command, extras, networks, report
from ftbnn_jax import config as config_lib
from ftbnn_jax.bench import timing
from ftbnn_jax.bench.plain_flax import PlainResNet
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import weights
from ftbnn_jax.host import machine
from ftbnn_jax.nn import flax_networks, resnet
from ftbnn_jax.ops import image
from ftbnn_jax.train import optimizer, state
from ftbnn_jax.train import step as step_lib

with extras.named():
    import optax

OURS, FLAX, TORCH, TORCH_COMPILED = "ftbnn_jax", "flax", "torch", "torch_compiled"
VARIANTS = (OURS, FLAX, TORCH, TORCH_COMPILED)
CONFIGS = ("baseline", "derived34_g5", "derived44_g5", "resnet18_fp")
NO_TORCH = "not compared with PyTorch: pip install -e '.[torch]' adds it"

_CHANNELS = 3
# The steps that are timed are the first of a run of so many.
_NUM_STEPS = 1_000_000
_PEAK_SIZE = {"cpu": 2048}
# Bytes of a step over those that its activations are counted to leave for the backward pass: on a CPU,
# the baseline takes 1.5 times as many here, 2.2 in plain flax, 3.2 in PyTorch.
_MEMORY_OVER_ACTIVATIONS = 4
# Of a step's work, the backward pass has twice the forward pass's.
_PASSES = 3


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant of one network.

    Attributes:
      config: the experiment's name.
      variant: one of `VARIANTS`.
      batch_size: images in a step.
      image_size: their height and width.
      step_ms: median time of a step.
      images_per_second: at that time.
      share_of_peak: multiplications and additions of the convolutions a second, over those of a large
        matrix product in the same precision and run.
      first_s: seconds until the first step had run, compilation included.
      temporary_mb: memory of the compiled step beside its arguments; None where it is not known.
    """

    config: str
    variant: str
    batch_size: int
    image_size: int
    step_ms: float
    images_per_second: float
    share_of_peak: float
    first_s: float
    temporary_mb: float | None


@dataclasses.dataclass
class _Variant:
    """A step that returns once it has run, and what preparing it took."""

    step: Callable[[], Any]
    first_s: float
    temporary_mb: float | None = None


def _parser() -> command.ArgumentParser:
    parser = command.ArgumentParser(
        prog="python -m ftbnn_jax.bench.train_step",
        description="Time training steps beside plain flax and PyTorch.",
    )
    parser.add_argument(
        "--config",
        action="append",
        metavar="FILE",
        help="config, any number of times (default: " + ", ".join(CONFIGS) + ")",
    )
    parser.add_argument(
        "--batch_size",
        type=command.positive,
        metavar="N",
        help="instead of the configs' own, or of what fits into memory",
    )
    parser.add_argument(
        "--image_size", type=command.positive, metavar="N", help="instead of the configs' own"
    )
    parser.add_argument("--compute_dtype", metavar="DTYPE", help="instead of the configs' own")
    parser.add_argument("--remat", metavar="WHAT", help="instead of the configs' own")
    parser.add_argument(
        "--variants",
        default=",".join(VARIANTS),
        metavar="LIST",
        help="separated by commas (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=command.positive,
        default=7,
        metavar="N",
        help="steps of each (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Does what the command line says; returns the exit status, with a user's mistake in one line."""
    return command.run(_main, arguments)


def _main(arguments: Sequence[str]) -> int:
    machine.keep_memory()
    options = _parser().parse_args(arguments)
    variants = options.variants.split(",")
    for name in variants:
        if name not in VARIANTS:
            raise UserError(f"--variants={options.variants}: {name!r} is none of {', '.join(VARIANTS)}")
    fields = ("batch_size", "image_size", "compute_dtype", "remat")
    changes = {name: value for name in fields if (value := getattr(options, name)) is not None}
    configs = [
        (
            os.path.splitext(os.path.basename(path))[0],
            dataclasses.replace(config_lib.load(path), **changes),
        )
        for path in options.config or CONFIGS
    ]
    if importlib.util.find_spec("torch") is None:
        variants = [name for name in variants if name not in (TORCH, TORCH_COMPILED)]
        print(NO_TORCH, file=sys.stderr)
    if not variants:
        raise UserError(f"--variants={options.variants}: none of them is installed")
    machine.start_jax()
    if options.batch_size is None:
        configs = [(name, _in_memory(name, config)) for name, config in configs]
    rows = [row for name, c in configs for row in measure(name, c, variants, options.rounds)]
    if options.json:
        report.print_json([dataclasses.asdict(row) for row in rows])
    else:
        print_table(rows)
    return 0


def _in_memory(name: str, config: TrainConfig) -> TrainConfig:
    """Returns the experiment, its batch halved until a step fits into memory; says so where it is."""
    shape = (config.image_size, config.image_size, _CHANNELS)
    image = _MEMORY_OVER_ACTIVATIONS * budget.count(networks.make(config), shape).activation_bytes
    limits = [(d.memory_stats() or {}).get("bytes_limit", 0) for d in jax.local_devices()]
    there = sum(limits) or machine.memory_bytes()
    size = config.batch_size
    while size * image > there and not size % (2 * jax.device_count()):
        size //= 2
    if size < config.batch_size:
        needed = f"some {config.batch_size * image / 1e9:.0f} of {there / 1e9:.0f} GB"
        print(
            f"{name}: batch {size}; steps of the config's {config.batch_size} would take {needed}",
            file=sys.stderr,
        )
    return dataclasses.replace(config, batch_size=size)


def measure(name: str, config: TrainConfig, variants: Sequence[str], rounds: int) -> list[Row]:
    """Times one step of each variant in turns.

    Args:
      name: of the config.
      config: the experiment; its data set is not read.
      variants: of `VARIANTS`.
      rounds: steps of each.

    Raises:
      UserError: the batch does not divide over the devices.
    """
    rng = np.random.default_rng(0)
    shape = (config.batch_size, config.image_size, config.image_size, _CHANNELS)
    batch = {
        "image": rng.integers(0, 256, shape, np.uint8),
        "label": rng.integers(0, config.num_classes, config.batch_size).astype(np.int32),
    }
    prepared = {variant: _prepare(variant, config, batch) for variant in variants}
    calls = {**{n: v.step for n, v in prepared.items()}, "peak": _large_product(config)}
    times = dict(zip(calls, timing.medians(list(calls.values()), rounds), strict=True))
    counted = budget.count(networks.make(config), shape[1:], memory=False)
    operations = 2 * _PASSES * config.batch_size * (counted.macs + counted.binary_macs)
    peak = _product_operations() / times["peak"]
    return [
        Row(
            name,
            variant,
            config.batch_size,
            config.image_size,
            times[variant],
            1e3 * config.batch_size / times[variant],
            operations / times[variant] / peak,
            prepared[variant].first_s,
            prepared[variant].temporary_mb,
        )
        for variant in variants
    ]


def _prepare(variant: str, config: TrainConfig, batch: dict[str, np.ndarray]) -> _Variant:
    start = time.perf_counter()
    if variant in (OURS, FLAX):
        step, temporary_mb = _jax_step(config, batch, plain=variant == FLAX)
    else:
        from ftbnn_jax.bench import plain_torch

        step = plain_torch.make_step(config, batch, compiled=variant == TORCH_COMPILED)
        temporary_mb = None
    step()
    return _Variant(step, time.perf_counter() - start, temporary_mb)


def _jax_step(config, batch, plain):
    mesh = step_lib.make_mesh(config)
    if plain:
        make_state, train_step = _plain_flax(config)
    else:
        tx = optimizer.make(config, _NUM_STEPS, networks.weights(config, _CHANNELS))
        make_state = functools.partial(state.init, config, _CHANNELS, tx)
        train_step = step_lib.make_train_step(config, tx, mesh, _NUM_STEPS)
    current = jax.jit(
        make_state,
        out_shardings=step_lib.replicated(mesh),
        compiler_options={"xla_backend_optimization_level": 0},
    )()
    batch = jax.device_put(batch, step_lib.batch_sharding(mesh))
    compiled = train_step.lower(current, batch).compile()
    box = [current]

    def step():
        box[0], out = compiled(box[0], batch)
        return jax.block_until_ready(out)

    memory = compiled.memory_analysis()
    return step, memory.temp_size_in_bytes / 1e6 if memory else None


def _plain_flax(config):
    """State and step of a loop that knows nothing of this package but the optimizer."""
    dtype = jnp.dtype(resnet.resolved_dtype(config.compute_dtype))
    model = PlainResNet(config.spec("plain flax"), config.num_classes, dtype)
    kernels = weights.find(flax_networks.Linen(model), (config.image_size, config.image_size, _CHANNELS))
    tx = optimizer.make(config, _NUM_STEPS, kernels)

    def make_state():
        images = jnp.zeros((1, config.image_size, config.image_size, _CHANNELS))
        variables = model.init(jax.random.key(config.seed), images)
        return variables["params"], variables["batch_stats"], tx.init(variables["params"])

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(current, batch):
        params, batch_stats, opt_state = current

        def loss_of(params):
            x = image.standardize(batch["image"], config.mean, config.pixel_std)
            variables = {"params": params, "batch_stats": batch_stats}
            logits, updates = model.apply(variables, x, mutable=["batch_stats"])
            targets = optax.smooth_labels(
                jax.nn.one_hot(batch["label"], config.num_classes), config.label_smoothing
            )
            return optax.softmax_cross_entropy(logits, targets).mean(), updates["batch_stats"]

        (loss, batch_stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), batch_stats, opt_state), loss

    return make_state, train_step


def _product_size() -> int:
    return _PEAK_SIZE.get(jax.default_backend(), 8192)


def _product_operations() -> int:
    return 2 * _product_size() ** 3


def _large_product(config: TrainConfig) -> Callable[[], Any]:
    dtype = jnp.dtype(resnet.resolved_dtype(config.compute_dtype))
    matrix = jnp.ones((_product_size(),) * 2, dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    return lambda: product(matrix).block_until_ready()


def print_table(rows: Sequence[Row]) -> None:
    """Prints one line a row, each network's steps beside its first variant's."""
    kind = jax.devices()[0].device_kind
    table = rich.table.Table(
        title=f"Training steps on {jax.device_count()} x {kind}, {machine.num_cores()} cores",
        title_justify="left",
    )
    for header in ("network", "variant"):
        table.add_column(header)
    for header in ("ms a step", "over the first", "images/s", "of the peak", "first step s", "MB"):
        table.add_column(header, justify="right")
    first: dict[str, Row] = {}
    for row in rows:
        reference = first.setdefault(row.config, row)
        table.add_row(
            f"{row.config}, {row.image_size}x{row.image_size}, batch {row.batch_size}",
            row.variant,
            f"{row.step_ms:,.1f}",
            f"{row.step_ms / reference.step_ms:.2f}",
            f"{row.images_per_second:,.1f}",
            f"{row.share_of_peak:.0%}",
            f"{row.first_s:.1f}",
            "" if row.temporary_mb is None else f"{row.temporary_mb:,.0f}",
        )
    report.console.print(table)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
