"""How commands show the progress of videos on stderr: bars on a terminal, else lines."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn
from rich.table import Column

from serve_app.cli.output import Output, printable

# Without a terminal, a line for each quarter of the way is enough.
_LINE_EVERY_PERCENT = 25
_NAME_COLUMNS = 38
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


class VideoProgress(Protocol):
    """The progress of one video."""

    def show(self, view: Mapping[str, Any]) -> None:
        """Show the state in a Video or in an event of its stream."""

    def show_download(self, done: int, total: int | None) -> None:
        """Show how many bytes of its file were downloaded. total: None if nobody knows."""

    def end(self) -> None:
        """Show no more of this video; its result is printed elsewhere."""


class ProgressDisplay(AbstractContextManager["ProgressDisplay"], Protocol):
    """The progress of one video or of a batch."""

    def add_video(self, name: str) -> VideoProgress: ...

    def show_notice(self, text: str) -> None:
        """Show what all videos wait for; an empty text takes it back."""

    def count_result(self, text: str, failed: bool) -> None:
        """Count one more video of a batch that has ended, and show what became of it."""


def progress_display(output: Output, now: Callable[[], float], total: int | None = None) -> ProgressDisplay:
    """A display, to be entered.

    Args:
        now: the server's clock, Unix seconds.
        total: how many videos a batch has; None where there is no batch.
    """
    if output.err.is_terminal:
        return ProgressBars(output.err, now, total)
    return ProgressLines(output.message, now, total)


def progress_text(view: Mapping[str, Any], now: float) -> str:
    """The state of a video in progress for people, such as "sampling, step 3/20, about 8 s left".

    Args:
        view: a Video, or an event of the type progress.
        now: by the server's clock, Unix seconds.
    """
    parts = [str(view["state"])]
    if view.get("queue_position") is not None:
        parts.append("next in the queue" if view["queue_position"] == 0 else f"{view['queue_position']} before it")
    if view["state"] == "sampling" or view.get("step"):
        parts.append(f"step {view['step']}/{view['num_inference_steps']}")
    ready_at = view.get("estimated_completion_at")
    if ready_at is not None:
        parts.append(f"about {short_time(ready_at - now)} left")
    return ", ".join(parts)


def short_time(seconds: float) -> str:
    """A length of time in its two largest units, rounded: 8 s, 3 min 20 s, 2 h 5 min."""
    rest = max(0, round(seconds))
    parts = []
    for unit, name in _UNITS:
        count, rest = divmod(rest, unit)
        if count:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2]) or "0 s"


class ProgressBars:
    """A bar for each video that is worked on and, of a batch, one for all together."""

    def __init__(self, console: Console, now: Callable[[], float], total: int | None) -> None:
        self._now = now
        self._total = total
        self._failed = 0
        ascii_only = console.options.ascii_only
        self._bars = Progress(
            SpinnerColumn("line" if ascii_only else "dots", finished_text=" "),
            TextColumn("{task.description}", markup=False, table_column=_column(max_width=_NAME_COLUMNS)),
            BarColumn(bar_width=20),
            TaskProgressColumn(table_column=_column(min_width=4)),
            TextColumn("{task.fields[text]}", markup=False, table_column=_column()),
            console=console,
            transient=True,
        )
        self._batch = None if total is None else self._bars.add_task("all videos", total=total, text=f"of {total}")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def add_video(self, name: str) -> VideoProgress:
        # A video of a batch has no bar while it waits: there may be thousands.
        visible = self._batch is None
        task = self._bars.add_task(printable(name), total=100, text="", visible=visible)
        return _VideoBar(self._bars, task, self._now)

    def show_notice(self, text: str) -> None:
        if self._batch is not None:
            failed = f", {self._failed} failed" if self._failed else ""
            self._bars.update(self._batch, text=printable(f"of {self._total}{failed}{'; ' if text else ''}{text}"))

    def count_result(self, text: str, failed: bool) -> None:
        self._failed += failed
        if failed:
            self._bars.console.print(printable(text), markup=False)
        if self._batch is not None:
            self._bars.advance(self._batch)
            self.show_notice("")


def _column(**widths: int) -> Column:
    return Column(no_wrap=True, overflow="ellipsis", **widths)  # type: ignore[arg-type]


class _VideoBar:
    def __init__(self, bars: Progress, task: TaskID, now: Callable[[], float]) -> None:
        self._bars = bars
        self._task = task
        self._now = now

    def show(self, view: Mapping[str, Any]) -> None:
        if "progress" in view:
            # What a queued video shows already stays as it is: visible alone, invisible in a batch.
            visible = None if view["state"] == "queued" else True
            text = progress_text(view, self._now())
            self._bars.update(self._task, completed=view["progress"], text=text, visible=visible)

    def show_download(self, done: int, total: int | None) -> None:
        text = f"downloading {done // 1000} kB"
        self._bars.update(self._task, completed=100 * done / total if total else 0, text=text, visible=True)

    def end(self) -> None:
        self._bars.remove_task(self._task)


class ProgressLines:
    """For logs: a line when a video's state changes or a quarter of its way is done; of a batch, one for each video."""

    def __init__(self, write: Callable[[str], None], now: Callable[[], float], total: int | None) -> None:
        self._write = write
        self._now = now
        self._total = total
        self._ended = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def add_video(self, name: str) -> VideoProgress:
        return _VideoLines(name, self._write if self._total is None else None, self._now)

    def show_notice(self, text: str) -> None:
        if text:
            self._write(text)

    def count_result(self, text: str, failed: bool) -> None:
        self._ended += 1
        self._write(f"[{self._ended}/{self._total}] {text}")


class _VideoLines:
    def __init__(self, name: str, write: Callable[[str], None] | None, now: Callable[[], float]) -> None:
        self._name = name
        self._write = write
        self._now = now
        self._last: tuple[str, int] | None = None

    def show(self, view: Mapping[str, Any]) -> None:
        if "progress" not in view or self._write is None:
            return
        current = (view["state"], view["progress"] // _LINE_EVERY_PERCENT)
        if current != self._last:
            self._last = current
            self._write(f"{self._name}: {view['progress']}%, {progress_text(view, self._now())}")

    def show_download(self, done: int, total: int | None) -> None:
        return None

    def end(self) -> None:
        return None
