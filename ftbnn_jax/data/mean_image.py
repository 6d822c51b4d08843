"""Computes the mean image of a config's training images, and keeps it with the data.

    python -m ftbnn_jax.data.mean_image --config=NAME [--config.KEY=VALUE] [--output=FILE]

The mean is that of each pixel over all training images, each brought to size as for evaluation. A run
subtracts it with `--config.mean_image=FILE` (Appendix C of the paper).
"""

import dataclasses
import io
import os
import sys
from collections.abc import Sequence

import numpy as np

from ftbnn_jax import command
from ftbnn_jax import config as config_lib
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.data import batches, sets
from ftbnn_jax.errors import UserError
from ftbnn_jax.host import paths


def compute(config: TrainConfig) -> tuple[np.ndarray, int]:
    """Returns the mean image, float32 `[S, S, C]`, and of how many images it is.

    Args:
      config: says the images, their size, and whether evaluation sees their centres or all of them.

    Raises:
      UserError: there is no such data set, or none of its images can be read.
    """
    config = dataclasses.replace(config, mean_image="")
    split = sets.open_split(config, train=True)
    total = np.zeros(config.preprocessing(split.channels).shape, np.int64)
    count = 0
    for batch in batches.eval_batches(split, config):
        there = batch["weight"] > 0
        total += batch["image"][there].sum(0, dtype=np.int64)
        count += int(there.sum())
    if not count:
        raise UserError(f"config.train_split={config.train_split!r}: none of the images is readable")
    return (total / count).astype(np.float32), count


def main(arguments: Sequence[str]) -> int:
    """Does what the command line says; returns the exit status."""
    overrides, arguments = config_lib.split_overrides(arguments)
    parser = command.ArgumentParser(
        prog="python -m ftbnn_jax.data.mean_image",
        description="Compute the mean of a config's training images, pixel by pixel.",
        epilog="Fields of the config are overridden as --config.KEY=VALUE.",
    )
    parser.add_argument("--config", required=True, metavar="NAME", help="name or path of a config")
    parser.add_argument(
        "--output",
        type=paths.argument,
        metavar="FILE",
        help="(default: mean_image_SIZE.npy, beside the data)",
    )
    options = parser.parse_args(arguments)
    config = config_lib.load(options.config, overrides)
    path = options.output or os.path.join(sets.directory(config), f"mean_image_{config.image_size}.npy")
    image, count = compute(config)
    file = io.BytesIO()
    np.save(file, image)
    try:
        paths.write_whole(path, file.getvalue())
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", path) from error
    means = ", ".join(f"{mean:.2f}" for mean in image.mean((0, 1)))
    print(f"{path}: the mean of {count:,} images, of {means} by channels; use it with")
    print(f"--config.mean_image={path}")
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main))
