"""Asking a run to stop: SIGINT, SIGTERM, or a cloud machine's notice that it will be taken away."""

import contextlib
import http.client
import os
import pathlib
import re
import signal
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

from ftbnn_jax import command
from ftbnn_jax.errors import UserError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The run was asked to stop, and has saved its state."""


class StopRequest:
    """While entered, SIGINT and SIGTERM only make `reached` say so; a second SIGINT ends at once.

    One process answers at its next step. Several agree on a step that none of them has begun: JAX's
    preemption service, which catches SIGTERM itself, passes the request on.
    """

    # Over all runs of this process: JAX's service wants a number that grows.
    _asked = 0

    def __init__(self):
        self._requested = False
        self._expendable = ""
        self._previous = {}
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> "StopRequest":
        several = jax.process_count() > 1
        for number in _SIGNALS:
            if several and number == signal.SIGTERM:
                continue
            self._previous[number] = signal.signal(number, self._pass_on if several else self._on_signal)
        if not several:
            self._watch_for_signals_in_compilation()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def reached(self) -> bool:
        """Whether to stop here. Several processes must ask equally often; all get the same answer."""
        if jax.process_count() > 1 and not self._requested:
            StopRequest._asked += 1
            self._requested = multihost_utils.reached_preemption_sync_point(StopRequest._asked)
        return self._requested

    @contextlib.contextmanager
    def expendable(self, message: str) -> Iterator[None]:
        """Where there is nothing to save, a signal ends the process at once, with `command.UNFINISHED`.

        Python runs a signal's handler when the compiler has returned, which can take minutes.

        Args:
          message: printed before leaving.

        Raises:
          Interrupted: the signal came before.
        """
        if self._requested:
            raise Interrupted(message)
        self._expendable = message
        try:
            yield
        finally:
            self._expendable = ""

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested = True

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def _watch_for_signals_in_compilation(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        # Written to by the signal itself, whatever the main thread is busy with.
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        watcher = threading.Thread(target=self._leave_if_expendable, args=(reader,), daemon=True)
        watcher.start()
        # The watcher ends when its socket is closed on this side.
        self._cleanup.callback(reader.close)
        self._cleanup.callback(watcher.join)
        self._cleanup.callback(writer.close)
        self._cleanup.callback(signal.set_wakeup_fd, before)

    def _leave_if_expendable(self, reader: socket.socket) -> None:
        while number := reader.recv(1):
            if self._expendable and number[0] in _SIGNALS:
                print(self._expendable, file=sys.stderr, flush=True)
                os._exit(command.UNFINISHED)


class PreemptionNotice:
    """While entered on a Google Cloud machine, turns its notices into a SIGTERM to this process.

    Such a machine says through its metadata server, some 30 s beforehand, that it was preempted or that
    its host goes down for maintenance. `GCE_METADATA_HOST` names another server.

    Args:
      interval_s: seconds between two looks.
    """

    _HOST = "metadata.google.internal"
    _NOTICES = (("preempted", "TRUE"), ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"))
    _TIMEOUT_S = 3

    def __init__(self, interval_s: float = 5.0):
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._host = os.environ.get("GCE_METADATA_HOST", "")
        host = r"([\w.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?"
        if self._host and not re.fullmatch(host, self._host):
            raise UserError(f"GCE_METADATA_HOST={self._host}: must be HOST or HOST:PORT")
        if not self._host and _is_google_cloud():
            self._host = self._HOST
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PreemptionNotice":
        if self._host:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._host:
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._interval_s):
            for name, value in self._NOTICES:
                if self._read(name) == value:
                    print(f"the machine announces {name}: {value}", file=sys.stderr, flush=True)
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

    def _read(self, name: str) -> str:
        request = urllib.request.Request(
            f"http://{self._host}/computeMetadata/v1/instance/{name}",
            headers={"Metadata-Flavor": "Google"},
        )
        try:
            with urllib.request.urlopen(request, timeout=self._TIMEOUT_S) as response:
                return response.read().decode().strip()
        except (OSError, ValueError, http.client.HTTPException):
            return ""


def _is_google_cloud() -> bool:
    try:
        return "Google" in pathlib.Path("/sys/class/dmi/id/product_name").read_text()
    except OSError:
        return False
