"""What the commands say: results on stdout, everything else on stderr; bars on a terminal, else lines.

How tenants, keys and usage are shown: for programs as JSON, for people as tables. No secrets, no hashes.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Protocol, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn
from rich.table import Column, Table
from rich.text import Text

from serve_app.access.tenants import ApiKey, Tenant
from serve_app.cli.words import progress_words
from serve_app.client.errors import ClientError
from serve_app.config import DAY_S
from serve_app.database.access import DayUsage

LIST_COLUMNS = ("id", "state", "progress", "created", "length", "size", "prompt")
# Without a terminal, a line for each quarter of the way is enough.
_LINE_EVERY = 25
_NO_TERMINAL_COLUMNS = 10_000
_NAME_COLUMNS = 38


class Output:
    """Where a command's words go. as_json: only JSON on stdout."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        # A table fits itself to the terminal; in a pipe or a file nothing is cut.
        width = None if sys.stdout.isatty() else _NO_TERMINAL_COLUMNS
        self.out = Console(soft_wrap=True, highlight=False, emoji=False, width=width)
        self.err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)

    def result(self, value: Mapping[str, Any], text: str | None) -> None:
        """A result: the JSON value, or a text for people; None says nothing to them."""
        if self.as_json:
            typer.echo(json.dumps(value))
        elif text is not None:
            # As it is, so that a file can be found by it.
            typer.echo(os.fsencode(text))

    def table(self, table: Table) -> None:
        self.out.print(table, soft_wrap=False)

    def say(self, text: str) -> None:
        """A message for people."""
        self.err.print(printable(text), markup=False)

    def error(self, error: ClientError) -> None:
        self.say(f"mochi-serve: {error.message}")
        if self.as_json:
            typer.echo(json.dumps(error.envelope()))

    def display(self, now: Callable[[], float], total: int | None = None) -> "Display":
        """A display of progress, to be entered. now: the server's clock. total: of a batch."""
        return Bars(self.err, now, total) if self.err.is_terminal else Lines(self.say, now, total)


class Track(Protocol):
    """The progress of one video."""

    def show(self, view: Mapping[str, Any]) -> None:
        """Tell a Video or an event of its stream."""

    def fetching(self, done: int, total: int | None) -> None:
        """Tell of its download, in bytes."""

    def end(self) -> None:
        """It is over; what came of it is told elsewhere."""


class Display(AbstractContextManager["Display"], Protocol):
    """The progress of one video or of many."""

    def track(self, name: str) -> Track: ...

    def note(self, text: str) -> None:
        """Tell what all wait for; an empty text takes it back."""

    def ended(self, text: str, failed: bool) -> None:
        """One more of a batch is over."""


class Bars:
    """A bar for each video that is worked on and, of a batch, one for all together."""

    def __init__(self, console: Console, now: Callable[[], float], total: int | None) -> None:
        self._now = now
        self._failed = 0
        self._bars = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}", markup=False, table_column=_column(max_width=_NAME_COLUMNS)),
            BarColumn(bar_width=20),
            TaskProgressColumn(table_column=_column(min_width=4)),
            TextColumn("{task.fields[words]}", markup=False, table_column=_column()),
            console=console,
            transient=True,
        )
        self._total = None if total is None else self._bars.add_task("all videos", total=total, words=f"of {total}")
        self._count = total

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def track(self, name: str) -> Track:
        # What waits of a batch has no bar: there may be thousands.
        visible = self._total is None
        return _Bar(self._bars, self._bars.add_task(printable(name), total=100, words="", visible=visible), self._now)

    def note(self, text: str) -> None:
        self._tell_total(text)

    def ended(self, text: str, failed: bool) -> None:
        self._failed += failed
        if failed:
            self._bars.console.print(printable(text), markup=False)
        if self._total is not None:
            self._bars.advance(self._total)
            self._tell_total("")

    def _tell_total(self, note: str) -> None:
        if self._total is not None:
            failed = f", {self._failed} failed" if self._failed else ""
            self._bars.update(self._total, words=printable(f"of {self._count}{failed}{'; ' if note else ''}{note}"))


def _column(**widths: int) -> Column:
    return Column(no_wrap=True, overflow="ellipsis", **widths)  # type: ignore[arg-type]


class _Bar:
    def __init__(self, bars: Progress, task: TaskID, now: Callable[[], float]) -> None:
        self._bars, self._task, self._now = bars, task, now

    def show(self, view: Mapping[str, Any]) -> None:
        if "progress" in view:
            running = None if view["state"] == "queued" else True
            words = progress_words(view, self._now())
            self._bars.update(self._task, completed=view["progress"], words=words, visible=running)

    def fetching(self, done: int, total: int | None) -> None:
        words = f"downloading {done // 1000} kB"
        self._bars.update(self._task, completed=100 * done / total if total else 0, words=words, visible=True)

    def end(self) -> None:
        self._bars.remove_task(self._task)


