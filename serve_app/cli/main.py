"""The command `mochi-serve`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.panel import Panel
from rich.table import Table

from serve_app.cli import keys, make, model, videos
from serve_app.cli.health import doctor, top
from serve_app.cli.interrupts import ending_in_one_line, tolerate_any_text
from serve_app.cli.options import override_data_dir
from serve_app.cli.output import Output
from serve_app.cli.proteins import command as proteins
from serve_app.client.errors import EXIT_CODES
from serve_app.local.plan import LaunchPlan, check_serve_schema, prepare, read_plan

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, epilog=EXIT_CODES)


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
    output = Output()
    override_data_dir(data)
    with ending_in_one_line(output):
        _serve(config, dashboard_port, output)


def _serve(config: Path, dashboard_port: int, output: Output) -> None:
    plan = read_plan(config, dashboard_port)
    with prepare(plan, output.show) as tidy:
        schema = check_serve_schema(plan)
        from serve_app.local.server import run

        output.show(f"Starting mochi-serve on {plan.address} ...")
        run(plan, schema, lambda: output.show(_welcome(plan)), tidy)
    output.show("Stopped.")


app.add_typer(doctor.app)
app.add_typer(make.app)
app.add_typer(videos.app)
app.add_typer(top.app)
app.add_typer(model.app, name="model")
app.add_typer(proteins.app, name="proteins")
app.add_typer(keys.keys, name="keys")
app.add_typer(keys.tenants, name="tenants")


def main() -> None:
    """Entry point of the console script."""
    tolerate_any_text()
    app()


def _welcome(plan: LaunchPlan) -> Panel:
    table = Table.grid(padding=(0, 2))
    for name, value in (
        ("Page", plan.address),
        ("API", f"{plan.address}/v1"),
        ("Health", f"{plan.address}/health"),
        ("OpenAPI", f"{plan.address}/openapi.json"),
        ("Dashboard", f"{plan.dashboard} (token in {plan.token_file})"),
        ("Data", str(plan.data_dir)),
        ("Log", str(plan.log_file)),
        ("Stop", "Ctrl-C"),
    ):
        table.add_row(f"[bold]{name}[/]", value)
    return Panel(table, title="mochi-serve is ready", expand=False)


if __name__ == "__main__":
    main()
