"""Rate of the input pipeline beside that of decoding alone.

    python -m ftbnn_jax.bench.input [--config=FILE] [--data_dir=DIR] [--seconds=N]

All variants take turns in one run, on the same images and as many threads as there are cores, and
medians are compared, so that a busy machine hurts them alike.
"""

import concurrent.futures
import dataclasses
import io
import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import rich.table
from PIL import Image

from ftbnn_jax import command, report
from ftbnn_jax import config as config_lib
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.data import batches as batches_lib
from ftbnn_jax.data import crops, decode, sets, tf_decoder, tfrecords
from ftbnn_jax.data.lazy import tf
from ftbnn_jax.errors import CorruptRecordError, UserError
from ftbnn_jax.host import machine, paths
from ftbnn_jax.ops import decoding

PIPELINE, FUSED, SEPARATE, PIL = "pipeline", "fused", "decode_then_crop", "pil"
_WHAT = {
    PIPELINE: "pipeline: read, check, decode and crop, resize, mirror, batch, to the device",
    FUSED: "TensorFlow: fused decode-and-crop, resize",
    SEPARATE: "TensorFlow: decode, then crop, resize",
    PIL: "PIL: decode, crop and resize",
}
_STEP_RATES = (500, 1000, 2500, 5000)

_ROUNDS = 9
# Enough for any effect of their sizes, and kept in memory for the variants that do not read.
_MOST_IMAGES = 512
_CROPS_PER_IMAGE = 8
# Images between two looks at the clock.
_GROUP = 64


