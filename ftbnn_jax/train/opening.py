"""What a training begins with: its images, and the config with all that they say of it."""

from ftbnn_jax.config import TrainConfig
from ftbnn_jax.data import automatic, sets
from ftbnn_jax.train import checkpoint


def open_training(config: TrainConfig, workdir: str) -> tuple[TrainConfig, sets.Split]:
    """Opens the training images, and fills in what a config leaves to the data.

    A run that goes on keeps what it found when it began, however the data have changed since.

    Args:
      config: of the run.
      workdir: its directory.

    Returns:
      The config, of which nothing is left to the data, and the images.

    Raises:
      UserError: there is no such data set, or it does not fit the config.
    """
    if config.from_data and (saved := checkpoint.newest_experiment(workdir)):
        config = automatic.from_saved(config, saved["config"])
    split = sets.open_split(config, train=True, workdir=workdir)
    return (automatic.from_split(config, split) if config.from_data else config), split
