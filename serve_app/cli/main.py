"""The command `mochi-serve`."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from serve_app.cli import keys as key_commands
from serve_app.cli import videos as client_commands
from serve_app.client.errors import EXIT_CODES
from serve_app.config import OVERRIDE_PREFIX
from serve_app.errors import ConfigError, StartupError
from serve_app.local import plan as launch

BAD_CONFIG = 2
CANNOT_START = 1
DATA_DIR_VARIABLE = f"{OVERRIDE_PREFIX}DATA_DIR"

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, epilog=EXIT_CODES)
_out = Console()
_err = Console(stderr=True, soft_wrap=True)


@app.callback()
def _root() -> None:
    """Self-hosted text-to-video behind an OpenAI-compatible API."""


@app.command()
def serve(
    config: Annotated[Path, typer.Option(help="The Serve config: applications, address, port.")] = Path(
        "serve_config.yaml"
    ),
    data: Annotated[
        Path | None, typer.Option(help="The folder everything local is kept in; goes before data_dir.")
    ] = None,
    dashboard_port: Annotated[
        int,
        typer.Option(help="Port of Ray's dashboard.", min=1, max=65535, envvar="MOCHI_SERVE_DASHBOARD_PORT"),
    ] = 8265,
) -> None:
    """Run the whole app on this machine until Ctrl-C."""
    try:
        _serve(config, data, dashboard_port)
    except ConfigError as error:
        raise _failed(error, BAD_CONFIG) from None
    except StartupError as error:
        raise _failed(error, CANNOT_START) from None


client_commands.add_to(app)
app.add_typer(key_commands.keys, name="keys")
app.add_typer(key_commands.tenants, name="tenants")


def main() -> None:
    """Entry point of the console script."""
    app()


def _serve(config: Path, data: Path | None, dashboard_port: int) -> None:
    if data is not None:
        os.environ[DATA_DIR_VARIABLE] = str(data.resolve())
    plan = launch.read_plan(config, dashboard_port)
    with launch.prepare(plan) as tidy:
        schema = launch.check_serve_schema(plan)
        from serve_app.local.server import run

        _out.print(f"Starting mochi-serve on {plan.address} ...")
        run(plan, schema, lambda: _out.print(_welcome(plan)), tidy)
    _out.print("Stopped.")


def _welcome(plan: launch.LaunchPlan) -> Panel:
    table = Table.grid(padding=(0, 2))
    for name, value in (
        ("Page", plan.address),
        ("API", f"{plan.address}/v1"),
        ("Health", f"{plan.address}/health"),
        ("OpenAPI", f"{plan.address}/openapi.json"),
        ("Dashboard", f"{plan.dashboard} (token in {plan.token_file})"),
        ("Data", str(plan.data_dir)),
        ("Stop", "Ctrl-C"),
    ):
        table.add_row(f"[bold]{name}[/]", value)
    return Panel(table, title="mochi-serve is ready", expand=False)


def _failed(error: Exception, code: int) -> typer.Exit:
    _err.print(f"mochi-serve: {error}", markup=False, highlight=False)
    return typer.Exit(code)


if __name__ == "__main__":
    main()
