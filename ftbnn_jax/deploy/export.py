"""From a checkpoint to a packed artifact."""

import pathlib
from typing import Any

import jax
import numpy as np

import ftbnn_jax
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.deploy import artifact, runtime
from ftbnn_jax.errors import UserError
from ftbnn_jax.ops import batch_norm, binary, bitpack
from ftbnn_jax.report import print_table


def to_artifact(
    config: TrainConfig, variables: dict[str, Any], experiment: dict[str, Any], step: int
) -> artifact.Artifact:
    """Packs a network.

    Args:
      config: of the run.
      variables: `params` and `batch_stats`.
      experiment: `channels` and `class_names` as the checkpoint holds them.
      step: of the checkpoint.

    Returns:
      The artifact; the latent weights of binary convolutions are not in it.
    """
    tensors: dict[str, np.ndarray] = {}
    _pack(variables["params"], variables["batch_stats"], config.model.batch_norm_epsilon, "", tensors)
    return artifact.Artifact(
        spec=config.model,
        num_classes=config.num_classes,
        channels=experiment["channels"],
        image_size=config.image_size,
        pixel_mean=config.pixel_mean,
        pixel_std=config.pixel_std,
        class_names=tuple(experiment["class_names"]),
        step=step,
        versions={"ftbnn_jax": ftbnn_jax.__version__, "jax": jax.__version__},
        tensors=tensors,
    )


def _pack(params, stats, epsilon, prefix, tensors) -> None:
    """Walks the parameters: batch norms are folded, binary kernels packed, the rest is taken over."""
    if "mean" in stats:
        folded = batch_norm.fold(params["scale"], params["bias"], stats["mean"], stats["var"], epsilon)
        tensors[f"{prefix}multiplier"], tensors[f"{prefix}offset"] = map(np.asarray, folded)
        return
    if "kernel_0" in params:
        kernels = [np.asarray(params[f"kernel_{g}"]) for g in range(len(params))]
        tensors[f"{prefix}bits"] = bitpack.pack_stream(
            np.concatenate([np.asarray(binary.is_positive(kernel)).reshape(-1) for kernel in kernels])
        )
        return
    for name, value in params.items():
        if isinstance(value, dict):
            _pack(value, stats.get(name, {}), epsilon, f"{prefix}{name}/", tensors)
        else:
            tensors[f"{prefix}{name}"] = np.asarray(value, np.float32)


def run(
    path: str, config: TrainConfig, variables: dict[str, Any], experiment: dict[str, Any], step: int
) -> int:
    """Writes the artifact of a checkpoint to `path`, prints its sizes, returns the exit status.

    Beside it, with the suffix `.stablehlo`, goes the runtime as a program: `Runtime.to_stablehlo`.
    """
    packed = to_artifact(config, variables, experiment, step)
    size = artifact.save(path, packed)
    program_path = pathlib.Path(path).with_suffix(".stablehlo")
    program = runtime.Runtime(packed).to_stablehlo()
    try:
        program_path.write_bytes(program)
    except OSError as error:
        raise UserError(f"{program_path}: cannot be written: {error.strerror}") from error
    words = sum(t.nbytes for n, t in packed.tensors.items() if n.endswith("/bits"))
    kernels = sum(
        4 * leaf.size
        for key, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
        if key[-1].key.startswith("kernel_")
    )
    print_table(
        "Exported",
        [
            ("step", f"{step:,}"),
            ("binary kernels, float32", f"{kernels:,} bytes"),
            ("binary kernels, packed", f"{words:,} bytes, {kernels / words:.1f} times smaller"),
            ("file", path),
            ("file size", f"{size:,} bytes"),
            ("as a jax.export program", program_path),
        ],
    )
    return 0
