"""From a checkpoint to a packed artifact."""

import pathlib
from typing import Any

import jax
import numpy as np

import ftbnn_jax
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.deploy import artifact, layout, runtime
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import folding
from ftbnn_jax.nn import variables as nn_variables
from ftbnn_jax.ops import quantizers
from ftbnn_jax.ops.packed import bits as bitpack
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

    Raises:
      UserError: the network has no convolution of signs with signs, or a number that is not finite.
    """
    if not config.model.plan():
        raise UserError(
            f"config.model.block={config.model.block!r}: nothing to pack; only 'binary' blocks can be"
        )
    for field in ("binary_activations", "binary_weights"):
        if not getattr(config.model, field):
            raise UserError(
                f"config.model.{field}=False: nothing to pack; the last step of multi-step training has "
                "both binary"
            )
    # Before signs are taken: that of a NaN would be a bit like any other.
    _check_finite(step, variables)
    tensors: dict[str, np.ndarray] = {}
    _pack(variables["params"], folding.fold_batch_norms(variables, config.model), "", tensors)
    _check_finite(step, tensors)
    tensors |= layout.quantize_classifier(tensors["head/kernel"])
    return artifact.Artifact(
        spec=config.model,
        num_classes=config.num_classes,
        preprocessing=config.preprocessing(experiment["channels"]),
        class_names=tuple(experiment["class_names"]),
        step=step,
        versions={"ftbnn_jax": ftbnn_jax.__version__, "jax": jax.__version__},
        tensors=tensors,
    )


def _check_finite(step: int, arrays: dict[str, Any]) -> None:
    if names := nn_variables.not_finite(arrays):
        raise UserError(
            f"step {step}: {names[0]} holds a number that is not finite; --checkpoint names another step"
        )


def _pack(params: Any, folded: Any, prefix: str, tensors: dict[str, np.ndarray]) -> None:
    """Walks the parameters: batch norms are replaced by `folded`, binary kernels by their bits."""
    for name, value in params.items():
        path = f"{prefix}{name}"
        if name == "channel_scale":
            continue  # Folded into batch norm.
        if not isinstance(value, dict):
            tensors[path] = np.asarray(value, np.float32)
        elif "multiplier" in folded.get(name, {}):
            for part, tensor in folded[name].items():
                tensors[f"{path}/{part}"] = tensor
        elif "kernel_0" in value:
            kernels = [value[f"kernel_{group}"] for group in range(len(value))]
            bits = [np.asarray(quantizers.is_positive(kernel)).reshape(-1) for kernel in kernels]
            tensors[f"{path}/bits"] = bitpack.pack_stream(np.concatenate(bits))
        else:
            _pack(value, folded.get(name, {}), f"{path}/", tensors)


def run(
    path: str,
    config: TrainConfig,
    variables: dict[str, Any],
    experiment: dict[str, Any],
    step: int,
    with_program: bool = False,
) -> int:
    """Writes the artifact of a checkpoint to `path`, prints its sizes, returns the exit status.

    `with_program` puts the runtime as a program beside it, with the suffix `.stablehlo`:
    `Runtime.to_stablehlo`. It is several times larger than the artifact, whose weights it holds in the
    form that the convolutions read.
    """
    packed = to_artifact(config, variables, experiment, step)
    size = artifact.save(path, packed)
    program_row = []
    if with_program:
        program_path = pathlib.Path(path).with_suffix(".stablehlo")
        program = runtime.Runtime(packed).to_stablehlo()
        try:
            program_path.write_bytes(program)
        except OSError as error:
            raise UserError(f"{program_path}: cannot be written: {error.strerror}") from error
        program_row = [("as a jax.export program", f"{program_path}, {len(program):,} bytes")]
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
            *program_row,
        ],
    )
    return 0
