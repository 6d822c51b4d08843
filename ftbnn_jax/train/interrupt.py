"""Turns SIGINT and SIGTERM into a request that the training loop answers between steps."""

import signal
from types import FrameType

# EX_TEMPFAIL of sysexits.h: the run stopped early with everything saved; start it again to go on.
EXIT_STATUS = 75


class Interrupted(Exception):
    """The run was asked to stop, and has saved its state."""


class StopRequest:
    """While entered, the first SIGINT or SIGTERM only sets `requested`; a second SIGINT ends at once."""

    def __init__(self):
        self.requested = False
        self._previous = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
