"""What SIGINT, SIGTERM and SIGHUP do to a command: the first ends it in good order, the second at once."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any

import typer

from deployments.errors import WorkerError
from serve_app.cli.output import Output
from serve_app.client.errors import FAILED, WRONG_USAGE
from serve_app.errors import ConfigError, StartupError
from serve_app.local.processes.stop_signals import STOP_SIGNALS, die, exit_code, signal_name

Handler = Callable[[int, FrameType | None], None]


class Interrupted(BaseException):
    """A signal came while a command did what may end anywhere."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.exit_code = exit_code(number)


def run_interruptible(work: Coroutine[Any, Any, int]) -> int:
    """Run the work of a command; returns its exit code, or that of the signal by which it was cancelled."""
    received: list[int] = []
    cancel: list[Callable[[], object]] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        if received:
            die(number)
        received.append(number)
        for call in cancel:
            call()

    async def cancellable() -> int:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        cancel.append(lambda: loop.call_soon_threadsafe(task.cancel))
        if received:
            task.cancel()
        return await work

    with _handled(handle):
        try:
            code = asyncio.run(cancellable())
        except asyncio.CancelledError:
            if not received:
                raise
            say_interrupted(received[0])
            return exit_code(received[0])
    return exit_code(received[0]) if received and code else code


@contextlib.contextmanager
def raising_interrupted() -> Iterator[None]:
    """The first signal raises Interrupted wherever the work is, the second ends the process."""
    received: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        if received:
            die(number)
        received.append(number)
        raise Interrupted(number)

    with _handled(handle):
        yield


@contextlib.contextmanager
def ending_in_one_line(output: Output) -> Iterator[None]:
    """A signal, or an error that is foreseen, ends the command with one line and its exit code."""
    try:
        with raising_interrupted():
            yield
    except Interrupted as interrupted:
        say_interrupted(interrupted.number)
        raise typer.Exit(interrupted.exit_code) from None
    except ConfigError as error:
        output.fail(str(error), WRONG_USAGE)
    except (StartupError, WorkerError) as error:
        output.fail(str(error), FAILED)


def say_interrupted(number: int) -> None:
    """The terminal may be gone by then."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"mochi-serve: interrupted by {signal_name(number)}\n")
        sys.stderr.flush()


@contextlib.contextmanager
def _handled(handler: Handler) -> Iterator[None]:
    """Who ignores a signal, as `nohup` does, goes on ignoring it."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, old in before.items():
        if old is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def tolerate_any_text() -> None:
    """What a terminal or file cannot show is written in ASCII, and raises nothing."""
    for stream in (sys.stdout, sys.stderr):
        is_utf8 = stream.encoding.lower().replace("-", "") == "utf8"
        if hasattr(stream, "reconfigure") and not (is_utf8 and stream.errors == "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")