class Lines:
    """For logs: a line when a video's state changes or a quarter of its way is done; of a batch, one for each video."""

    def __init__(self, say: Callable[[str], None], now: Callable[[], float], total: int | None) -> None:
        self._say, self._now, self._total = say, now, total
        self._ended = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def track(self, name: str) -> Track:
        return _Line(name, self._say if self._total is None else None, self._now)

    def note(self, text: str) -> None:
        if text:
            self._say(text)

    def ended(self, text: str, failed: bool) -> None:
        self._ended += 1
        self._say(f"[{self._ended}/{self._total}] {text}")


class _Line:
    def __init__(self, name: str, say: Callable[[str], None] | None, now: Callable[[], float]) -> None:
        self._name, self._say, self._now = name, say, now
        self._told: tuple[str, int] | None = None

    def show(self, view: Mapping[str, Any]) -> None:
        if "progress" not in view or self._say is None:
            return
        at = (view["state"], view["progress"] // _LINE_EVERY)
        if at != self._told:
            self._told = at
            self._say(f"{self._name}: {view['progress']}%, {progress_words(view, self._now())}")

    def fetching(self, done: int, total: int | None) -> None:
        return None

    def end(self) -> None:
        return None


def printable(text: str) -> str:
    """Without control characters, by which what others wrote could steer the terminal; newlines become spaces."""
    return "".join(char if char.isprintable() else " " for char in text)


def videos_table(videos: Iterable[Mapping[str, Any]]) -> Table:
    """Videos for people, one a row."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in LIST_COLUMNS:
        # Where a terminal is too narrow, only what may wrap gives way: the prompt, which is cut instead.
        table.add_column(column, no_wrap=column != "prompt")
    for video in videos:
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(video["created_at"]))
        length = f"{video['seconds']} s"
        cells = (video["id"], video["state"], f"{video['progress']}%", created, length, video["size"])
        prompt = Text(printable(video["prompt"]), no_wrap=True, overflow="ellipsis")
        table.add_row(*(Text(printable(str(cell))) for cell in cells), prompt)
    return table


def facts_table(facts: Mapping[str, Any]) -> Table:
    """Names and values of one thing for people; what is null is left out."""
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value is not None:
            table.add_row(Text(name, style="bold"), Text(printable(_fact(value))))
    return table


def _fact(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def key_json(key: ApiKey) -> dict[str, Any]:
    """All but the hash."""
    return {name: value for name, value in asdict(key).items() if name != "hash"}


def tenant_json(tenant: Tenant) -> dict[str, Any]:
    """All but the secret."""
    return {name: value for name, value in asdict(tenant).items() if name != "webhook_secret"}


def keys_table(found: list[ApiKey]) -> Table:
    """For 80 columns, with IDs that can be copied; when a key was made is told as JSON."""
    whole = [Column(name, no_wrap=True) for name in ("ID", "Key", "State")]
    table = Table(whole[0], Column("Tenant", overflow="fold"), whole[1], "Label", whole[2])
    now = time.time()
    for key in found:
        table.add_row(key.id, key.tenant, f"{key.hint}...", _plain(key.label), _state(key, now))
    return table


def _state(key: ApiKey, now: float) -> str:
    if key.revoked_at is not None:
        return f"revoked {date(key.revoked_at)}"
    if key.expires_at is None:
        return "valid"
    return f"valid until {date(key.expires_at)}" if key.expires_at > now else f"expired {date(key.expires_at)}"


def tenants_table(found: list[Tenant]) -> Table:
    table = Table("Tenant", "Tier", "Weight", "Requests/min", "Videos/min", "Waiting", "GPU-seconds/day", "Since")
    for one in found:
        limits = (one.weight, one.requests_per_minute, one.videos_per_minute, one.max_queued, one.gpu_seconds_per_day)
        told = ("-" if limit is None else f"{limit:g}" for limit in limits)
        table.add_row(one.name, one.max_tier, *told, date(one.created_at))
    return table


def _plain(text: str) -> str:
    """Text that rich takes for no markup."""
    return text.replace("[", r"\[")


def usage_json(of: DayUsage) -> dict[str, Any]:
    return {**asdict(of), "day": date(of.day * DAY_S)}


def usage_table(found: list[DayUsage]) -> Table:
    table = Table("Day", "Tenant", "Videos", "GPU-seconds")
    for one in found:
        table.add_row(date(one.day * DAY_S), one.tenant, str(one.videos), f"{one.gpu_seconds:.1f}")
    return table


def date(at: float) -> str:
    """The day of a time in Unix seconds, in UTC."""
    return datetime.fromtimestamp(at, UTC).date().isoformat()
