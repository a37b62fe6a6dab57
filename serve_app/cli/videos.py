"""The commands that look after videos: list, status, watch, cancel, delete, download and models."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from typing import Annotated, Any

import typer

from serve_app.cli.fetching import fetch, shown_path
from serve_app.cli.files import check_stdout_is_free, check_target, target_path
from serve_app.cli.make import failure_text
from serve_app.cli.options import ClientOptions, Force, Target, VideoId, VideoIds, command
from serve_app.cli.output import Output
from serve_app.cli.progress import ProgressDisplay, progress_display
from serve_app.cli.tables import fields_table, videos_table
from serve_app.client.download import SUFFIX, Variant
from serve_app.client.errors import EXIT_CODES, FAILED, OK, ClientError, UsageError
from serve_app.client.http import Client, Video
from serve_app.jobs import JobState, Order
from serve_app.openapi.schemas import Status

DEFAULT_LIMIT = 20
TIMES = ("created_after", "created_before")

app = typer.Typer()
_register = partial(app.command, epilog=EXIT_CODES, rich_help_panel="Look after videos")


@dataclass(frozen=True, slots=True)
class ListOptions:
    """Which videos are listed: how many, and the query of GET /v1/videos."""

    limit: Annotated[int, typer.Option(help="How many at most.", min=1)] = DEFAULT_LIMIT
    all: Annotated[bool, typer.Option("--all", help="Without a limit.")] = False
    after: Annotated[str | None, typer.Option(help="Go on after this id.")] = None
    order: Annotated[Order, typer.Option(help="By the time of creation.")] = "desc"
    status: Annotated[Status | None, typer.Option(help="Only these.")] = None
    state: Annotated[JobState | None, typer.Option(help="Only these; finer than --status.")] = None
    tenant: Annotated[str | None, typer.Option(help="Whose videos.")] = None
    created_after: Annotated[str | None, typer.Option(help="Unix seconds or a date like 2026-11-21T09:30.")] = None
    created_before: Annotated[str | None, typer.Option(help="Likewise.")] = None

    def query(self) -> dict[str, Any]:
        """Raises UsageError for a time that is none."""
        values = {name: value for name, value in asdict(self).items() if name not in ("limit", "all")}
        times = {name: unix_seconds(values[name]) for name in TIMES if values[name] is not None}
        return {name: value for name, value in (values | times).items() if value is not None}


@_register("list")
@command(ClientOptions)
async def list_videos(client: Client, output: Output, options: ListOptions) -> int:
    """List videos, newest first; with --json a line each."""
    videos = []
    async for video in client.videos(options.query(), None if options.all else options.limit):
        output.result(video)
        videos.append(video)
    if not output.as_json:
        output.show(videos_table(videos))
    return OK


@_register("download")
@command(ClientOptions)
async def download_file(
    client: Client,
    output: Output,
    video_id: VideoId,
    target: Target = None,
    variant: Annotated[Variant, typer.Option(help="Which of its files.")] = "video",
    force: Force = False,
) -> int:
    """Fetch a file of a video; one that broke off goes on where it ended. The file's name goes to stdout."""
    check_stdout_is_free(target, output.as_json)
    video = await client.retrieve(video_id)
    path = target_path(target, video["prompt"], video_id, SUFFIX[variant])
    check_target(path, force)
    with progress_display(output, lambda: client.now) as display:
        progress = display.add_video(video_id)
        size = await fetch(client, video_id, path, variant, progress.show_download)
        progress.end()
    output.result({"id": video_id, "variant": variant, "file": str(path), "bytes": size}, *shown_path(path))
    return OK


@_register()
@command(ClientOptions)
async def status(client: Client, output: Output, video_id: VideoId) -> int:
    """Tell all that is known of a video."""
    video = await client.retrieve(video_id)
    output.result(video, fields_table(video))
    return OK


@_register()
@command(ClientOptions)
async def watch(client: Client, output: Output, video_ids: VideoIds) -> int:
    """Follow videos to their end; with --json a line for each event. The code is 1 if one of them failed."""
    with progress_display(output, lambda: client.now) as display:
        followers = (_follow(client, output, display, video_id) for video_id in dict.fromkeys(video_ids))
        videos = await asyncio.gather(*followers)
    for video in videos:
        output.message(f"{video['id']} is completed" if video["status"] == "completed" else failure_text(video))
    return OK if all(video["status"] == "completed" for video in videos) else FAILED


@_register()
@command(ClientOptions)
async def cancel(client: Client, output: Output, video_ids: VideoIds) -> int:
    """Stop the making of videos; with --json a line for each."""

    async def cancel_one(video_id: str) -> None:
        output.result(await client.cancel(video_id), f"{video_id} is cancelled")

    return await _for_each(output, video_ids, cancel_one)


@_register()
@command(ClientOptions)
async def delete(client: Client, output: Output, video_ids: VideoIds) -> int:
    """Delete videos and all that is known of them; one that is being made is cancelled."""

    async def delete_one(video_id: str) -> None:
        output.result(await client.delete(video_id), f"{video_id} is deleted")

    return await _for_each(output, video_ids, delete_one)


@_register()
@command(ClientOptions)
async def models(client: Client, output: Output) -> int:
    """Tell which models are served, what may be asked of them, and what is used when nothing is asked."""
    answer = await client.models()
    output.result(answer, *(fields_table(model) for model in answer["data"]))
    return OK


async def _follow(client: Client, output: Output, display: ProgressDisplay, video_id: str) -> Video:
    progress = display.add_video(video_id)
    video: Video = {}
    async with aclosing(client.events(video_id)) as events:
        async for event in events:
            progress.show(event)
            # A preview's picture is nothing to read; `download --variant preview` fetches it.
            output.result({name: value for name, value in event.items() if name != "image"})
            video = event.get("video", video)
    progress.end()
    return video


async def _for_each(output: Output, video_ids: list[str], work: Callable[[str], Awaitable[None]]) -> int:
    """Do something with each video, after an error too; returns the exit code of the first error."""
    code = OK
    for video_id in video_ids:
        try:
            await work(video_id)
        except ClientError as error:
            output.error(error)
            code = code or error.exit_code
    return code


def unix_seconds(text: str) -> float:
    """A time as Unix seconds or as ISO 8601; one without a zone is local.

    Raises:
        UsageError: it is neither.
    """
    try:
        if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", text):
            return float(text)
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise UsageError(
            f"{text!r} is no time; give Unix seconds or a date like 2026-11-21 or 2026-11-21T09:30"
        ) from None
