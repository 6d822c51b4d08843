"""How every command reads its arguments and ends: one line for a mistake, one word for Ctrl-C."""

import argparse
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any, NoReturn

from ftbnn_jax import extras
from ftbnn_jax.errors import UserError, one_line, summary
from ftbnn_jax.nearest import nearest

# The console script; `ftbnn_jax.__main__` puts it before the command's name in place of `sys.argv[0]`.
PROGRAM = "ftbnn"

MISTAKE = 2
INTERRUPTED = 128 + signal.SIGINT
# EX_TEMPFAIL of sysexits.h: it stopped early with everything saved; the same command goes on from there.
UNFINISHED = 75


class ArgumentParser(argparse.ArgumentParser):
    """Options are `--name=value` or `--name value`, written out in full, and each is given once.

    Raises:
      UserError: where argparse would print its usage and exit.
    """

    def __init__(self, **arguments: Any):
        if is_console_script():
            arguments["prog"] = sys.argv[0]
        super().__init__(allow_abbrev=False, **arguments)

    def parse_args(self, args: Sequence[str], namespace: argparse.Namespace | None = None) -> Any:
        given = [name for a in _before_separator(args) if (name := a.partition("=")[0])[:2] == "--"]
        for name in dict.fromkeys(given):
            action = self._option_string_actions.get(name)
            if action is None:
                meant = nearest(name, self._option_string_actions)
                self.error(f"unrecognized arguments: {name}, the nearest is {meant}")
            if given.count(name) > 1 and not isinstance(action, argparse._AppendAction):
                raise UserError(f"{name}: given {given.count(name)} times; once would do")
        options, unexpected = self.parse_known_args(args, namespace)
        if unexpected:
            self.error(f"unrecognized arguments: {' '.join(unexpected)}, options are --name=value")
        return options

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            name = action.option_strings[-1] + "=" if action.option_strings else ""
            raise UserError(f"{name}{value}: must be one of {', '.join(map(str, action.choices))}")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; --help lists the arguments")


def is_console_script() -> bool:
    """Whether the command was started as `ftbnn NAME` rather than by its module's name."""
    return sys.argv[0].startswith(f"{PROGRAM} ")


def mode(text: str) -> str:
    """Returns how messages name a mode of `ftbnn_jax.main`, "export --format=c", as users call it."""
    return f"{PROGRAM} {text}" if is_console_script() else f"--mode={text}"


def _before_separator(arguments: Sequence[str]) -> Sequence[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def whole(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """Returns a `type` for argparse: a whole number in these bounds."""

    def read(text: str) -> int:
        if not (re.fullmatch("[0-9]{1,18}", text) and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number of at least {least} and at most {most}"
            )
        return int(text)

    return read


positive = whole(1)


def size(text: str) -> int:
    """Returns how many bytes "65536", "64K" or "1M" are, a `type` for argparse."""
    match = re.fullmatch("([1-9][0-9]{0,11})([KMG]?)B?", text.upper())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size in bytes: 65536, 64K or 1M, say")
    return int(match[1]) * 2 ** (10 * " KMG".index(match[2] or " "))


def truth(text: str) -> bool:
    """Returns what a switch is set to, a `type` for argparse."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def run(main: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None) -> int:
    """Runs a command's `main` on arguments, or the command line's, and returns the exit status.

    A user's mistake becomes one line and status 2, Ctrl-C one word and 130.
    """
    # Libraries log at length what they raise as well, and what is as it should be. They bring absl.
    with contextlib.suppress(ModuleNotFoundError):
        from absl import logging

        logging.use_absl_handler()
        logging.set_verbosity(logging.FATAL)
    outer = signal.getsignal(signal.SIGINT)
    if outer is _leave:
        signal.signal(signal.SIGINT, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        # What the terminal has no letters for is no reason to end; tests have streams of their own.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        if outer is _leave:
            # At once: where it came through code that was text, Python would end by the signal.
            _leave()
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone, and wants no more of it.
        return 128 + signal.SIGPIPE
    except Exception as error:
        message = _explanation(error)
        if message is None:
            raise
        print(message, file=sys.stderr)
        return MISTAKE
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            # What cannot be written has been told; Python would tell it again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if outer is _leave:
            signal.signal(signal.SIGINT, _leave)


def begin() -> None:
    """From the first import of a command: Ctrl-C is one word, and a wrong variable for JAX one line.

    `run` begins when everything is imported, which takes seconds, and ends before the interpreter does.
    """
    signal.signal(signal.SIGINT, _leave)
    sys.excepthook, sys.unraisablehook = _excepthook, _unraisablehook
    # Figures are written to files: whether there is a window system makes no difference.
    os.environ["MPLBACKEND"] = "agg"


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises a KeyboardInterrupt; ends the process where a module is being imported.

    Compiled modules import others in their own beginning, and end the process if these raise.
    """
    outer = frame
    while outer is not None:
        if outer.f_code.co_filename.startswith("<frozen importlib"):
            _leave()
        outer = outer.f_back
    signal.default_int_handler(number, frame)


def _leave(number: int = signal.SIGINT, frame: FrameType | None = None) -> NoReturn:
    # It may be in the middle of a write.
    with contextlib.suppress(OSError, RuntimeError):
        sys.stdout.flush()
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _unraisablehook(unraisable: Any) -> None:
    # Ctrl-C may meet Python in a callback of the garbage collector, out of which no exception comes.
    if unraisable.exc_type is KeyboardInterrupt:
        _leave()
    sys.__unraisablehook__(unraisable)


def _excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    message = _explanation(error)
    if message is None:
        sys.__excepthook__(kind, error, trace)
        return
    print(message, file=sys.stderr, flush=True)
    os._exit(MISTAKE)


def _explanation(error: BaseException) -> str | None:
    """Returns the line for an error that is the user's or the machine's; None for a bug."""
    if isinstance(error, UserError):
        return f"error: {one_line(str(error))}"
    if isinstance(error, ModuleNotFoundError) and (extra := extras.missing(error.name or "")):
        return f"error: {extra}"
    # XLA's, told by its name: a command that does not compute need not import JAX.
    exhausted = type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error)
    if isinstance(error, MemoryError) or exhausted:
        return (
            f"error: out of memory ({one_line(summary(error))}); a smaller batch, image or network "
            "would do"
        )
    if isinstance(error, OSError):
        place = "" if error.filename is None else f"{error.filename}: "
        return f"error: {one_line(place + (error.strerror or summary(error)))}"
    if isinstance(error, ValueError):
        # JAX reads its variables when it is imported, and names the variable or repeats its value.
        for name, value in os.environ.items():
            if name.startswith("JAX_") and (name in str(error) or f"flag {name.lower()}" in str(error)):
                return f"error: {name}={one_line(value)}: {one_line(summary(error))}"
    return None
