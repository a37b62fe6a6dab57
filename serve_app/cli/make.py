"""The commands of `mochi-serve` that make videos: generate, remix, enhance, batch.

Make a video and fetch it: what `generate`, `remix` and `enhance` do after their request.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from serve_app.cli import options
from serve_app.cli.batch.run import BatchOptions, batch_of
from serve_app.cli.options import Server, request_fields, run
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
from serve_app.client.http import DEFAULT_URL, PATIENCE_S, Client, Video
from serve_app.jobs import Tier

CONCURRENCY = 16


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the video shows.")],
    output: options.Target = None,
    size: options.Size = None,
    width: options.Width = None,
    height: options.Height = None,
    seconds: options.Seconds = None,
    num_frames: options.NumFrames = None,
    fps: options.Fps = None,
    steps: options.Steps = None,
    guidance_scale: options.Guidance = None,
    seed: options.Seed = None,
    negative_prompt: options.Negative = None,
    model: options.Model = None,
    priority: options.Priority = None,
    exact: options.Exact = False,
    webhook_url: options.Webhook = None,
    force: options.Force = False,
    no_wait: options.NoWait = False,
    cancel_on_interrupt: options.CancelOnInterrupt = False,
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.Key = None,
    patience: options.PatienceS = PATIENCE_S,
) -> None:
    """Make a video of a prompt and fetch it; the file's name goes to stdout.

    What is not given is as the server has it: see `mochi-serve models`.
    """
    fields = request_fields(
        prompt=prompt,
        size=size,
        width=width,
        height=height,
        seconds=seconds,
        num_frames=num_frames,
        fps=fps,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        negative_prompt=negative_prompt,
        model=model,
        priority=priority,
        exact=exact,
        webhook_url=webhook_url,
    )
    wish, told = MakeOptions(output, force, no_wait, cancel_on_interrupt), Output(as_json)
    run(
        Server(url, api_key, patience),
        told,
        lambda client: make(client, told, wish, lambda key: client.create(fields, key)),
    )


def remix(
    video_id: options.VideoId,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the new video shows.")],
    output: options.Target = None,
    force: options.Force = False,
    no_wait: options.NoWait = False,
    cancel_on_interrupt: options.CancelOnInterrupt = False,
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.Key = None,
    patience: options.PatienceS = PATIENCE_S,
) -> None:
    """Make a video with the seed and the settings of another one, of a new prompt."""
    wish, told = MakeOptions(output, force, no_wait, cancel_on_interrupt), Output(as_json)
    run(
        Server(url, api_key, patience),
        told,
        lambda client: make(client, told, wish, lambda key: client.remix(video_id, prompt, key)),
    )


def enhance(
    video_id: options.VideoId,
    steps: options.Steps = None,
    output: options.Target = None,
    force: options.Force = False,
    no_wait: options.NoWait = False,
    cancel_on_interrupt: options.CancelOnInterrupt = False,
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.Key = None,
    patience: options.PatienceS = PATIENCE_S,
) -> None:
    """Make a video once more, of the same prompt and seed, with more steps."""
    wish, told = MakeOptions(output, force, no_wait, cancel_on_interrupt), Output(as_json)
    run(
        Server(url, api_key, patience),
        told,
        lambda client: make(client, told, wish, lambda key: client.enhance(video_id, steps, key)),
    )


def batch(
    prompts: Annotated[
        Path,
        typer.Argument(
            metavar="PROMPTS",
            help='A line a video: text, or JSON {"prompt": ..., any field of a request, "id", "name"}.',
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the videos and of results.jsonl.")],
    size: options.Size = None,
    width: options.Width = None,
    height: options.Height = None,
    seconds: options.Seconds = None,
    num_frames: options.NumFrames = None,
    fps: options.Fps = None,
    steps: options.Steps = None,
    guidance_scale: options.Guidance = None,
    seed: options.Seed = None,
    negative_prompt: options.Negative = None,
    model: options.Model = None,
    priority: options.Priority = Tier.BATCH,
    exact: options.Exact = False,
    webhook_url: options.Webhook = None,
    concurrency: Annotated[
        int, typer.Option(help="How many videos are asked for and fetched at a time.", min=1, max=256)
    ] = CONCURRENCY,
    force: options.Force = False,
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.Key = None,
    patience: options.PatienceS = PATIENCE_S,
) -> None:
    """Make a video of each line of a file, or of stdin (-).

    Started again with the same folder it goes on where it was, whatever ended it: nothing is made or downloaded twice,
    what failed is tried again, and new lines are added. Options are for lines that do not say otherwise.
    """
    fields = request_fields(
        size=size,
        width=width,
        height=height,
        seconds=seconds,
        num_frames=num_frames,
        fps=fps,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        negative_prompt=negative_prompt,
        model=model,
        priority=priority,
        exact=exact,
        webhook_url=webhook_url,
    )
    told = Output(as_json)
    wish = BatchOptions(prompts, output, fields, concurrency, force)
    run(Server(url, api_key, patience), told, lambda client: batch_of(client, told, wish))


# Asks for a video under an Idempotency-Key.
Ask = Callable[[str], Awaitable[Video]]


@dataclass(frozen=True, slots=True)
class MakeOptions:
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


async def make(client: Client, output: Output, wish: MakeOptions, ask: Ask) -> int:
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


async def _made(client: Client, output: Output, wish: MakeOptions, video: Video) -> int:
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


async def _fetched(client: Client, wish: MakeOptions, video: Video, track: Track) -> Path:
    path = target_path(wish.target, video["prompt"], video["id"], SUFFIX["video"])
    try:
        check_free(path, wish.force)
        await download(client, video["id"], path, tell=track.fetching)
    except (UsageError, LocalFileError) as error:
        raise LocalFileError(f"{error.message}. The video is kept: mochi-serve download {video['id']}") from None
    return path


async def _interrupted(client: Client, output: Output, wish: MakeOptions, video: Video) -> int:
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
