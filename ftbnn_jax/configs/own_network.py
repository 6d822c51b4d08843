"""A network of your own, on CIFAR-10: six 3x3 convolutions as in VGG, all but the first binary.

    python -m ftbnn_jax.main --config=configs/own_network.py --workdir=DIR

docs/tutorials/own_network.md walks through this file, and says how to train on other images.
"""

from flax import linen as nn

from ftbnn_jax import config
from ftbnn_jax.nn.activations import PReLU
from ftbnn_jax.nn.blocks import BatchNorm, BinaryConv, Conv


class Vgg(nn.Module):
    """Takes standardised images [N, H, W, C] and gives logits [N, num_classes]."""

    widths: tuple[int, ...]  # Output channels of each convolution; two to a resolution.
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        x = Conv(self.widths[0], kernel_size=3, padding=1, name="conv0")(x)  # Images are no signs.
        x = PReLU()(BatchNorm(name="norm0")(x, train))
        for number, width in enumerate(self.widths[1:], 1):
            # Takes the signs of x and of its own latent weights: its sums are whole numbers.
            x = BinaryConv(width, name=f"conv{number}")(x)
            if number % 2:
                x = nn.max_pool(x, (2, 2), (2, 2), "SAME")
            x = PReLU()(BatchNorm(name=f"norm{number}")(x, train))
        return nn.Dense(self.num_classes, name="classifier")(x.mean((1, 2)))


def get_network(config):  # Is given all fields of the experiment; config.model has those from below.
    return Vgg(config.model.widths, config.num_classes)


def get_config():
    return config.make({"widths": (32, 32, 64, 64, 128, 128)}, **config.CIFAR10)
