"""The commands that make videos: generate, batch, remix and enhance."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from serve_app.cli.batch.run import BatchOptions, run_batch
from serve_app.cli.fetching import fetch, shown_path
from serve_app.cli.files import check_stdout_is_free, check_target, target_path
from serve_app.cli.options import ClientOptions, Force, Target, VideoId, command
from serve_app.cli.output import Output
from serve_app.cli.progress import VideoProgress, progress_display
from serve_app.client.download import SUFFIX
from serve_app.client.errors import (
    EXIT_CODES,
    FAILED,
    INTERRUPTED,
    OK,
    ClientError,
    LocalFileError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from serve_app.client.http import Client, Video, video_error
from serve_app.jobs import Tier

# A request for a video under an Idempotency-Key.
Send = Callable[[str], Awaitable[Video]]

app = typer.Typer()
_register = partial(app.command, epilog=EXIT_CODES, rich_help_panel="Make videos")


def _video_option(*names: str, help: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="The video")


Steps = Annotated[int | None, _video_option("--steps", help="Denoising steps: more are better and slower.")]
Quality = Annotated[
    str | None,
    _video_option(help="exact, fast or draft: what the model offers; auto: a draft where it would wait for long."),
]
Lora = Annotated[str | None, _video_option(help="A LoRA by its name: what the model offers.")]
LoraScale = Annotated[float | None, _video_option(help="By how much it counts: 1 as trained, 0 not at all.")]
CancelAfter = Annotated[
    str | None, _video_option(help="Cancelled if it is not completed after so long: 90s, 5m, 1h30m.")
]
Priority = Annotated[Tier | None, _video_option(help="The highest that waits goes first.")]


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """The fields of a request for a video, but the prompt, by their names in the API."""

    size: Annotated[str | None, _video_option(help="WIDTHxHEIGHT in pixels.")] = None
    aspect_ratio: Annotated[str | None, _video_option(help="A shape as 16:9, instead of --size.")] = None
    resolution: Annotated[str | None, _video_option(help="The shorter side as 480p, instead of --size.")] = None
    width: Annotated[int | None, _video_option(help="In pixels.")] = None
    height: Annotated[int | None, _video_option(help="In pixels.")] = None
    seconds: Annotated[float | None, _video_option(help="How long it plays.")] = None
    num_frames: Annotated[int | None, _video_option(help="Instead of --seconds: 6k + 1.")] = None
    fps: Annotated[int | None, _video_option(help="Frames a second.")] = None
    quality: Quality = None
    num_inference_steps: Steps = None
    guidance_scale: Annotated[float | None, _video_option(help="How closely it keeps to the prompt.")] = None
    lora: Lora = None
    lora_scale: LoraScale = None
    seed: Annotated[int | None, _video_option(help="The same seed gives the same video.")] = None
    negative_prompt: Annotated[str | None, _video_option(help="What it must not show.")] = None
    model: Annotated[str | None, _video_option(help="A model that is served.")] = None
    priority: Priority = None
    exact: Annotated[bool, _video_option("--exact", help="The same bits each time on the same kind of device.")] = False
    webhook_url: Annotated[str | None, _video_option(help="Is told when the video is ready.")] = None
    cancel_after: CancelAfter = None

    def fields(self) -> dict[str, Any]:
        """The fields that were given; the server knows the defaults of the others."""
        return {name: value for name, value in asdict(self).items() if value is not None and value is not False}


@dataclass(frozen=True, slots=True)
class BatchRequestOptions(RequestOptions):
    """The fields of the requests of a batch."""

    priority: Priority = Tier.BATCH


@dataclass(frozen=True, slots=True)
class MakeOptions:
    """What happens with a video after its request."""

    target: Target = None
    force: Force = False
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Only ask for the video, and tell its id.")] = False
    cancel_on_interrupt: Annotated[
        bool,
        typer.Option("--cancel-on-interrupt", help="Ctrl-C cancels the video; otherwise it goes on without you."),
    ] = False


@_register()
@command(ClientOptions)
async def generate(
    client: Client,
    output: Output,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the video shows.")],
    request: RequestOptions,
    options: MakeOptions,
) -> int:
    """Make a video of a prompt and fetch it; the file's name goes to stdout.

    What is not given is as the server has it: see `mochi-serve models`.
    """
    fields = {"prompt": prompt, **request.fields()}
    return await make(client, output, options, lambda key: client.create(fields, key))


@_register()
@command(ClientOptions)
async def batch(client: Client, output: Output, options: BatchOptions, request: BatchRequestOptions) -> int:
    """Make a video of each line of a file, or of stdin (-).

    Started again with the same folder it goes on where it was, whatever ended it: nothing is made or downloaded twice,
    what failed is tried again, and new lines are added. Options are for lines that do not say otherwise.
    """
    return await run_batch(client, output, options, request.fields())


@_register()
@command(ClientOptions)
async def remix(
    client: Client,
    output: Output,
    video_id: VideoId,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the new video shows.")],
    options: MakeOptions,
    quality: Quality = None,
    lora: Lora = None,
    lora_scale: LoraScale = None,
    cancel_after: CancelAfter = None,
) -> int:
    """Make a video with the seed and the settings of another one, of a new prompt."""
    return await make(
        client,
        output,
        options,
        lambda key: client.remix(video_id, prompt, key, cancel_after, quality, lora, lora_scale),
    )


@_register()
@command(ClientOptions)
async def enhance(
    client: Client,
    output: Output,
    video_id: VideoId,
    options: MakeOptions,
    steps: Steps = None,
    quality: Quality = None,
    lora: Lora = None,
    lora_scale: LoraScale = None,
    cancel_after: CancelAfter = None,
) -> int:
    """Make a video once more, of the same prompt and seed, with more steps."""
    return await make(
        client,
        output,
        options,
        lambda key: client.enhance(video_id, steps, key, cancel_after, quality, lora, lora_scale),
    )


async def make(client: Client, output: Output, options: MakeOptions, send: Send) -> int:
    """Ask for a video, wait for it and fetch it; returns the exit code."""
    if options.target is not None and not options.no_wait:
        check_stdout_is_free(options.target, output.as_json)
        check_target(options.target, options.force)
    try:
        video = await send(str(uuid.uuid4()))
    except asyncio.CancelledError:
        output.message("Interrupted before the server answered; `mochi-serve list` shows whether it took the request.")
        raise
    if options.no_wait:
        output.result(video, video["id"])
        return OK
    output.message(f"{video['id']} is accepted{draft_text(video)}")
    try:
        return await _wait_and_fetch(client, output, options, video)
    except asyncio.CancelledError:
        return await _interrupt(client, output, options, video)
    except (UnreachableError, RefusedError):
        output.message(_next_commands(video["id"]))
        raise


async def _wait_and_fetch(client: Client, output: Output, options: MakeOptions, video: Video) -> int:
    with progress_display(output, lambda: client.now) as display:
        progress = display.add_video(video["id"])
        progress.show(video)
        video = await client.wait_until_done(video["id"], progress.show)
        path = await _fetch(client, options, video, progress) if video["status"] == "completed" else None
        progress.end()
    if path is None:
        output.result(video | {"file": None})
        output.message(failure_text(video))
        return FAILED
    output.result(video | {"file": str(path)}, *shown_path(path))
    return OK


async def _fetch(client: Client, options: MakeOptions, video: Video, progress: VideoProgress) -> Path:
    path = target_path(options.target, video["prompt"], video["id"], SUFFIX["video"])
    try:
        check_target(path, options.force)
        await fetch(client, video["id"], path, "video", progress.show_download)
    except (UsageError, LocalFileError) as error:
        raise LocalFileError(f"{error.message}. The video is kept: mochi-serve download {video['id']}") from None
    return path


async def _interrupt(client: Client, output: Output, options: MakeOptions, video: Video) -> int:
    """After Ctrl-C the server goes on with the video, unless it is to be cancelled."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
    if options.cancel_on_interrupt:
        try:
            video = await client.cancel(video["id"])
        except ClientError as error:
            output.message(f"{video['id']} could not be cancelled: {error.message}")
        else:
            output.message(f"{video['id']} is cancelled")
    else:
        output.message(_next_commands(video["id"]))
    output.result(video | {"file": None})
    return INTERRUPTED


def draft_text(video: Video) -> str:
    """That a video became a draft under load, and why; empty of others."""
    reason = video.get("draft_reason")
    if not reason:
        return ""
    return f" as a draft: it would have waited for about {reason['wait_s']:.0f} s, over {reason['limit_s']:g} s"


def failure_text(video: Video) -> str:
    """Why a video failed."""
    error = video_error(video)
    return f"{video['id']} failed ({error['code']}): {error['message']}"


def _next_commands(video_id: str) -> str:
    return (
        f"{video_id} goes on at the server. Follow it: mochi-serve watch {video_id}; fetch it: mochi-serve download "
        f"{video_id}; stop it: mochi-serve cancel {video_id}"
    )
