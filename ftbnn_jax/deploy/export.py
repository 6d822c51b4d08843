"""From a network to a packed artifact: any function of variables and images, or a checkpoint's."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import ftbnn_jax
from ftbnn_jax import networks
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.deploy import artifact, products, runtime
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import ir, lower, passes, trace
from ftbnn_jax.host import machine
from ftbnn_jax.nn import variables as nn_variables
from ftbnn_jax.nn.spec import ResNetSpec
from ftbnn_jax.ops import image
from ftbnn_jax.report import print_json, print_table


@machine.in_32_bits
def pack(
    function: Callable[[Any, Any], Any],
    variables: Any,
    example: Any,
    classifier_bits: int = 16,
    scaled_kernels: bool = False,
    **metadata: Any,
) -> artifact.Artifact:
    """Packs any network.

    Args:
      function: of `(variables, images)`, in any library on JAX; returns one array, the images' first.
      variables: any tree of arrays.
      example: images, or a `jax.ShapeDtypeStruct`, with the batch as the first axis; its size does not
        matter.
      classifier_bits: 16 or 32: of the weights of a matrix product that gives the network's result.
      scaled_kernels: whether kernels of -s and +s, one s an output channel, are packed as well: as a
        binary product and a multiplication, which rounds elsewhere than the network's own.
      **metadata: further fields of the artifact.

    Returns:
      The artifact; its `report` says what became of each product of the network.

    Raises:
      UserError: the network holds an operation that cannot be packed, or a number that is not finite.
    """
    if classifier_bits not in (16, 32):
        raise UserError(f"classifier_bits={classifier_bits!r}: must be 16 or 32")
    traced = trace.trace(function, variables, example)
    # Before signs are taken: that of a NaN would be a bit like any other.
    _check_finite(variables)
    lowered = lower.lower(traced)
    # A program's own single constants may be: the maximum of a softmax begins with -inf.
    _check_finite({name: tensor for name, tensor in lowered.graph.tensors.items() if tensor.ndim})
    packed = passes.pack(lowered, classifier_bits, scaled_kernels)
    versions = {"ftbnn_jax": ftbnn_jax.__version__, "jax": jax.__version__}
    metadata["versions"] = versions | metadata.get("versions", {})
    return artifact.Artifact(packed.graph, report=products.Report.of(packed), **metadata)


def _check_finite(arrays: Any) -> None:
    if names := nn_variables.not_finite(arrays):
        raise UserError(f"{names[0]} holds a number that is not finite")


def network(config: TrainConfig, compute_dtype: str = "float32") -> Callable[[Any, Any], Any]:
    """Returns what a config's network computes of variables and uint8 pixels `[N, H, W, C]`."""
    made = networks.make(dataclasses.replace(config, compute_dtype=compute_dtype, remat="none"))

    def function(variables, pixels):
        return made(variables, image.standardize(pixels, config.mean, config.pixel_std))

    return function


def to_artifact(
    config: TrainConfig, variables: dict[str, Any], experiment: dict[str, Any], step: int
) -> artifact.Artifact:
    """Packs the network of a config.

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
    if not config.network:
        _check_binary(config.model)
    expected = described(config, experiment["channels"])
    try:
        packed = pack(
            network(config),
            variables,
            jax.ShapeDtypeStruct((1, *expected.preprocessing.shape), np.uint8),
            preprocessing=expected.preprocessing,
            class_names=tuple(experiment["class_names"]),
            step=step,
            spec=expected.spec,
            versions=expected.versions,
        )
    except UserError as error:
        raise UserError(f"step {step}: {error}; --checkpoint names another step") from error
    if not packed.report.packed:
        reasons = [f"{line.layer or line.source}: {line.reason}" for line in packed.report.not_packed]
        raise UserError(f"nothing to pack; {'; '.join(reasons[:3]) or 'it has no products'}")
    return packed


def drawn(config: TrainConfig, channels: int) -> artifact.Artifact:
    """Packs the network of a config that is not trained, for what does not depend on its weights.

    Args:
      config: an experiment.
      channels: of the images.

    Raises:
      UserError: as `to_artifact` does.
    """
    rng = np.random.default_rng(0)

    def draw(leaf):
        # Variances must be positive; all else could be anything.
        values = (
            rng.normal(size=leaf.shape) if len(leaf.shape) > 1 else rng.uniform(0.5, 1.5, leaf.shape)
        )
        return values.astype(leaf.dtype)

    variables = jax.tree.map(draw, networks.shapes(config, channels))
    return to_artifact(config, variables, {"channels": channels, "class_names": ()}, 0)


def described(config: TrainConfig, channels: int) -> runtime.Description:
    """Returns what an artifact says of the network of a config, for images of so many channels."""
    return runtime.Description(
        spec=None if config.network else config.model.architecture,
        num_classes=config.num_classes,
        versions=networks.identity(config, channels),
        preprocessing=config.preprocessing(channels),
    )


def _check_binary(spec: ResNetSpec) -> None:
    if not spec.plan():
        raise UserError(
            f"config.model.block={spec.block!r}: nothing to pack; only 'binary' blocks can be"
        )
    for field in ("binary_activations", "binary_weights"):
        if not getattr(spec, field):
            raise UserError(
                f"config.model.{field}=False: nothing to pack; the last step of multi-step training has "
                "both binary"
            )


def run(
    path: str,
    config: TrainConfig,
    variables: dict[str, Any],
    experiment: dict[str, Any],
    step: int,
    with_program: bool = False,
    as_json: bool = False,
) -> int:
    """Writes the artifact of a checkpoint to `path`, prints its products and sizes, returns the status.

    Args:
      path: of the artifact.
      config: of the run.
      variables: as for `to_artifact`, and so are the next two.
      experiment: likewise.
      step: likewise.
      with_program: puts the runtime as a program beside the file, with the suffix `.stablehlo`:
        `Runtime.to_stablehlo`. It is several times larger than the artifact, whose weights it holds in
        the form that the convolutions read.
      as_json: prints a line of JSON instead of the tables.

    Raises:
      UserError: the network cannot be packed, or a file cannot be written.
    """
    packed = to_artifact(config, variables, experiment, step)
    size = packed.save(path)
    program_row, program_file = [], {}
    if with_program:
        program_path = pathlib.Path(path).with_suffix(".stablehlo")
        program = runtime.Runtime(packed).to_stablehlo()
        try:
            program_path.write_bytes(program)
        except OSError as error:
            raise UserError(f"{program_path}: cannot be written: {error.strerror}") from error
        program_file = {"stablehlo": str(program_path), "stablehlo_bytes": len(program)}
        program_row = [("as a jax.export program", f"{program_path}, {len(program):,} bytes")]
    words = {node.inputs[1] for node in packed.graph.binary_products()}
    kernels = sum(packed.graph.tensors[name].nbytes for name in words)
    bits = sum(ir.kernel_bits(node.attributes) for node in packed.graph.binary_products())
    if as_json:
        sizes = {"bytes": size, "float32_kernel_bytes": 4 * bits, "packed_kernel_bytes": kernels}
        report = packed.report.to_dict()
        print_json({"step": step, "file": path, **sizes, **program_file, "products": report})
        return 0
    packed.report.print()
    print_table(
        "Exported",
        [
            ("step", f"{step:,}"),
            ("binary kernels, float32", f"{4 * bits:,} bytes"),
            ("binary kernels, packed", f"{kernels:,} bytes, {4 * bits / kernels:.1f} times smaller"),
            ("file", path),
            ("file size", f"{size:,} bytes"),
            *program_row,
        ],
    )
    return 0
