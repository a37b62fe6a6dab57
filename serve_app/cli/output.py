"""What a command prints: results on stdout, as text or JSON, and everything else on stderr."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import typer
from rich.console import Console, RenderableType

from serve_app.client.errors import ClientError

_NO_TERMINAL_COLUMNS = 10_000


class Output:
    """Where a command prints. as_json: only JSON on stdout."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        # A table fits itself to the terminal; in a pipe or a file nothing is cut.
        width = None if sys.stdout.isatty() else _NO_TERMINAL_COLUMNS
        self._out = Console(soft_wrap=True, highlight=False, emoji=False, width=width)
        self.err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)

    def result(self, value: Mapping[str, Any] | Sequence[Any], *shown: str | RenderableType) -> None:
        """Print a result: the value as JSON for programs, or what is shown to people."""
        if self.as_json:
            typer.echo(json.dumps(value))
        else:
            self.show(*shown)

    def show(self, *shown: str | RenderableType) -> None:
        """Print texts and tables for people on stdout."""
        for part in shown:
            if isinstance(part, str):
                # Byte by byte, so that a file can be found by a name that is no UTF-8.
                typer.echo(os.fsencode(part))
            else:
                self._out.print(part, soft_wrap=False)

    def message(self, text: str) -> None:
        """Print a message for people on stderr."""
        self.err.print(printable(text), markup=False)

    def error(self, error: ClientError) -> None:
        """Print why a command failed, for programs too."""
        self.message(f"mochi-serve: {error.message}")
        if self.as_json:
            typer.echo(json.dumps(error.envelope()))

    def fail(self, text: str, exit_code: int) -> NoReturn:
        """Print why a command cannot begin, as it is, and end with the exit code."""
        self.err.print(f"mochi-serve: {text}", markup=False)
        raise typer.Exit(exit_code)


def printable(text: str) -> str:
    """Without control characters, by which what others wrote could steer the terminal; newlines become spaces."""
    return "".join(char if char.isprintable() else " " for char in text)
