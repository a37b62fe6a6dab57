"""The commands of `mochi-serve` that look after videos; `add_to` mounts them and those that make videos."""

import asyncio
from contextlib import aclosing
from typing import Annotated, Any

import typer

from serve_app.cli import options
from serve_app.cli.make import batch, check_free, enhance, failure_words, generate, remix
from serve_app.cli.options import Server, for_each, request_fields, run
from serve_app.cli.output import Display, Output, facts_table, videos_table
from serve_app.cli.words import target_path, unix_seconds
from serve_app.client.download import SUFFIX, Variant, download
from serve_app.client.errors import EXIT_CODES, FAILED, OK
from serve_app.client.http import DEFAULT_URL, PATIENCE_S, Client, Video
from serve_app.jobs import JobState, Order
from serve_app.openapi.schemas import Status

MAKING, LOOKING = "Make videos", "Look after videos"
DEFAULT_LIMIT = 20


def add_to(app: typer.Typer) -> None:
    """Mount the commands."""
    for command in (generate, batch, remix, enhance):
        app.command(epilog=EXIT_CODES, rich_help_panel=MAKING)(command)
    app.command("list", epilog=EXIT_CODES, rich_help_panel=LOOKING)(list_videos)
    app.command("download", epilog=EXIT_CODES, rich_help_panel=LOOKING)(download_file)
    for look in (status, watch, cancel, delete, models):
        app.command(epilog=EXIT_CODES, rich_help_panel=LOOKING)(look)


def list_videos(
    limit: Annotated[int, typer.Option(help="How many at most.", min=1)] = DEFAULT_LIMIT,
    everything: Annotated[bool, typer.Option("--all", help="Without a limit.")] = False,
    after: Annotated[str | None, typer.Option(help="Go on after this id.")] = None,
    order: Annotated[Order, typer.Option(help="By the time of creation.")] = "desc",
    status: Annotated[Status | None, typer.Option(help="Only these.")] = None,
    state: Annotated[JobState | None, typer.Option(help="Only these; finer than --status.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose videos.")] = None,
    created_after: Annotated[str | None, typer.Option(help="Unix seconds or a date like 2026-11-21T09:30.")] = None,
    created_before: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.Key = None,
    patience: options.PatienceS = PATIENCE_S,
) -> None:
    """List videos, newest first; with --json a line each."""
    told = Output(as_json)

    async def work(client: Client) -> int:
        wanted = request_fields(
            after=after,
            order=order,
            status=status,
            state=state,
            tenant=tenant,
            created_after=None if created_after is None else unix_seconds(created_after),
            created_before=None if created_before is None else unix_seconds(created_before),
        )
        listed = []
        async for video in client.videos(wanted, None if everything else limit):
            told.result(video, None)
            listed.append(video)
        if not as_json:
            told.table(videos_table(listed))
        return OK

    run(Server(url, api_key, patience), told, work)


def status(
    video_id: options.VideoId,
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.Key = None,
    patience: options.PatienceS = PATIENCE_S,
) -> None:
    """Tell all that is known of a video."""
    told = Output(as_json)

    async def work(client: Client) -> int:
        _facts(told, await client.retrieve(video_id))
        return OK

    run(Server(url, api_key, patience), told, work)


def watch(
    video_ids: options.VideoIds,
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.Key = None,
    patience: options.PatienceS = PATIENCE_S,
) -> None:
    """Follow videos to their end; with --json a line for each event. The code is 1 if one of them failed."""
    told = Output(as_json)

    async def work(client: Client) -> int:
        with told.display(lambda: client.now) as display:
            following = (_follow(client, told, display, video_id) for video_id in dict.fromkeys(video_ids))
            videos = await asyncio.gather(*following)
        for video in videos:
            told.say(f"{video['id']} is completed" if video["status"] == "completed" else failure_words(video))
        return OK if all(video["status"] == "completed" for video in videos) else FAILED

    run(Server(url, api_key, patience), told, work)


def cancel(
    video_ids: options.VideoIds,
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.Key = None,
    patience: options.PatienceS = PATIENCE_S,
) -> None:
    """Stop the making of videos; with --json a line for each."""
    told = Output(as_json)

    async def work(client: Client) -> int:
        async def one(video_id: str) -> None:
            told.result(await client.cancel(video_id), f"{video_id} is cancelled")

        return await for_each(told, video_ids, one)

    run(Server(url, api_key, patience), told, work)


def delete(
    video_ids: options.VideoIds,
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.Key = None,
    patience: options.PatienceS = PATIENCE_S,
) -> None:
    """Delete videos and all that is known of them; one that is being made is cancelled."""
    told = Output(as_json)

    async def work(client: Client) -> int:
        async def one(video_id: str) -> None:
            told.result(await client.delete(video_id), f"{video_id} is deleted")

        return await for_each(told, video_ids, one)

    run(Server(url, api_key, patience), told, work)


def download_file(
    video_id: options.VideoId,
    output: options.Target = None,
    variant: Annotated[Variant, typer.Option(help="Which of its files.")] = "video",
    force: options.Force = False,
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.Key = None,
    patience: options.PatienceS = PATIENCE_S,
) -> None:
    """Fetch a file of a video; one that broke off goes on where it ended. The file's name goes to stdout."""
    told = Output(as_json)

    async def work(client: Client) -> int:
        video = await client.retrieve(video_id)
        path = target_path(output, video["prompt"], video_id, SUFFIX[variant])
        check_free(path, force)
        with told.display(lambda: client.now) as display:
            track = display.track(video_id)
            size = await download(client, video_id, path, variant, track.fetching)
            track.end()
        told.result({"id": video_id, "variant": variant, "file": str(path), "bytes": size}, str(path))
        return OK

    run(Server(url, api_key, patience), told, work)


def models(
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.Key = None,
    patience: options.PatienceS = PATIENCE_S,
) -> None:
    """Tell which models are served, what may be asked of them, and what is used when nothing is asked."""
    told = Output(as_json)

    async def work(client: Client) -> int:
        answer = await client.models()
        if as_json:
            told.result(answer, None)
        for model in [] if as_json else answer["data"]:
            told.table(facts_table(model))
        return OK

    run(Server(url, api_key, patience), told, work)


async def _follow(client: Client, told: Output, display: Display, video_id: str) -> Video:
    track = display.track(video_id)
    video: Video = {}
    async with aclosing(client.events(video_id)) as events:
        async for event in events:
            track.show(event)
            told.result(_without_picture(event), None)
            video = event.get("video", video)
    track.end()
    return video


def _without_picture(event: dict[str, Any]) -> dict[str, Any]:
    """A preview's picture is no reading matter; `download --variant preview` fetches it."""
    return {name: value for name, value in event.items() if name != "image"}


def _facts(told: Output, video: Video) -> None:
    if told.as_json:
        told.result(video, None)
    else:
        told.table(facts_table(video))
