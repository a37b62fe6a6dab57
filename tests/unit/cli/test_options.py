"""Dataclasses as options of commands."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from serve_app.cli.make import BatchRequestOptions, RequestOptions
from serve_app.cli.options import ClientOptions, command
from serve_app.cli.output import Output
from serve_app.jobs import Tier
from serve_app.requests.schema import VideoRequest


@dataclass(frozen=True)
class Shared:
    as_json: Annotated[bool, typer.Option("--json")] = False
    start: int = 10

    def run(self, work: Callable[[int, Output], Awaitable[int]]) -> None:
        output = Output(self.as_json)

        async def await_work() -> int:
            return await work(self.start, output)

        total = asyncio.run(await_work())
        output.result({"sum": total}, str(total))


@dataclass(frozen=True)
class Summands:
    summand: Annotated[int, typer.Option("--plus", "-p", help="Is added.")]
    factor: Annotated[int, typer.Option(max=9)] = 1


def run(*arguments: str, code: int = 0) -> str:
    app = typer.Typer()

    @app.command()
    @command(Shared)
    async def add(start: int, output: Output, first: Annotated[int, typer.Argument()], summands: Summands) -> int:
        """Add numbers."""
        return start + first + summands.factor * summands.summand

    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "100"})
    assert done.exit_code == code, done.output
    return done.output


def test_fields_are_options_beside_plain_parameters() -> None:
    assert run("1", "--plus", "2") == "13\n"
    assert run("1", "-p2", "--factor", "3", "--start", "0", "--json") == '{"sum": 7}\n'


def test_help_has_the_options_in_their_order() -> None:
    text = run("--help")
    places = [
        text.index(part) for part in ("Add numbers.", "--plus", "-p", "Is added.", "--factor", "--json", "--start")
    ]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("1",), "Missing option '--plus'"), (("1", "-p", "2", "--factor", "10"), "'--factor'"), (("-p", "2"), "first")],
)
def test_wrong_options_are_named(arguments: tuple[str, ...], message: str) -> None:
    assert message.casefold() in run(*arguments, code=2).casefold()


def test_every_field_of_a_request_is_an_option() -> None:
    assert {one.name for one in fields(RequestOptions)} == set(VideoRequest.model_fields) - {"prompt"}


def test_only_what_was_given_is_sent() -> None:
    assert RequestOptions().fields() == {}
    assert RequestOptions(seed=0, negative_prompt="", exact=True).fields() == {
        "seed": 0,
        "negative_prompt": "",
        "exact": True,
    }
    assert BatchRequestOptions().fields() == {"priority": Tier.BATCH}


def test_no_key_is_shown() -> None:
    assert "secret" not in repr(ClientOptions(api_key="secret"))
