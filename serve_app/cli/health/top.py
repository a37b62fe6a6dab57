"""The command `mochi-serve top`: what waits and what is worked on, live in the terminal."""

import asyncio
import contextlib
import os
import sys
import termios
import time
import tty
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from serve_app.cli.options import ClientOptions, command
from serve_app.cli.output import Output, printable
from serve_app.client.errors import EXIT_CODES, OK
from serve_app.client.http import Client

QUIT = b"qQ\x03"
# Lines that are no rows: one above, the heads of four tables, what is cut of each, the last line.
FIXED_LINES = 10
MIN_ROWS = 3

app = typer.Typer()
_register = partial(app.command, epilog=EXIT_CODES, rich_help_panel="Look after videos")


@_register("top")
@command(ClientOptions)
async def top(
    client: Client,
    output: Output,
    once: Annotated[bool, typer.Option("--once", help="Print it once, and end.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.2)] = 1.0,
) -> int:
    """Show the queue and what the replicas do, live; q ends it.

    Where stdout is no terminal, or with --json, it is printed once.
    """
    console = Console(highlight=False, emoji=False)
    if once or output.as_json or not (console.is_terminal and sys.stdin.isatty()):
        status = await _ask(client)
        output.result(status, view(status, sys.maxsize))
        return OK
    await _live(client, console, every)
    return OK


async def _ask(client: Client) -> dict[str, Any]:
    return await client.request("GET", "/v1/status")


async def _live(client: Client, console: Console, every_s: float) -> None:
    """Until a key asks for the end. While the server is away the last view stays, and says how old it is."""
    status = await _ask(client)
    asked_at = time.monotonic()
    with _pressed_keys() as quit_asked, Live(console=console, screen=True, auto_refresh=False) as live:
        asking: asyncio.Task[dict[str, Any]] | None = None
        ended = asyncio.create_task(quit_asked.wait())
        try:
            while not ended.done():
                age_s = time.monotonic() - asked_at
                live.update(view(status, console.height, age_s if age_s > 2 * every_s + 1 else None), refresh=True)
                await asyncio.wait({ended}, timeout=every_s)
                asking = asking or asyncio.create_task(_ask(client))
                await asyncio.wait({ended, asking}, timeout=every_s, return_when=asyncio.FIRST_COMPLETED)
                if asking.done():
                    status, asked_at, asking = asking.result(), time.monotonic(), None
        finally:
            tasks = [task for task in (ended, asking) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def _pressed_keys() -> Iterator[asyncio.Event]:
    """Keys come without Enter and are not shown; the event is set by one that asks for the end. Signals stay."""
    quit_asked = asyncio.Event()
    terminal, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(terminal)

    def read() -> None:
        pressed = os.read(terminal, 64)
        if not pressed or any(key in QUIT for key in pressed):  # nothing: the terminal has gone
            loop.remove_reader(terminal)
            quit_asked.set()

    tty.setcbreak(terminal)
    loop.add_reader(terminal, read)
    try:
        yield quit_asked
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def view(status: dict[str, Any], height: int, age_s: float | None = None) -> Group:
    """All of it in so many lines: what does not fit is counted.

    Args:
        status: as GET /v1/status answers.
        age_s: how old it is, if it is older than it should be.
    """
    rows = max(4 * MIN_ROWS, height - FIXED_LINES)
    waiting, running, replicas, gpus = (status[name] for name in ("waiting", "running", "replicas", "gpus"))
    room = _shares(rows, [len(replicas), len(running), len(waiting), len(gpus)])
    count = sum(one["count"] for one in waiting)
    needed = _duration(sum(one["gpu_seconds"] for one in waiting))
    head = Text(f"mochi-serve {status['version']}  ", style="bold")
    head.append(time.strftime("%H:%M:%S", time.localtime(status["at"])))
    if age_s is not None:
        head.append(f"  no answer for {age_s:.0f} s", style="bold red")
    head.append(f"  {len(running)} running, {count} waiting")
    if waiting:
        head.append(f" ({needed} of GPUs)")
    parts: list[RenderableType] = [head]
    parts += _cut(_replicas(replicas[: room[0]], status["starting"]), len(replicas) - room[0])
    if gpus:
        parts += _cut(_gpus(gpus[: room[3]]), len(gpus) - room[3])
    parts += _cut(_running(running[: room[1]]), len(running) - room[1])
    parts += _cut(_waiting(waiting[: room[2]], status["at"]), len(waiting) - room[2])
    return Group(*parts)


def _shares(rows: int, wanted: list[int]) -> list[int]:
    """Rows of each table: what it wants, where that is too much together an equal part of what the smaller leave."""
    shares = [0] * len(wanted)
    left = rows
    for done, index in enumerate(sorted(range(len(wanted)), key=lambda index: wanted[index])):
        shares[index] = min(wanted[index], left // (len(wanted) - done))
        left -= shares[index]
    return shares


def _replicas(replicas: list[dict[str, Any]], starting: dict[str, dict[str, Any]]) -> Table:
    table = _table("REPLICA", "STAGE", "BUSY", "DEVICE")
    for one in replicas:
        device = Text(printable(one["device"]), no_wrap=True, overflow="ellipsis")
        if one["problem"]:
            device.append(f"  {printable(one['problem'])}", style="red")
        busy = Text(f"{one['busy']}/{one['slots']}", style="green" if one["busy"] else "")
        table.add_row(printable(one["replica"]), one["stage"], busy, device)
    for stage, found in starting.items():
        table.add_row(f"{found['count']} starting", stage, "", "")
    return table


def _gpus(gpus: list[dict[str, Any]]) -> Table:
    def told(value: float | None, text: str) -> str:
        return "" if value is None else text.format(value)

    table = _table("GPU", "MEMORY", "BUSY", "POWER", "HEAT")
    for one in gpus:
        used, total = one["memory_used"], one["memory_total"]
        memory = "" if None in (used, total) else f"{used / 1e9:.1f} of {total / 1e9:.1f} GB"
        figures = (told(one["utilization"], "{:.0%}"), told(one["power_w"], "{:.0f} W"))
        table.add_row(printable(one["uuid"][:12]), memory, *figures, told(one["temperature_c"], "{:.0f} C"))
    return table


def _running(running: list[dict[str, Any]]) -> Table:
    table = _table("VIDEO", "STAGE", "STEP", "S/STEP", "TIER", "TENANT", "SIZE")
    for one in running:
        step = f"{one['step']}/{one['num_inference_steps']}"
        step_s = "" if one["step_s"] is None else f"{one['step_s']:.3g}"
        tenant = Text(printable(one["tenant"]), no_wrap=True, overflow="ellipsis")
        size = f"{one['size']}x{one['num_frames']}" if one["size"] else "proteins"
        table.add_row(f"..{one['id'][-8:]}", one["stage"], step, step_s, one["tier"], tenant, size)
    return table


def _waiting(waiting: list[dict[str, Any]], at: float) -> Table:
    table = _table("WAITING", "FOR", "TIER", "TENANT", "OLDEST", "GPU TIME")
    for one in waiting:
        tenant = Text(printable(one["tenant"]), no_wrap=True, overflow="ellipsis")
        times = (_duration(at - one["oldest_at"]), _duration(one["gpu_seconds"]))
        table.add_row(str(one["count"]), one["stage"], one["tier"], tenant, *times)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold cyan", padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    return table


def _cut(table: Table, more: int) -> list[RenderableType]:
    return [table, Text(f"and {more} more", style="dim")] if more > 0 else [table]


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{max(0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
