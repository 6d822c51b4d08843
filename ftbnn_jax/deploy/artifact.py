"""The packed file: one `.safetensors` with bits for binary kernels and float32 for the rest.

Its metadata holds one JSON object under the key `ftbnn_jax`: see `Artifact`. Reading runs no code from
the file. This module needs numpy and safetensors alone.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from ftbnn_jax.errors import UserError
from ftbnn_jax.nn.spec import ResNetSpec

SCHEMA_VERSION = 1
_METADATA_KEY = "ftbnn_jax"


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
        output], packed without a gap by `ops.bitpack.pack_stream`.
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
        safetensors.numpy.save_file(
            artifact.tensors, temporary, metadata={_METADATA_KEY: json.dumps(metadata, sort_keys=True)}
        )
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written: {error}") from error
    return os.path.getsize(path)


def load(path: str) -> Artifact:
    """Reads an artifact and checks the SHA-256 of every tensor.

    Raises:
      UserError: there is no such file, it is no artifact, of an unknown schema, or damaged.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; --mode=export writes it")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = (file.metadata() or {}).get(_METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {error}") from error
    if metadata is None:
        raise UserError(f"{path}: not written by ftbnn_jax: no metadata {_METADATA_KEY!r}")
    try:
        return _parse(path, json.loads(metadata), tensors)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: damaged metadata: {type(error).__name__}: {error}") from error


def _parse(path: str, metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> Artifact:
    version = metadata["schema_version"]
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema version {version}; this version of ftbnn_jax reads {SCHEMA_VERSION}"
        )
    digests = metadata["sha256"]
    if digests.keys() != tensors.keys():
        odd = sorted(digests.keys() ^ tensors.keys())
        raise UserError(f"{path}: damaged: tensor {odd[0]!r} is missing or not listed")
    for name, tensor in tensors.items():
        if _digest(tensor) != digests[name]:
            raise UserError(f"{path}: damaged: the SHA-256 of tensor {name!r} does not match")
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


def _digest(tensor: np.ndarray) -> str:
    """SHA-256 over dtype, shape and little-endian bytes."""
    head = f"{tensor.dtype.name}{list(tensor.shape)}".encode()
    data = np.ascontiguousarray(tensor.astype(tensor.dtype.newbyteorder("<"), copy=False))
    return hashlib.sha256(head + data.tobytes()).hexdigest()
