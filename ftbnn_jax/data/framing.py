"""How a record lies in a TFRecord file, and an event in one of TensorBoard's.

An 8-byte little-endian length, 4 bytes of its checksum, the payload, and 4 bytes of the payload's.
"""

import struct

import google_crc32c

HEADER_BYTES = 12
FOOTER_BYTES = 4


def framed(payload: bytes) -> bytes:
    """Returns a whole record."""
    length = struct.pack("<Q", len(payload))
    return length + checksum(length) + payload + checksum(payload)


def checksum(data: bytes) -> bytes:
    """Returns 4 bytes: CRC-32C, rotated by 15 bits, plus a constant ("masked")."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)
