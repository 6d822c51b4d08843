"""Small networks with random weights for the tests of the deployment half."""

import jax
import jax.numpy as jnp
import numpy as np

from ftbnn_jax.config import TrainConfig
from ftbnn_jax.deploy import export
from ftbnn_jax.nn import spec as spec_lib
from ftbnn_jax.nn.resnet import ResNet

_QUICK_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

# The two kinds of the paper's networks: bridge, uneven groups and duplicated channels; real shortcuts.
DERIVED = spec_lib.ResNetSpec(
    blocks=(2, 1),
    width=13,
    groups=3,
    stem_features=9,
    stem_kernel=3,
    stem_activation="prelu",
    bridge=True,
    downsample="duplicate",
)
BASELINE = spec_lib.ResNetSpec(blocks=(2, 1), width=40, stem_features=40)


def build(spec, size, *, classes=5, channels=3, seed=0, compute_dtype="float32", augment="none"):
    """Returns config, variables and artifact of a network as if it had been trained.

    Statistics, scales and slopes are random; a few slopes are exactly 0, and a few latent weights are
    exact zeros of both signs or subnormal. Images of its own size enter it as they are, unless `augment`
    is "resized_crop".
    """
    config = TrainConfig(
        spec,
        image_size=size,
        num_classes=classes,
        pixel_mean=(120.0,),
        pixel_std=(60.0,),
        augment=augment,
        compute_dtype=compute_dtype,
    )
    model = ResNet(spec, classes)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, channels)), False)
    )
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "var":
            return rng.uniform(1, 40, leaf.shape).astype(np.float32)
        values = rng.standard_normal(leaf.shape).astype(np.float32)
        if name.startswith("kernel_") or name.endswith("slope"):
            planted = np.array([0.0, -0.0, 1e-40, -1e-40], np.float32)
            values = np.where(rng.random(leaf.shape) < 0.05, rng.choice(planted, leaf.shape), values)
        return values

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    experiment = {"channels": channels, "class_names": [f"class {i}" for i in range(classes)]}
    return config, variables, export.to_artifact(config, variables, experiment, step=7)


def images(size, count=3, channels=3, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)
