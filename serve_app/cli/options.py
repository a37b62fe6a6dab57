"""The options that commands share, and how a command runs: its exit code, its errors, Ctrl-C."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from serve_app.cli.output import Output
from serve_app.client.errors import INTERRUPTED, OK, ClientError
from serve_app.client.http import Client
from serve_app.jobs import Tier

Result = TypeVar("Result")

_REQUEST, _SERVER = "The video", "The server"


def _option(*names: str, help: str, panel: str | None = None, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


Url = Annotated[str, _option("--url", help="Where the server is.", panel=_SERVER, envvar="MOCHI_SERVE_URL")]
Key = Annotated[
    str | None,
    _option(
        "--api-key",
        help="The API key, where the server asks for one; better given in the environment, where no list of "
        "processes shows it.",
        panel=_SERVER,
        envvar="MOCHI_SERVE_API_KEY",
    ),
]
PatienceS = Annotated[
    float,
    _option(
        "--patience", help="Seconds to wait for a server that was there and does not answer.", panel=_SERVER, min=0
    ),
]
Json = Annotated[bool, _option("--json", help="Only JSON on stdout, errors too; messages go to stderr.")]

VideoId = Annotated[str, typer.Argument(metavar="ID", help="The video's id.")]
VideoIds = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of videos.")]
Target = Annotated[
    Path | None,
    _option("--output", "-o", help="The file, or a folder; without it a name from the prompt and the id."),
]
Force = Annotated[bool, _option("--force", help="Overwrite what is there.")]
NoWait = Annotated[bool, _option("--no-wait", help="Only ask for the video, and tell its id.")]
CancelOnInterrupt = Annotated[
    bool, _option("--cancel-on-interrupt", help="Ctrl-C cancels the video; otherwise it goes on without you.")
]

Model = Annotated[str | None, _option("--model", help="A model that is served.", panel=_REQUEST)]
Size = Annotated[str | None, _option("--size", help="WIDTHxHEIGHT in pixels.", panel=_REQUEST)]
Width = Annotated[int | None, _option("--width", help="In pixels.", panel=_REQUEST)]
Height = Annotated[int | None, _option("--height", help="In pixels.", panel=_REQUEST)]
Seconds = Annotated[float | None, _option("--seconds", help="How long it plays.", panel=_REQUEST)]
NumFrames = Annotated[int | None, _option("--num-frames", help="Instead of --seconds: 6k + 1.", panel=_REQUEST)]
Fps = Annotated[int | None, _option("--fps", help="Frames a second.", panel=_REQUEST)]
Steps = Annotated[int | None, _option("--steps", help="Denoising steps: more are better and slower.", panel=_REQUEST)]
Guidance = Annotated[
    float | None, _option("--guidance-scale", help="How closely it keeps to the prompt.", panel=_REQUEST)
]
Seed = Annotated[int | None, _option("--seed", help="The same seed gives the same video.", panel=_REQUEST)]
Negative = Annotated[str | None, _option("--negative-prompt", help="What it must not show.", panel=_REQUEST)]
Priority = Annotated[Tier | None, _option("--priority", help="The highest that waits goes first.", panel=_REQUEST)]
Exact = Annotated[bool, _option("--exact", help="The same bits each time on the same kind of device.", panel=_REQUEST)]
Webhook = Annotated[str | None, _option("--webhook-url", help="Is told when the video is ready.", panel=_REQUEST)]


@dataclass(frozen=True, slots=True)
class Server:
    """Where the server is and how it is spoken to."""

    url: str
    api_key: str | None
    patience_s: float

    def __repr__(self) -> str:
        return f"Server({self.url!r})"

    def client(self) -> Client:
        return Client(self.url, self.api_key, self.patience_s)


def request_fields(**options: Any) -> dict[str, Any]:
    """The fields of a request from options by the same names; what was not given is left to the server."""
    return {name: value for name, value in options.items() if value is not None and value is not False}


def run(server: Server, output: Output, work: Callable[[Client], Awaitable[int]]) -> None:
    """Run a command with a client, and end with its exit code.

    Raises:
        typer.Exit: always, except with the code 0.
    """

    async def with_client() -> int:
        async with server.client() as client:
            return await work(client)

    try:
        code = asyncio.run(with_client())
    except ClientError as error:
        output.error(error)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if code != OK:
        raise typer.Exit(code)


async def for_each(output: Output, ids: list[str], work: Callable[[str], Awaitable[None]]) -> int:
    """Do something for each id; returns the exit code of the first error, when all have had their turn."""
    code = OK
    for video_id in ids:
        try:
            await work(video_id)
        except ClientError as error:
            output.error(error)
            code = code or error.exit_code
    return code
