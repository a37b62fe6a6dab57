"""The commands of `mochi-serve` that make videos: generate, remix, enhance, batch."""

from pathlib import Path
from typing import Annotated

import typer

from serve_app.cli import options
from serve_app.cli.batch.run import BatchWish, batch_of
from serve_app.cli.client_making import Wish, make
from serve_app.cli.options import Server, request_fields, run
from serve_app.cli.output import Output
from serve_app.client.http import DEFAULT_URL, PATIENCE_S
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
    wish, told = Wish(output, force, no_wait, cancel_on_interrupt), Output(as_json)
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
    wish, told = Wish(output, force, no_wait, cancel_on_interrupt), Output(as_json)
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
    wish, told = Wish(output, force, no_wait, cancel_on_interrupt), Output(as_json)
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
    wish = BatchWish(prompts, output, fields, concurrency, force)
    run(Server(url, api_key, patience), told, lambda client: batch_of(client, told, wish))
