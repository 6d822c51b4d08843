"""How far a binary convolution's output is from that of the real convolution it stands for (Figure 2).

The real one takes the latent weights and the activations before the sign. The paper says no more
than that, and its numbers depend on the scale at which the two are compared; so there are several
definitions.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ftbnn_jax.config import TrainConfig
from ftbnn_jax.data import batches as batches_lib
from ftbnn_jax.data import sets
from ftbnn_jax.nn import blocks, recording, resnet, strategies
from ftbnn_jax.nn.spec import ResNetSpec
from ftbnn_jax.ops import batch_norm, binary, image, quantizers
from ftbnn_jax.ops.conv import convolution
from ftbnn_jax.train import checkpoint, identity

# Name, and what is averaged over images, positions and channels; a "root" is that of the average. `b`
# and `r` are the outputs of the binary and of the real convolution, `c` that of the binary one with the
# sign of Eq. 2, which makes 0 to -1; `m` is the mean |weight| of a channel, `s` is `m` times the mean
# |activation| (XNOR-Net's factors).
DEFINITIONS = {
    "plain": "|b - r|",
    "relative": "|b - r| over the mean of |r|",
    "Eq. 2": "|c - r|",
    "scaled": "|m b - r|",
    "scaled, relative": "|s b - r| over the mean of |r|",
    "one batch norm": "|BN(b) - BN(r)| with the trained batch norm of the binary convolution",
    "one batch norm, Eq. 2": "|BN(c) - BN(r)|",
    "two batch norms": "|BN'(b) - BN'(r)|, BN' the same with the statistics of what it is given",
    "standardised": "|(b - mean b) / sd b - (r - mean r) / sd r|, by channel",
    "clipped": "|b - r|, activations and weights clipped to [-1, 1] for r",
    "one batch norm, root mean square": "(BN(b) - BN(r))^2, then the root",
    "two batch norms, root mean square": "(BN'(b) - BN'(r))^2, then the root",
    "one batch norm, Eq. 2, mean square": "(BN(c) - BN(r))^2",
    "two batch norms, Eq. 2, mean square": "(BN'(c) - BN'(r))^2",
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
    spec = config.spec("a discrepancy")
    model = resnet.make(spec, config.num_classes, config.compute_dtype)

    plans = spec.plan() if spec.binary_activations else ()

    @jax.jit
    def trace(images):
        x = image.standardize(images, config.mean, config.pixel_std)
        features, _ = recording.calls(model, variables, x, nn.Dense)["head"]
        convolutions = recording.calls(model, variables, x, blocks.BinaryConv)
        kernels = {plan.name: _kernels(variables["params"][plan.name]["conv"]) for plan in plans}
        return features, {
            plan.name: _outputs(kernels[plan.name], plan.stride, *convolutions[plan.name])
            for plan in plans
        }

    split = sets.open_split(config, train=False)
    identity.check(workdir, experiment, config, split)
    batches = batches_lib.eval_batches(split, config, num_examples=num_images)
    features, labels, outputs = [], [], []
    for batch in batches:
        there = batch["weight"] > 0
        found = jax.device_get(trace(batch["image"]))
        features.append(found[0][there])
        labels.append(batch["label"][there])
        outputs.append(jax.tree.map(lambda x, there=there: x[there], found[1]))
    layers = [
        _discrepancies(
            {key: np.concatenate([o[plan.name][key] for o in outputs]) for key in outputs[0][plan.name]},
            np.asarray(binary.weight_scale(_kernels(variables["params"][plan.name]["conv"]))),
            np.asarray(_multiplier(spec, variables, plan.name)),
            np.asarray(variables["params"][plan.name]["bn"]["scale"]),
        )
        for plan in plans
    ]
    means = {name: float(np.mean([layer[name] for layer in layers])) for name in DEFINITIONS if layers}
    return means, np.concatenate(features), np.concatenate(labels)


def _multiplier(spec: ResNetSpec, variables: dict[str, Any], block: str) -> jax.Array:
    """Returns what batch norm multiplies the integers of a block's binary convolution with, `[O]`."""
    params, statistics = variables["params"][block], variables["batch_stats"][block]["bn"]
    input_scale = params.get("channel_scale")
    if spec.scaling in strategies.FROM_WEIGHTS:
        input_scale = binary.weight_scale(_kernels(params["conv"]))
    norm = (params["bn"]["scale"], params["bn"]["bias"], statistics["mean"], statistics["var"])
    multiplier, _ = batch_norm.fold(*norm, spec.batch_norm_epsilon, input_scale)
    return multiplier


def _kernels(conv: dict[str, Any]) -> list[Any]:
    return [conv[f"kernel_{group}"] for group in range(len(conv))]


def _outputs(
    kernels: list[jax.Array], stride: int, inputs: jax.Array, sums: jax.Array
) -> dict[str, jax.Array]:
    """Outputs `[N, H, W, O]` by the letters of `DEFINITIONS`, and `inputs` themselves.

    `clipped` is the real convolution of weights and activations within [-1, 1].
    """
    clipped = [jnp.clip(kernel, -1, 1) for kernel in kernels]
    sign = quantizers.TwoValuedSign()
    return {
        "inputs": inputs,
        "b": sums,
        "c": binary.binary_conv2d(
            inputs, kernels, input_quantizer=sign, kernel_quantizer=sign, stride=stride
        ),
        "r": convolution.grouped_conv2d(inputs, kernels, stride, 1),
        "clipped": convolution.grouped_conv2d(jnp.clip(inputs, -1, 1), clipped, stride, 1),
    }


def _discrepancies(
    outputs: dict[str, np.ndarray],
    weight_scale: np.ndarray,
    multiplier: np.ndarray,
    bn_scale: np.ndarray,
) -> dict[str, float]:
    """All definitions for one convolution.

    Args:
      outputs: from `_outputs`.
      weight_scale: mean |weight| by output channel.
      multiplier: of the folded batch norm.
      bn_scale: the batch norm's learnt scale.
    """

    def standardised(x):
        return (x - x.mean((0, 1, 2))) / (x.std((0, 1, 2)) + 1e-12)

    def mean_square(x):
        return float(np.square(x).mean())

    b, c, r = outputs["b"], outputs["c"], outputs["r"]
    standard = standardised(b) - standardised(r)
    scale = weight_scale * np.abs(outputs["inputs"]).mean()
    averaged = {
        "plain": b - r,
        "relative": (b - r) / np.abs(r).mean(),
        "Eq. 2": c - r,
        "scaled": weight_scale * b - r,
        "scaled, relative": (scale * b - r) / np.abs(r).mean(),
        "one batch norm": multiplier * (b - r),
        "one batch norm, Eq. 2": multiplier * (c - r),
        "two batch norms": bn_scale * standard,
        "standardised": standard,
        "clipped": b - outputs["clipped"],
    }
    squares = {
        "one batch norm, Eq. 2, mean square": averaged["one batch norm, Eq. 2"],
        "two batch norms, Eq. 2, mean square": bn_scale * (standardised(c) - standardised(r)),
    }
    roots = ("one batch norm", "two batch norms")
    return {
        **{name: float(np.abs(values).mean()) for name, values in averaged.items()},
        **{f"{name}, root mean square": mean_square(averaged[name]) ** 0.5 for name in roots},
        **{name: mean_square(values) for name, values in squares.items()},
    }
