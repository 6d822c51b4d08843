"""Requests to stop that reach a run from outside."""

import contextlib
import http.server
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from ftbnn_jax.command import UNFINISHED
from ftbnn_jax.errors import UserError
from ftbnn_jax.host import interrupt


def test_a_signal_during_compilation_ends_the_run_at_once(tmp_path, repository):
    """Compiling this net takes far longer than the test waits; Python's handlers would wait for it."""
    command = [
        sys.executable,
        *("-m", "ftbnn_jax.main", f"--config={repository / 'configs' / 'derived18_g1.py'}"),
        *(f"--workdir={tmp_path}", "--config.dataset=fake", "--config.batch_size=8"),
        "--config.num_steps=1",
    ]
    one_device = {"JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": ""}
    environment = {**os.environ, **one_device, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        # Written just before the steps are compiled.
        wait_for(tmp_path / "metrics.jsonl", process)
        time.sleep(1)
        sent = time.monotonic()
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == UNFINISHED
    assert time.monotonic() - sent < 5
    assert errors == "stopped before a step was made; nothing is lost\n"


def wait_for(path: pathlib.Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, process.stderr.read()


def test_a_signal_before_what_is_expendable_is_not_forgotten():
    with interrupt.StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        told = pytest.raises(interrupt.Interrupted, match="nothing is lost")
        with told, stop.expendable("nothing is lost"):
            pytest.fail("entered")
        assert stop.reached()


def test_a_second_interrupt_ends_at_once():
    with interrupt.StopRequest() as stop:
        assert not stop.reached()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reached()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interrupt.StopRequest():
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1


@contextlib.contextmanager
def metadata_server(answers: dict[str, str], monkeypatch):
    """Answers as Google's does: only who says what it wants, 404 for what it does not know."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.removeprefix("/computeMetadata/v1/instance/")
            known = name in answers and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(answers.get(name, "").encode())

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
        yield
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("name", "calm", "alarm"),
    [
        ("preempted", "FALSE", "TRUE"),
        ("maintenance-event", "NONE", "TERMINATE_ON_HOST_MAINTENANCE"),
    ],
)
def test_a_cloud_machines_notice_is_a_request_to_stop(monkeypatch, capsys, name, calm, alarm):
    answers = {name: calm}
    with contextlib.ExitStack() as stack:
        stack.enter_context(metadata_server(answers, monkeypatch))
        stop = stack.enter_context(interrupt.StopRequest())
        stack.enter_context(interrupt.PreemptionNotice(interval_s=0.02))
        time.sleep(0.2)
        assert not stop.reached()
        answers[name] = alarm
        deadline = time.monotonic() + 10
        while not stop.reached() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert stop.reached()
    assert f"{name}: {alarm}" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["a b", "[", "http://a", "a:b", "a:999999", "a\n"])
def test_a_server_that_cannot_be_asked_is_named(monkeypatch, host):
    monkeypatch.setenv("GCE_METADATA_HOST", host)
    with pytest.raises(UserError, match=r"^GCE_METADATA_HOST=(?s:.*)must be HOST or HOST:PORT"):
        interrupt.PreemptionNotice()


def test_nothing_is_asked_outside_the_cloud(monkeypatch):
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    monkeypatch.setattr(interrupt, "_is_google_cloud", lambda: False)
    with interrupt.PreemptionNotice(interval_s=0.0) as notice:
        assert not notice._thread.is_alive()
