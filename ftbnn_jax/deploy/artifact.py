"""The packed file, one `.safetensors`: bits for binary kernels, int16 for the classifier, else float32.

`container` says how the file is laid out and protected, `layout` which tensors it holds. Reading runs no
code from the file.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
from typing import Any

import numpy as np

from ftbnn_jax.deploy import container, layout
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn.spec import ResNetSpec

SCHEMA_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A trained network without its latent weights.

    Attributes:
      spec: the network.
      num_classes: number of logits.
      channels: of the input images.
      image_size: height and width that the network sees.
      pixel_mean: subtracted from pixel values 0 to 255.
      pixel_std: divided by.
      class_names: one name a class of the training data; there may be more logits than names.
      step: training step of the checkpoint that was exported.
      versions: of the software that wrote the file.
      tensors: float32 arrays under the names of the training graph (`block1_1/act/negative_slope`),
        with batch norm folded (`bn/multiplier`, `bn/offset`), and for every binary convolution
        `conv/bits`, uint32: group after group, each kernel's signs in the order [row, column, input,
        output], packed without a gap by `ops.bitpack.pack_stream`. The classifier is as
        `layout.quantize_classifier` gives it.
    """

    spec: ResNetSpec
    num_classes: int
    channels: int
    image_size: int
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    class_names: tuple[str, ...]
    step: int
    versions: dict[str, str]
    tensors: dict[str, np.ndarray]


def save(path: str, artifact: Artifact) -> int:
    """Writes an artifact, replacing the file at once, and returns its size in bytes.

    Raises:
      UserError: the file cannot be written.
    """
    fields = dataclasses.asdict(dataclasses.replace(artifact, tensors={}))
    del fields["tensors"]
    metadata = {
        "schema_version": SCHEMA_VERSION,
        **fields,
        "sha256": {name: _digest(tensor) for name, tensor in sorted(artifact.tensors.items())},
    }
    temporary = pathlib.Path(f"{path}.tmp")
    try:
        temporary.write_bytes(container.to_bytes(artifact.tensors, metadata))
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    return os.path.getsize(path)


def load(path: str) -> Artifact:
    """Reads an artifact and checks it: its SHA-256, and that its tensors are those of its network.

    Raises:
      UserError: there is no such file, it is no artifact, of an unknown schema, or damaged.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; --mode=export writes it")
    tensors, metadata, intact = container.read(path)
    version = metadata.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema version {version!r}; this version of ftbnn_jax reads {SCHEMA_VERSION}"
        )
    digests = metadata.get("sha256")
    if not isinstance(digests, dict) or digests.keys() != tensors.keys():
        raise UserError(f"{path}: damaged: its tensors are not those that its metadata lists")
    for name, tensor in tensors.items():
        if _digest(tensor) != digests[name]:
            raise UserError(f"{path}: damaged: the SHA-256 of tensor {name!r} does not match")
    if not intact:
        raise UserError(f"{path}: damaged: the SHA-256 of its header does not match")
    try:
        artifact = _parse(metadata, tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: impossible metadata: {type(error).__name__}: {error}") from error
    _check_tensors(path, artifact)
    return artifact


def _parse(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> Artifact:
    # Every block has a tensor: a list of blocks that is longer must not be built.
    if sum(metadata["spec"]["blocks"]) > len(tensors):
        raise ValueError("more blocks than tensors")
    return Artifact(
        spec=ResNetSpec.from_dict(metadata["spec"]),
        num_classes=metadata["num_classes"],
        channels=metadata["channels"],
        image_size=metadata["image_size"],
        pixel_mean=tuple(metadata["pixel_mean"]),
        pixel_std=tuple(metadata["pixel_std"]),
        class_names=tuple(metadata["class_names"]),
        step=metadata["step"],
        versions=metadata["versions"],
        tensors=tensors,
    )


def _check_tensors(path: str, artifact: Artifact) -> None:
    """Raises a UserError naming the first tensor that is missing, unknown or of a wrong kind."""
    sizes = artifact.channels, artifact.num_classes, artifact.image_size
    expected = layout.tensors(artifact.spec, *sizes)
    for name in sorted(expected.keys() | artifact.tensors.keys()):
        tensor = artifact.tensors.get(name)
        found = "none" if tensor is None else f"{tensor.dtype.name} {list(tensor.shape)}"
        if name not in expected:
            raise UserError(f"{path}: tensor {name!r}: the network has no such tensor")
        dtype, shape = expected[name]
        if tensor is None or tensor.dtype != dtype or tensor.shape != shape:
            raise UserError(
                f"{path}: tensor {name!r}: expected {dtype.name} {list(shape)}, found {found}"
            )
    for plan in artifact.spec.plan():
        words = artifact.tensors[f"{plan.name}/conv/bits"]
        spare = 32 * len(words) - layout.kernel_bits(plan)
        if spare and int(words[-1]) >> (32 - spare):
            raise UserError(f"{path}: tensor '{plan.name}/conv/bits': its padding bits are not all 0")


def _digest(tensor: np.ndarray) -> str:
    """SHA-256 over dtype, shape and little-endian bytes."""
    head = f"{tensor.dtype.name}{list(tensor.shape)}".encode()
    data = np.ascontiguousarray(tensor.astype(tensor.dtype.newbyteorder("<"), copy=False))
    return hashlib.sha256(head + data.tobytes()).hexdigest()
