"""The load benchmark: what counts as a failure, how figures are made, and Locust's clients against an app in memory."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import load
from benchmarks.common.read_rate import read_rate
from benchmarks.load_parts.checks import Figures, events_in, is_mp4, video_at_the_end
from serve_app.jobs import JobState
from tests.support import ROOT
from tests.support.http.memory_app import MemoryApp, running_app

MP4 = b"\0\0\0\x18ftypisom" + bytes(5000)


def state(number: int) -> dict[str, Any]:
    return {"type": "state", "number": number}


DONE = {"type": "done", "video": {"id": "v"}}


def test_a_whole_stream_gives_the_video() -> None:
    body = b': ping\n\nevent: state\ndata: {"type":"state","number":1}\nid: 1.0\n\nevent: done\ndata: '
    body += json.dumps(DONE).encode() + b"\nid: 1.0\n\n"
    assert video_at_the_end(events_in(body)) == {"id": "v"}


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([], "broke off"),
        ([state(1), {"type": "progress"}], "broke off"),
        ([state(1), state(3), DONE], "move 3 after 1"),
        ([state(1), state(1), DONE], "move 1 after 1"),
    ],
)
def test_a_stream_with_a_gap_is_a_failure(events: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        video_at_the_end(iter(events))


def test_what_is_an_mp4() -> None:
    assert is_mp4(MP4) and not any(map(is_mp4, (b"", b"ftyp", b'{"error": {}}')))


def test_failures_count_from_the_beginning_and_times_from_when_all_are_there(tmp_path: Path) -> None:
    figures = Figures()
    figures.note("list", 5.0, None)
    figures.note("list", 5.0, ConnectionError("gone"))
    figures.begin()
    figures.note("list", 7.0, None)
    figures.write(tmp_path / "f.json")
    figures.note("list", 9.0, None)
    seen = json.loads((tmp_path / "f.json").read_text())
    assert seen["times"] == {"list": [7.0]} and list(seen["failures"].values()) == [1]


def test_figures_against_their_bars() -> None:
    times = {"status": [float(n) for n in range(1, 96)], "list": [3000.0] * 5}
    seen = {"seconds": 0.25, "times": times, "counts": {"videos made": 2}, "failures": {}}
    section = load.summarise(seen)
    assert (section["requests"], section["rate"], section["p95_ms"]) == (100, 400.0, 95.0)
    assert section["kinds"]["list"]["p50_ms"] == 3000.0 and section["videos_made"] == 2
    assert section["holds"] == {"failed": True, "rate": True, "p95_ms": True}
    slow = load.summarise(seen | {"seconds": 1.0, "failures": {"x": 3}, "times": {"list": [2100.0]}})
    assert slow["holds"] == {"failed": False, "rate": False, "p95_ms": False} and slow["failed"] == 3
    assert load.load_table({"users": 1, "videos_a_second": 1.0, **slow}).row_count == 8
    nothing = load.summarise(seen | {"times": {}})
    assert nothing["holds"] == {"failed": True, "rate": False, "p95_ms": False}


@asynccontextmanager
async def working_app() -> AsyncIterator[MemoryApp]:
    """An app in memory that makes its videos at once."""
    async with running_app() as app:
        making = asyncio.create_task(_make_all(app))
        yield app
        making.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await making


async def _make_all(app: MemoryApp) -> None:
    while True:
        for job in list(app.services.memory.jobs.values()):
            if job.state is JobState.QUEUED:
                app.services.add_file(job.id, "video", MP4)
                app.completed(job.id)
        await asyncio.sleep(0.1)


async def run_clients(app: MemoryApp, folder: Path) -> dict[str, Any]:
    command = ["-m", "locust", "-f", "benchmarks/load_parts/users.py", "--headless", f"--host={app.url}", "--users=40"]
    # In the time that is measured, half of them submit a video and half look around.
    command += ["--spawn-rate=40", "--measure=6", "--videos-a-second=3", f"--figures={folder / 'f.json'}"]
    ran = await asyncio.create_subprocess_exec(sys.executable, *command, cwd=ROOT, stderr=asyncio.subprocess.PIPE)
    _, errors = await ran.communicate()
    assert (folder / "f.json").exists(), errors.decode()
    return load.summarise(json.loads((folder / "f.json").read_text()))


async def test_clients_do_all_that_they_are_for(tmp_path: Path) -> None:
    async with working_app() as app:
        section = await run_clients(app, tmp_path)
    assert section["failures"] == {} and set(section["kinds"]) == set(load.KINDS)
    assert section["videos_made"] > 0 and section["streams"] > 0


async def test_clients_notice_what_is_wrong(tmp_path: Path) -> None:
    async with working_app() as app:
        app.services.store.reachable = False
        section = await run_clients(app, tmp_path)
    assert section["failed"] > 0 and all(failure.startswith("download: ") for failure in section["failures"])


async def test_a_read_is_counted_and_a_refusal_is_not() -> None:
    async with running_app() as app:
        rate = await asyncio.to_thread(read_rate, f"{app.url}/v1/models", 4, 0.0)
        assert rate > 0
        with pytest.raises(RuntimeError, match="404, not 200"):
            await asyncio.to_thread(read_rate, f"{app.url}/v1/videos/x", 4, 5.0)
