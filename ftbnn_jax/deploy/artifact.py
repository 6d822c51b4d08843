"""The packed file, one `.safetensors`: bits for binary kernels, int16 for the classifier, else float32.

`container` says how the file is laid out and protected, `schema` what its metadata may be, `layout`
which tensors it holds. Reading runs no code from the file. The same checkpoint gives the same bytes.
"""

import dataclasses
import hashlib
import json
import os
from typing import Any

import numpy as np

from ftbnn_jax import fields as field_checks
from ftbnn_jax.deploy import container, layout, schema
from ftbnn_jax.errors import UserError
from ftbnn_jax.host import paths
from ftbnn_jax.nn.spec import ResNetSpec
from ftbnn_jax.ops.preprocessing import Preprocessing

SCHEMA_VERSION = 3


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A trained network without its latent weights.

    Attributes:
      spec: the network.
      num_classes: number of logits.
      preprocessing: how an image becomes the network's input.
      class_names: one name a class of the training data; there may be more logits than names.
      step: training step of the checkpoint that was exported.
      versions: of the software that wrote the file.
      tensors: float32 arrays under the names of the training graph (`block1_1/act/negative_slope`),
        with batch norm folded (`bn/multiplier`, `bn/offset`), and for every binary convolution
        `conv/bits`, uint32: group after group, each kernel's signs in the order [row, column, input,
        output], packed without a gap by `ops.packed.bits.pack_stream`. The classifier is as
        `layout.quantize_classifier` gives it.
    """

    spec: ResNetSpec
    num_classes: int
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    step: int
    versions: dict[str, str]
    tensors: dict[str, np.ndarray]

    @property
    def image_size(self) -> int:
        """Height and width that the network sees."""
        return self.preprocessing.size

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.preprocessing.channels


def save(path: str, artifact: Artifact) -> int:
    """Writes an artifact, replacing the file at once, and returns its size in bytes.

    Raises:
      UserError: the file cannot be written, or could not be read again: see `schema`.
    """
    fields = dataclasses.asdict(dataclasses.replace(artifact, tensors={}))
    del fields["tensors"]
    try:
        _parse(json.loads(json.dumps(fields)), artifact.tensors)
    except UserError as error:
        raise UserError(f"{path}: not written, it could not be read again: {error}") from error
    digests = {name: _digest(tensor) for name, tensor in sorted(artifact.tensors.items())}
    metadata = {
        **fields,
        "schema_version": SCHEMA_VERSION,
        "sha256": digests,
        "network_sha256": network_digest(fields, digests),
    }
    path = paths.expand(os.fspath(path))
    try:
        paths.write_whole(path, container.to_bytes(artifact.tensors, metadata))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    return os.path.getsize(path)


def load(path: str) -> Artifact:
    """Reads an artifact and checks it: its SHA-256, and that its tensors are those of its network.

    Raises:
      UserError: there is no such file, it is no artifact, of an unknown schema, or damaged.
    """
    path = paths.expand(os.fspath(path))
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; --mode=export writes it")
    tensors, metadata, intact = container.read(path)
    version = metadata.pop("schema_version", None)
    if type(version) is not int or version != SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema version {field_checks.shown(version)}; this version of ftbnn_jax reads "
            f"{SCHEMA_VERSION}; --mode=export writes the file anew from its checkpoint"
        )
    digests, whole = metadata.pop("sha256", None), metadata.pop("network_sha256", None)
    if not isinstance(digests, dict) or digests.keys() != tensors.keys():
        raise UserError(f"{path}: damaged: its tensors are not those that its metadata lists")
    for name, tensor in tensors.items():
        if _digest(tensor) != digests[name]:
            raise UserError(f"{path}: damaged: the SHA-256 of tensor {name!r} does not match")
    if not intact:
        raise UserError(f"{path}: damaged: the SHA-256 of its header does not match")
    try:
        artifact = _parse(metadata, tensors)
        _check_tensors(artifact)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if whole != network_digest(metadata, digests):
        raise UserError(f"{path}: damaged: its metadata is not what was exported")
    return artifact


def network_digest(fields: dict[str, Any], digests: dict[str, str]) -> str:
    """SHA-256 of a network: of all that is no tensor, `fields`, and of the tensors' own digests."""
    text = json.dumps([fields, digests], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _parse(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> Artifact:
    """Builds an artifact from metadata of the right types and ranges that agree with each other."""
    artifact = Artifact(**schema.read(Artifact, metadata, without=("tensors",)), tensors=tensors)
    rule = artifact.preprocessing
    for field in ("mean", "std"):
        count = len(getattr(rule, field))
        if count not in (1, rule.channels):
            raise UserError(
                f"metadata preprocessing.{field}: {count} numbers for {rule.channels} channels"
            )
    if not all(std > 0 for std in rule.std):
        raise UserError(f"metadata preprocessing.std: positive numbers expected, found {list(rule.std)}")
    if len(artifact.class_names) > artifact.num_classes:
        raise UserError(
            f"metadata class_names: {len(artifact.class_names):,} names for {artifact.num_classes:,} "
            "classes"
        )
    # Every block has a tensor: what follows from a list of blocks that is longer must not be built.
    if sum(artifact.spec.blocks) > len(tensors):
        raise UserError(f"metadata spec.blocks: more blocks than the {len(tensors)} tensors")
    return artifact


def _check_tensors(artifact: Artifact) -> None:
    """Raises a UserError naming the first tensor that is not the network's, or not finite."""
    sizes = artifact.channels, artifact.num_classes, artifact.image_size
    expected = layout.tensors(artifact.spec, *sizes)
    for name in sorted(expected.keys() | artifact.tensors.keys()):
        tensor = artifact.tensors.get(name)
        found = "none" if tensor is None else f"{tensor.dtype.name} {list(tensor.shape)}"
        if name not in expected:
            raise UserError(f"tensor {name!r}: the network has no such tensor")
        dtype, shape = expected[name]
        if tensor is None or tensor.dtype != dtype or tensor.shape != shape:
            raise UserError(f"tensor {name!r}: expected {dtype.name} {list(shape)}, found {found}")
        if not np.isfinite(tensor).all():
            raise UserError(f"tensor {name!r}: holds a number that is not finite")
    for plan in artifact.spec.plan():
        words = artifact.tensors[f"{plan.name}/conv/bits"]
        spare = 32 * len(words) - layout.kernel_bits(plan)
        if spare and int(words[-1]) >> (32 - spare):
            raise UserError(f"tensor '{plan.name}/conv/bits': its padding bits are not all 0")


def _digest(tensor: np.ndarray) -> str:
    """SHA-256 over dtype, shape and little-endian bytes."""
    head = f"{tensor.dtype.name}{list(tensor.shape)}".encode()
    data = np.ascontiguousarray(tensor.astype(tensor.dtype.newbyteorder("<"), copy=False))
    return hashlib.sha256(head + data.tobytes()).hexdigest()
