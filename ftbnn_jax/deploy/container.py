"""The file around an artifact: safetensors, read with every size checked before memory is taken.

A safetensors file is 8 bytes of little-endian length, a JSON header of that length, and the tensors'
bytes. The header's `__metadata__` holds one string, since safetensors writes several in any order:
`ftbnn_jax`, a JSON object with all that is no tensor, and in it `file_sha256`, the SHA-256 of the whole
file with these 64 digits as zeros. So no bit of the file can change unnoticed.
"""

import hashlib
import json
import math
import os
from typing import Any, BinaryIO

import numpy as np
import safetensors.numpy

from ftbnn_jax import fields
from ftbnn_jax.errors import UserError

_METADATA = "ftbnn_jax"
_DIGEST = "file_sha256"
_NO_DIGEST = "0" * 64
# JSON in a string of JSON. No name can hold it: there its quotes would be escaped once more.
_DIGEST_FIELD = rf"\"{_DIGEST}\":\"".encode()
_LONGEST_HEADER = 16 * 2**20
_DTYPES = {
    **{"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BOOL": np.dtype(bool)},
    **{"I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1")},
    **{"U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1")},
}
_MOST_DIMENSIONS = 8


def to_bytes(tensors: dict[str, np.ndarray], metadata: dict[str, Any]) -> bytes:
    """Returns the file for tensors of the dtypes above and for metadata that JSON can hold."""
    described = json.dumps({**metadata, _DIGEST: _NO_DIGEST}, sort_keys=True, separators=(",", ":"))
    content = bytearray(safetensors.numpy.save(tensors, metadata={_METADATA: described}))
    start = _digest_position(content)
    content[start : start + 64] = hashlib.sha256(content).hexdigest().encode()
    return bytes(content)


def read(path: str) -> tuple[dict[str, np.ndarray], dict[str, Any], bool]:
    """Reads a file that `to_bytes` made.

    Args:
      path: of the file.

    Returns:
      Tensors, metadata, and whether the file's SHA-256 is right. If it is not, a caller must refuse the
      file; what has been read can serve to say what is wrong with it.

    Raises:
      UserError: it cannot be read, or it is no such file.
    """
    try:
        with open(path, "rb") as file:
            return _read(file, os.fstat(file.fileno()).st_size)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: {error}") from error


def _read(file: BinaryIO, size: int) -> tuple[dict[str, np.ndarray], dict[str, Any], bool]:
    head = file.read(8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > min(size - 8, _LONGEST_HEADER):
        raise ValueError("damaged, or not a safetensors file: its header does not fit into it")
    header = file.read(length)
    try:
        entries = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise ValueError("damaged, or not a safetensors file: its header is not JSON") from error
    metadata = _metadata(entries)
    offsets = _offsets(entries, size - 8 - length)

    digest = hashlib.sha256(head)
    start = _digest_position(header)
    digest.update(header[:start] + _NO_DIGEST.encode() + header[start + 64 :])
    tensors = {}
    for name, (dtype, shape) in offsets.items():
        content = file.read(dtype.itemsize * math.prod(shape))
        digest.update(content)
        tensors[name] = np.frombuffer(content, dtype).reshape(shape)
    return tensors, metadata, header[start : start + 64] == digest.hexdigest().encode()


def _digest_position(content: bytes | bytearray) -> int:
    start = content.find(_DIGEST_FIELD)
    if start < 0:
        raise ValueError("damaged: it holds no checksum of itself")
    return start + len(_DIGEST_FIELD)


def _metadata(entries: Any) -> dict[str, Any]:
    strings = entries.get("__metadata__") if isinstance(entries, dict) else None
    if not isinstance(strings, dict) or not isinstance(strings.get(_METADATA), str):
        raise ValueError(f"not written by ftbnn_jax: its metadata holds no {_METADATA!r}")
    try:
        metadata = json.loads(strings[_METADATA])
    except (ValueError, RecursionError) as error:
        raise ValueError("damaged: its metadata is not JSON") from error
    if not isinstance(metadata, dict):
        raise ValueError("damaged: its metadata is not a JSON object")
    metadata.pop(_DIGEST, None)
    return metadata


def _offsets(entries: dict[str, Any], size: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Returns dtype and shape of each tensor in the order of their bytes, which must leave no gap."""
    found = {}
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        shown = fields.shown(name)
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"damaged: tensor {shown} is not described as safetensors does it")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise ValueError(
                f"tensor {shown}: dtype {fields.shown(dtype)}; one of {', '.join(_DTYPES)} expected"
            )
        if (
            not _are_sizes(shape)
            or not _are_sizes(offsets)
            or len(offsets) != 2
            or len(shape) > _MOST_DIMENSIONS
        ):
            raise ValueError(f"damaged: tensor {shown} has no possible shape and offsets")
        if _DTYPES[dtype].itemsize * math.prod(shape) != offsets[1] - offsets[0]:
            raise ValueError(f"damaged: tensor {shown}: its shape and its bytes do not match")
        found[name] = (*offsets, _DTYPES[dtype], tuple(shape))
    end = 0
    ordered = {}
    for name, (begin, after, dtype, shape) in sorted(found.items(), key=lambda item: item[1][0]):
        if begin != end:
            shown = fields.shown(name)
            raise ValueError(f"damaged: tensor {shown} begins at {begin}, expected {end}")
        end = after
        ordered[name] = (dtype, shape)
    if end != size:
        raise ValueError(f"damaged: it holds {size:,} bytes of tensors, its header describes {end:,}")
    return ordered


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**48 for v in values)
