"""Make a video and fetch it: what `generate`, `remix` and `enhance` do after their request."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from serve_app.cli.output import Output, Track
from serve_app.cli.words import target_path
from serve_app.client.download import SUFFIX, download
from serve_app.client.errors import (
    FAILED,
    INTERRUPTED,
    OK,
    ClientError,
    LocalFileError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from serve_app.client.http import Client, Video

# Asks for a video under an Idempotency-Key.
Ask = Callable[[str], Awaitable[Video]]


@dataclass(frozen=True, slots=True)
class Wish:
    """What becomes of a video that was asked for. target: None for a name of its own."""

    target: Path | None
    force: bool
    no_wait: bool
    cancel_on_interrupt: bool

    def check(self) -> None:
        """Raises UsageError, before anything is made, where its file cannot be put."""
        if self.target is None or self.no_wait:
            return
        check_free(self.target, self.force)


def check_free(target: Path, force: bool) -> None:
    """Raises UsageError where a file must not, or cannot, be written; a folder is right too."""
    if target.is_dir():
        return
    if target.exists() and not force:
        raise UsageError(f"{str(target)!r} is there already; give another name, or --force to overwrite it")
    if not target.parent.is_dir():
        raise UsageError(f"there is no folder {str(target.parent)!r}; make it first")


async def make(client: Client, output: Output, wish: Wish, ask: Ask) -> int:
    """Ask for a video, wait for it and fetch it; returns the exit code."""
    wish.check()
    video = await _asked(output, ask)
    if wish.no_wait:
        output.result(video, video["id"])
        return OK
    output.say(f"{video['id']} is accepted")
    try:
        return await _made(client, output, wish, video)
    except asyncio.CancelledError:
        return await _interrupted(client, output, wish, video)
    except (UnreachableError, RefusedError):
        output.say(_how_to_go_on(video["id"]))
        raise


async def _asked(output: Output, ask: Ask) -> Video:
    try:
        return await ask(str(uuid.uuid4()))
    except asyncio.CancelledError:
        output.say("Interrupted before the server answered; `mochi-serve list` shows whether it took the request.")
        raise


async def _made(client: Client, output: Output, wish: Wish, video: Video) -> int:
    with output.display(lambda: client.now) as display:
        track = display.track(video["id"])
        track.show(video)
        done = await client.finished(video["id"], track.show)
        path = await _fetched(client, wish, done, track) if done["status"] == "completed" else None
        track.end()
    output.result(done | {"file": None if path is None else str(path)}, None if path is None else str(path))
    if path is None:
        output.say(failure_words(done))
    return FAILED if path is None else OK


async def _fetched(client: Client, wish: Wish, video: Video, track: Track) -> Path:
    path = target_path(wish.target, video["prompt"], video["id"], SUFFIX["video"])
    try:
        check_free(path, wish.force)
        await download(client, video["id"], path, tell=track.fetching)
    except (UsageError, LocalFileError) as error:
        raise LocalFileError(f"{error.message}. The video is kept: mochi-serve download {video['id']}") from None
    return path


async def _interrupted(client: Client, output: Output, wish: Wish, video: Video) -> int:
    """Ctrl-C: the video goes on by itself, unless it is to be cancelled."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
    if not wish.cancel_on_interrupt:
        output.say(_how_to_go_on(video["id"]))
        output.result(video | {"file": None}, None)
        return INTERRUPTED
    try:
        video = await client.cancel(video["id"])
    except ClientError as error:
        output.say(f"{video['id']} could not be cancelled: {error.message}")
    else:
        output.say(f"{video['id']} is cancelled")
    output.result(video | {"file": None}, None)
    return INTERRUPTED


def failure_words(video: Video) -> str:
    error = video["error"] or {"code": video["state"], "message": "no reason was given"}
    return f"{video['id']} failed ({error['code']}): {error['message']}"


def _how_to_go_on(video_id: str) -> str:
    return (
        f"{video_id} goes on at the server. Follow it: mochi-serve watch {video_id}; fetch it: mochi-serve download "
        f"{video_id}; stop it: mochi-serve cancel {video_id}"
    )
