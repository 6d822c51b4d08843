"""How far a binary convolution's output is from that of the real convolution it stands for (Figure 2).

The real one takes the latent weights and the activations before the sign. The paper says no more
than that, and its numbers depend on the scale at which the two are compared; so there are several
definitions.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftbnn_jax.config import TrainConfig
from ftbnn_jax.nn import folding, recording, resnet
from ftbnn_jax.ops import binary, convolution, image
from ftbnn_jax.train import checkpoint, datasets, input_pipeline

# Name, and what is averaged over images, positions and channels. `b` and `r` are the outputs of the
# binary and of the real convolution.
DEFINITIONS = {
    "plain": "|b - r|",
    "relative": "|b - r| over the mean of |r|",
    "scaled": "|m b - r|, m the mean |weight| of a channel",
    "one batch norm": "|BN(b) - BN(r)| with the trained batch norm of the binary convolution",
    "two batch norms": "|BN(b) - BN'(r)|, BN' the same with the statistics of r",
    "standardised": "|(b - mean b) / sd b - (r - mean r) / sd r|, by channel",
    "clipped": "|b - r|, activations and weights clipped to [-1, 1] for r",
}


def measure(workdir: str, num_images: int) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Measures all definitions on a trained run.

    Args:
      workdir: directory of the run.
      num_images: test images to take.

    Returns:
      The discrepancies by name of the definition, averaged over the binary convolutions (empty where
      there are none); what the classifier reads, float32 `[n, features]`; and the labels, int32 `[n]`.

    Raises:
      UserError: there is no such run.
    """
    variables, experiment, _ = checkpoint.load_variables(workdir)
    config = TrainConfig.from_dict(experiment["config"])
    model = resnet.make(config.model, config.num_classes, config.compute_dtype)
    folded = folding.fold_batch_norms(variables, config.model)

    @jax.jit
    def trace(images):
        x = image.standardize(images, config.image_size, config.pixel_mean, config.pixel_std)
        features = recording.classifier_input(model, variables, x)
        _, convolutions = recording.binary_convolutions(model, variables, x)
        reals = {
            plan.name: _real_convolutions(variables["params"][plan.name]["conv"], plan, *found)
            for plan in config.model.plan()
            for found in [convolutions[plan.name]]
        }
        return features, reals

    split = datasets.open_split(config, train=False)
    batches = input_pipeline.eval_batches(split, config, num_examples=num_images)
    features, labels, outputs = [], [], []
    for batch in batches:
        there = batch["weight"] > 0
        found = jax.device_get(trace(batch["image"]))
        features.append(found[0][there])
        labels.append(batch["label"][there])
        outputs.append(jax.tree.map(lambda x, there=there: x[there], found[1]))
    layers = [
        _discrepancies(
            *(np.concatenate([o[plan.name][i] for o in outputs]) for i in range(3)),
            np.asarray(_weight_scale(variables["params"][plan.name]["conv"])),
            folded[plan.name]["bn"],
            np.asarray(variables["params"][plan.name]["bn"]["scale"]),
        )
        for plan in config.model.plan()
    ]
    means = {name: float(np.mean([layer[name] for layer in layers])) for name in DEFINITIONS if layers}
    return means, np.concatenate(features), np.concatenate(labels)


def _kernels(conv: dict[str, Any]) -> list[Any]:
    return [conv[f"kernel_{group}"] for group in range(len(conv))]


def _weight_scale(conv: dict[str, Any]) -> jax.Array:
    return binary.weight_scale(_kernels(conv))


def _real_convolutions(conv, plan, inputs, sums):
    """Outputs of the binary convolution, the real one, and the real one of clipped operands."""
    kernels = _kernels(conv)
    clipped = [jnp.clip(kernel, -1, 1) for kernel in kernels]
    return (
        sums,
        convolution.grouped_conv2d(inputs, kernels, plan.stride, 1),
        convolution.grouped_conv2d(jnp.clip(inputs, -1, 1), clipped, plan.stride, 1),
    )


def _discrepancies(
    b: np.ndarray,
    r: np.ndarray,
    clipped: np.ndarray,
    weight_scale: np.ndarray,
    folded: dict[str, np.ndarray],
    bn_scale: np.ndarray,
) -> dict[str, float]:
    def standardised(x):
        return (x - x.mean((0, 1, 2))) / (x.std((0, 1, 2)) + 1e-12)

    plain = np.abs(b - r).mean()
    standard = np.abs(standardised(b) - standardised(r))
    return {
        "plain": plain,
        "relative": plain / np.abs(r).mean(),
        "scaled": np.abs(weight_scale * b - r).mean(),
        "one batch norm": np.abs(folded["multiplier"] * (b - r)).mean(),
        "two batch norms": np.abs(bn_scale * standard).mean(),
        "standardised": standard.mean(),
        "clipped": np.abs(b - clipped).mean(),
    }
