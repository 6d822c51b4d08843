"""The packed file, one `.safetensors`: a graph, bits for binary kernels, and all other tensors.

`container` says how the file is laid out and protected, `schema` what its metadata may be, `graph.ir`
what a graph is. Reading runs no code from the file. The same network gives the same bytes.
"""

import dataclasses
import functools
import hashlib
import json
import os
from typing import Any

import numpy as np

from ftbnn_jax import command
from ftbnn_jax import fields as field_checks
from ftbnn_jax.deploy import container, schema
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import ir
from ftbnn_jax.host import paths
from ftbnn_jax.nn.spec import Architecture
from ftbnn_jax.ops.packed import bits as bitpack
from ftbnn_jax.ops.preprocessing import Preprocessing

SCHEMA_VERSION = 5

# What is no plain metadata: it is told by the graph and by the file around it, or is not written.
_NOT_METADATA = ("graph", "report")


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A network without its latent weights.

    Attributes:
      graph: the network. Kernels of binary products are words, uint32: group after group, each kernel's
        signs in the order [row, column, input, output], packed without a gap.
      preprocessing: how an image becomes the network's input; None where that is left to the caller.
      class_names: one name a class of the training data; there may be more results than names.
      step: training step of the checkpoint that was exported.
      versions: of the software that wrote the file.
      spec: what the network is, where one describes it; None for any other network.
      report: what became of each product of the network; not part of the file.
    """

    graph: ir.Graph
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()
    step: int = 0
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    spec: Architecture | None = None
    report: Any = dataclasses.field(default=None, compare=False)

    @functools.cached_property
    def num_classes(self) -> int:
        """Numbers that the network gives for an image, along the last axis."""
        return self.graph.shapes()[self.graph.output].shape[-1]

    @property
    def image_size(self) -> int:
        """Height of what the network sees."""
        return self.graph.shape[1]

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.graph.shape[-1]

    def save(self, path: str) -> int:
        """Writes the file, replacing it at once, and returns its size in bytes.

        Raises:
          UserError: the file cannot be written, or could not be read again: see `schema`.
        """
        path = paths.expand(os.fspath(path))
        tensors = dict(self.graph.tensors)
        plain = dataclasses.replace(self, graph=None, report=None)
        metadata = {
            field.name: schema.plain(getattr(plain, field.name))
            for field in dataclasses.fields(self)
            if field.name not in _NOT_METADATA
        }
        metadata["graph"] = self.graph.to_json()
        try:
            _parse(json.loads(json.dumps(metadata)), tensors)
        except UserError as error:
            raise UserError(f"{path}: not written, it could not be read again: {error}") from error
        digests = {name: digest(tensor) for name, tensor in sorted(tensors.items())}
        metadata |= {
            "schema_version": SCHEMA_VERSION,
            "sha256": digests,
            "network_sha256": network_digest(metadata, digests),
        }
        try:
            paths.write_whole(path, container.to_bytes(tensors, metadata))
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from error
        return os.path.getsize(path)


def load(path: str) -> Artifact:
    """Reads an artifact and checks it: its SHA-256, its graph, and that its tensors are those it reads.

    Raises:
      UserError: there is no such file, it is no artifact, of an unknown schema, or damaged.
    """
    path = paths.expand(os.fspath(path))
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; {command.mode('export')} writes it")
    tensors, metadata, intact = container.read(path)
    version = metadata.pop("schema_version", None)
    if type(version) is not int or version != SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema version {field_checks.shown(version)}; this version of ftbnn_jax reads "
            f"{SCHEMA_VERSION}; {command.mode('export')} writes the file anew from its checkpoint"
        )
    digests, whole = metadata.pop("sha256", None), metadata.pop("network_sha256", None)
    if not isinstance(digests, dict) or digests.keys() != tensors.keys():
        raise UserError(f"{path}: damaged: its tensors are not those that its metadata lists")
    for name, tensor in tensors.items():
        if digest(tensor) != digests[name]:
            shown = field_checks.shown(name)
            raise UserError(f"{path}: damaged: the SHA-256 of tensor {shown} does not match")
    if not intact:
        raise UserError(f"{path}: damaged: the SHA-256 of its header does not match")
    try:
        artifact = _parse(metadata, tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if whole != network_digest(metadata, digests):
        raise UserError(f"{path}: damaged: its metadata is not what was exported")
    return artifact


def network_digest(metadata: dict[str, Any], digests: dict[str, str]) -> str:
    """SHA-256 of a network: of all that is no tensor, and of the tensors' own digests."""
    text = json.dumps([metadata, digests], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _parse(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> Artifact:
    """Builds an artifact from metadata of the right types and ranges that agree with each other."""
    metadata = dict(metadata)
    if "graph" not in metadata:
        raise UserError("metadata graph: is missing")
    graph = metadata.pop("graph")
    fields = schema.read(Artifact, metadata, without=_NOT_METADATA)
    graph = ir.Graph.from_json(graph, tensors)
    artifact = Artifact(graph=graph, **fields)
    rule = artifact.preprocessing
    if rule is not None:
        for field in ("mean", "std"):
            count = len(getattr(rule, field))
            if count not in (1, rule.channels):
                raise UserError(
                    f"metadata preprocessing.{field}: {count} numbers for {rule.channels} channels"
                )
        if not all(std > 0 for std in rule.std):
            raise UserError(
                f"metadata preprocessing.std: positive numbers expected, found {list(rule.std)}"
            )
        if graph.shape[1:] != rule.shape or graph.dtype != "uint8":
            raise UserError(
                f"metadata preprocessing: gives uint8 {list(rule.shape)}, and the network takes "
                f"{graph.dtype} {list(graph.shape[1:])}"
            )
    if len(artifact.class_names) > artifact.num_classes:
        raise UserError(
            f"metadata class_names: {len(artifact.class_names):,} names for {artifact.num_classes:,} "
            "classes"
        )
    _check_tensors(graph)
    return artifact


def _check_tensors(graph: ir.Graph) -> None:
    """Raises a UserError naming the first tensor that is not read, or holds what no tensor can."""
    read = {name for node in graph.nodes for name in node.inputs}
    words = {node.inputs[1]: ir.kernel_bits(node.attributes) for node in graph.binary_products()}
    for name, tensor in sorted(graph.tensors.items()):
        wrong = ""
        if name not in read:
            wrong = "the network has no such tensor"
        # Single numbers are the program's own, the -inf that a maximum begins with among them.
        elif tensor.ndim and tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            wrong = "holds a number that is not finite"
        elif tensor.dtype == bool and tensor.size and tensor.view(np.uint8).max() > 1:
            wrong = "holds what is neither True nor False"
        elif name in words and (spare := 32 * len(tensor) - words[name]):
            padded = int(tensor[-1]) >> (bitpack.WORD_BITS - spare)
            wrong = "its padding bits are not all 0" if padded else ""
        if wrong:
            raise UserError(f"tensor {field_checks.shown(name)}: {wrong}")


def digest(tensor: np.ndarray) -> str:
    """Returns the SHA-256 of a tensor: over dtype, shape and little-endian bytes."""
    head = f"{tensor.dtype.name}{list(tensor.shape)}".encode()
    data = np.ascontiguousarray(tensor.astype(tensor.dtype.newbyteorder("<"), copy=False))
    return hashlib.sha256(head + data.tobytes()).hexdigest()