def _parser() -> command.ArgumentParser:
    parser = command.ArgumentParser(
        prog="python -m ftbnn_jax.bench.input",
        description="Time the input pipeline beside decoding alone.",
    )
    parser.add_argument(
        "--config",
        default="derived18_g1",
        metavar="FILE",
        help="config (default: %(default)s)",
    )
    parser.add_argument(
        "--data_dir",
        type=paths.argument,
        metavar="DIR",
        help="where TFDS looks, instead of the config's",
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, metavar="N", help="about how long (default: %(default)g)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what the command line says; returns the exit status."""
    return command.run(_main, arguments)


def _main(arguments: Sequence[str]) -> int:
    machine.keep_memory()
    options = _parser().parse_args(arguments)
    if not 0 < options.seconds < math.inf:
        raise UserError(f"--seconds={options.seconds:g}: must be positive and finite")
    config = config_lib.load(options.config)
    if options.data_dir:
        config = dataclasses.replace(config, data_dir=options.data_dir)
    machine.start_jax()
    result = measure(config, options.seconds)
    if options.json:
        report.print_json(result)
    else:
        print_tables(result)
    return 0


def measure(config: TrainConfig, seconds: float) -> dict[str, Any]:
    """Times all variants in turns.

    Args:
      config: says the data set, the size of images and batches, and the augmentation.
      seconds: about how long to time for, preparation not included.

    Returns:
      `images_per_second` of each variant, medians; `pipeline_over` each other variant, medians of the
      rounds' ratios; `cores`; `images_per_second_per_core` and `cores_for` some rates of the pipeline;
      `images`, how many different ones were used; `rounds`.

    Raises:
      UserError: the data set is not there, or its images are not encoded ones in records.
    """
    split = sets.open_split(config, train=True)
    if split.shape:
        raise UserError(f"config.augment={config.augment!r}: no images are decoded; use 'resize_crop'")
    split = split.head(_MOST_IMAGES)
    cores = machine.num_cores()
    variants = _variants(split, config, cores)
    budget = seconds / _ROUNDS / len(variants)
    rounds = [{name: variant(budget) for name, variant in variants.items()} for _ in range(_ROUNDS)]
    rates = {name: float(np.median([r[name] for r in rounds])) for name in variants}
    per_core = rates[PIPELINE] / cores
    return {
        "images_per_second": rates,
        "pipeline_over": {
            name: float(np.median([r[PIPELINE] / r[name] for r in rounds]))
            for name in variants
            if name != PIPELINE
        },
        "cores": cores,
        "images_per_second_per_core": per_core,
        "cores_for": {str(rate): math.ceil(rate / per_core) for rate in _STEP_RATES},
        "images": split.num_examples,
        "rounds": _ROUNDS,
    }


def _variants(
    split: tfrecords.RecordSplit, config: TrainConfig, cores: int
) -> dict[str, Callable[[float], float]]:
    """Functions that run one variant for about so many seconds and return images per second."""
    images, windows = _sample(split, config)
    size, channels = config.image_size, split.channels

    def resize(pixels):
        # Of uint8, TensorFlow would be slower.
        resized = tf.image.resize(tf.cast(pixels, tf.float32), (size, size))
        return tf.cast(tf.round(resized), tf.uint8)

    def fused(image, window):
        return resize(decode.crop(image, lambda _: tf.unstack(window), channels))

    def separate(image, window):
        top, left, height, width = tf.unstack(window)
        pixels = decode.crop(image, lambda shape: (0, 0, shape[0], shape[1]), channels)
        crop = pixels[top : top + height, left : left + width]
        crop.set_shape((None, None, channels))
        return resize(crop)

    def by_tensorflow(function: Callable[..., Any]) -> Callable[[float], float]:
        data = tf.data.Dataset.from_tensor_slices(windows)
        data = tf.data.Dataset.zip(tf.data.Dataset.from_tensor_slices(images).repeat(), data).repeat()
        # One number of each result is looked at, so that no time goes into handing the images over.
        in_flight = tf_decoder.IN_FLIGHT_PER_CORE * cores
        data = data.map(lambda *args: function(*args)[0, 0, 0], num_parallel_calls=in_flight)
        iterator = iter(data.batch(_GROUP).with_options(tf_decoder.tf_data_options(cores)))
        return lambda seconds: _rate(lambda: next(iterator), _GROUP, seconds)

    return {
        PIPELINE: lambda seconds: _pipeline_rate(split, config, seconds),
        FUSED: by_tensorflow(fused),
        SEPARATE: by_tensorflow(separate),
        PIL: _by_pil(images, windows, size, channels, cores),
    }


def _sample(split: tfrecords.RecordSplit, config: TrainConfig) -> tuple[list[bytes], np.ndarray]:
    """Returns the encoded images, and random windows in them, int32 `[_CROPS_PER_IMAGE * n, 4]`."""
    try:
        images = split.fetch(np.arange(split.num_examples))[0].tolist()
        shapes = [decoding.from_bytes(image, split.channels).shape for image in images]
    except CorruptRecordError as error:
        raise UserError(f"{split.files[0].path}: among its first records are corrupt ones") from error
    draws = tf.data.Dataset.from_tensor_slices(np.array(shapes, np.int32)).repeat(_CROPS_PER_IMAGE)

    def window(number, shape):
        seed = tf.stack([tf.cast(config.seed, tf.int64), number])
        return tf.stack(crops.in_graph(config.augment, shape, seed))

    draws = draws.enumerate().map(window)
    return images, np.stack(list(draws.as_numpy_iterator()))


def _rate(run_group: Callable[[], Any], group: int, seconds: float) -> float:
    """Returns images per second, of groups that take about so many seconds together."""
    run_group()
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        run_group()
        count += group
    return count / elapsed


def _pipeline_rate(split: tfrecords.RecordSplit, config: TrainConfig, seconds: float) -> float:
    """A new pipeline each time, or it would go on filling its buffers in the other variants' turns."""
    batches = batches_lib.train_batches(split, config, first_step=0, last_step=2**31)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    # None ahead, or batches would count that were decoded before the clock was started.
    moved = batches_lib.to_device(batches, sharding, ahead=0)
    return _rate(lambda: jax.block_until_ready(next(moved)), config.batch_size, seconds)


def _by_pil(
    images: list[bytes], windows: np.ndarray, size: int, channels: int, cores: int
) -> Callable[[float], float]:
    pool = concurrent.futures.ThreadPoolExecutor(cores)
    numbers = itertools.cycle(range(len(windows)))

    def crop(number):
        top, left, height, width = map(int, windows[number])
        image = Image.open(io.BytesIO(images[number % len(images)]))
        image = image.convert("RGB" if channels == 3 else "L")
        image = image.crop((left, top, left + width, top + height))
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))

    def run_group():
        for _ in pool.map(crop, itertools.islice(numbers, _GROUP)):
            pass

    return lambda seconds: _rate(run_group, _GROUP, seconds)


def print_tables(result: dict[str, Any]) -> None:
    """Prints the result of `measure`, and says what each variant does."""
    table = rich.table.Table(
        title=f"Input of {result['images']:,} images on {result['cores']} cores", title_justify="left"
    )
    table.add_column("what is done", overflow="fold")
    table.add_column("images/s", justify="right")
    table.add_column("pipeline over it", justify="right")
    for name, rate in result["images_per_second"].items():
        over = result["pipeline_over"].get(name)
        table.add_row(_WHAT[name], f"{rate:,.0f}", f"{over:.2f}" if over else "")
    report.console.print(table)
    table = rich.table.Table(
        title=f"{result['images_per_second_per_core']:,.0f} images/s a core", title_justify="left"
    )
    table.add_column("images/s of training", justify="right")
    table.add_column("cores that feed it", justify="right")
    for rate, cores in result["cores_for"].items():
        table.add_row(f"{int(rate):,}", f"{cores:,}")
    report.console.print(table)


if __name__ == "__main__":
    sys.exit(main())
