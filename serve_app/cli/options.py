"""Options that commands share, and how a function with dataclasses of options becomes a command."""

import inspect
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Concatenate, Protocol, TypeVar

import typer

from serve_app.cli.interrupts import run_interruptible
from serve_app.cli.output import Output
from serve_app.client.errors import ClientError
from serve_app.client.http import DEFAULT_URL, PATIENCE_S, Client
from serve_app.config import OVERRIDE_PREFIX

DATA_DIR_VARIABLE = f"{OVERRIDE_PREFIX}DATA_DIR"

Context = TypeVar("Context")
Context_co = TypeVar("Context_co", covariant=True)
Result = TypeVar("Result")
Result_contra = TypeVar("Result_contra", contravariant=True)
Group = TypeVar("Group")

VideoId = Annotated[str, typer.Argument(metavar="ID", help="The video's id.")]
VideoIds = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of videos.")]
Target = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="The file, or a folder, or - for stdout; without it a name from the prompt and the id."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]


def override_data_dir(data: Path | None) -> None:
    """Put the data folder of the option --data before the one of the configuration, for child processes too."""
    if data is not None:
        os.environ[DATA_DIR_VARIABLE] = str(data.resolve())


class CommonOptions(Protocol[Context_co, Result_contra]):
    """A dataclass of the options that several commands share."""

    def run(self, work: Callable[[Context_co, Output], Awaitable[Result_contra]]) -> None:
        """Do the work of a command, and end with its exit code."""


def command(
    common: type[CommonOptions[Context, Result]],
) -> Callable[[Callable[Concatenate[Context, Output, ...], Awaitable[Result]]], Callable[..., None]]:
    """Make a command for typer of a coroutine function `work(context, output, ...)`; `common.run` calls it.

    typer reads an option from each parameter of a signature. So the command gets a signature of its own: in it the
    fields of a parameter that is a dataclass stand in the place of the parameter, and those of `common` at the end.
    """

    def decorate(work: Callable[Concatenate[Context, Output, ...], Awaitable[Result]]) -> Callable[..., None]:
        options: list[inspect.Parameter] = []
        groups: dict[str, type[Any]] = {}
        for parameter in list(inspect.signature(work).parameters.values())[2:]:
            if isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation):
                groups[parameter.name] = parameter.annotation
                options += _options(parameter.annotation)
            else:
                options.append(parameter)
        options += _options(common)

        @wraps(work)
        def run(**values: Any) -> None:
            shared = _take(common, values)
            grouped = {name: _take(group, values) for name, group in groups.items()}
            shared.run(lambda context, output: work(context, output, **values, **grouped))

        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options]
        )
        return run

    return decorate


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """What every command of a client is told: where the server is, and how results are printed."""

    as_json: Annotated[bool, typer.Option("--json", help="Only JSON on stdout, errors too; messages go to stderr.")] = (
        False
    )
    url: Annotated[
        str, typer.Option(help="Where the server is.", rich_help_panel="The server", envvar="MOCHI_SERVE_URL")
    ] = DEFAULT_URL
    api_key: Annotated[
        str | None,
        typer.Option(
            help="The API key, where the server asks for one; better given in the environment, where no list of "
            "processes shows it.",
            rich_help_panel="The server",
            envvar="MOCHI_SERVE_API_KEY",
        ),
    ] = field(default=None, repr=False)
    patience_s: Annotated[
        float,
        typer.Option(
            "--patience",
            help="Seconds to wait for a server that was there and does not answer.",
            rich_help_panel="The server",
            min=0,
        ),
    ] = PATIENCE_S

    def run(self, work: Callable[[Client, Output], Awaitable[int]]) -> None:
        """Do the work with a client. Its exit code is what the work returns, or that of its ClientError.

        Raises:
            typer.Exit: always.
        """
        output = Output(self.as_json)

        async def work_with_client() -> int:
            async with Client(self.url, self.api_key, self.patience_s) as client:
                return await work(client, output)

        try:
            exit_code = run_interruptible(work_with_client())
        except ClientError as error:
            output.error(error)
            exit_code = error.exit_code
        raise typer.Exit(exit_code)


def _options(group: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(group).parameters.values())


def _take(group: Callable[..., Group], values: dict[str, Any]) -> Group:
    """Make a dataclass of those values that are its fields, and take them out."""
    return group(**{option.name: values.pop(option.name) for option in _options(group)})
