"""What stands in a file of TensorBoard's events."""

from tensorboardX.proto import event_pb2


def events(content: bytes) -> list[event_pb2.Event]:
    """The events of a file of records: length, 4 bytes, payload, 4 bytes."""
    found = []
    while content:
        length = int.from_bytes(content[:8], "little")
        found.append(event_pb2.Event.FromString(content[12 : 12 + length]))
        content = content[12 + length + 4 :]
    return found
