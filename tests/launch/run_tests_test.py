"""launch/test.sh: a worker that dies fails the run at once, and never leaves it waiting."""

import os
import re
import shutil
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow

# The workers that DIES names do so at the place PLACE; the others take SECONDS for each test.
_CONFTEST = """
import os, signal, time, pytest

def reached(place):
    if os.environ.get("PYTEST_XDIST_WORKER") not in os.environ["DIES"].split():
        if place == "test":
            time.sleep(float(os.environ["SECONDS"]))
    elif place == os.environ["PLACE"]:
        os.kill(os.getpid(), signal.SIGKILL)
    elif f"{place}, by itself" == os.environ["PLACE"]:
        os._exit(0)

@pytest.fixture
def taking_time():
    reached("test")

def pytest_collection_finish(session):
    reached("collection")

@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    reached("end")
"""
_TESTS = """
import pytest

@pytest.mark.parametrize("number", range(3))
def test_it(number, taking_time):
    pass
"""


@pytest.mark.parametrize(
    ("place", "dies", "seconds", "words"),
    [
        ("test", "gw0", 60, r"worker 'gw0' crashed while running 'tests/._test\.py::test_it\[0\]'"),
        # Where the second one dies while it is handed a test, xdist itself ends in an error.
        ("test, by itself", "gw0 gw1", 0, "crashed while running 'tests/|INTERNALERROR"),
        ("collection", "gw1", 0, r"gw1\] node down|INTERNALERROR"),
        ("end", "gw0 gw1", 0, "6 passed"),
        ("", "", 0, "6 passed"),
    ],
)
def test_a_worker_that_dies_fails_the_run(shell, repository, place, dies, seconds, words):
    # So that python is the stub.
    (shell.root / "launch" / "environment.sh").write_text("repository=$PWD\n")
    assert shell.run("test.sh", "tests", "-n2") == (0, "", "")
    ((program, *arguments),) = shell.recorded()
    assert program == "python"
    shutil.copy(repository / "setup.cfg", shell.root)
    tests = shell.root / "tests"
    tests.mkdir()
    shutil.copy(repository / "tests" / "conftest.py", shell.root)
    (tests / "conftest.py").write_text(_CONFTEST)
    for name in "ab":
        (tests / f"{name}_test.py").write_text(_TESTS)
    # The workers that run this test are none of those.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=shell.root,
        env={**environment, "PLACE": place, "DIES": dies, "SECONDS": str(seconds)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    failed = (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERNAL_ERROR)
    assert result.returncode in (failed if dies else (0,)), result.stdout + result.stderr
    assert re.search(words, result.stdout)
    assert time.monotonic() - started < 50
