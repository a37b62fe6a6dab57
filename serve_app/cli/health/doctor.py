"""The command `mochi-serve doctor`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from serve_app.cli.interrupts import ending_in_one_line
from serve_app.cli.options import override_data_dir
from serve_app.cli.output import Output, printable
from serve_app.client.errors import FAILED, OK
from serve_app.errors import ConfigError
from serve_app.local.plan import read_files

if TYPE_CHECKING:
    from serve_app.doctor.finding import Finding

STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red", "skipped": "dim"}

app = typer.Typer()


@app.command()
def doctor(
    config: Annotated[
        Path, typer.Option(help="The Serve config, as of serve; MOCHI_SERVE_CONFIG names another profile.")
    ] = Path("serve_config.yaml"),
    data: Annotated[Path | None, typer.Option(help="The data folder, if `serve` is given one.")] = None,
    dashboard_port: Annotated[
        int, typer.Option(help="As of serve.", min=1, max=65535, envvar="MOCHI_SERVE_DASHBOARD_PORT")
    ] = 8265,
    url: Annotated[
        str | None,
        typer.Option(help="A server that runs; default: the one of the data folder.", envvar="MOCHI_SERVE_URL"),
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="To be tried there.", envvar="MOCHI_SERVE_API_KEY")] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(help="A Ray cluster, such as auto, that the replicas run on.", envvar="RAY_ADDRESS"),
    ] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read all bytes of the weights.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Show what was skipped, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Look whether this machine, or a cluster, is fit for the server, and say what to do.

    It changes nothing and may run beside a server. Code 0: no fault was found; 1: one was.
    """
    output = Output(as_json)
    override_data_dir(data)
    with ending_in_one_line(output):
        findings = _examine(config, dashboard_port, url, api_key, ray_address, deep, output)
        table = _table(findings if every else [one for one in findings if one.state != "skipped"])
        output.result(_document(findings), table, _summary(findings))
    raise typer.Exit(FAILED if any(one.state == "fault" for one in findings) else OK)


def _examine(
    config: Path,
    dashboard_port: int,
    url: str | None,
    api_key: str | None,
    ray_address: str | None,
    deep: bool,
    output: Output,
) -> "list[Finding]":
    # Late: they bring the clients of stores and databases.
    from serve_app.doctor.examination import checks
    from serve_app.doctor.finding import ok, split_fault
    from serve_app.doctor.runner import examine
    from serve_app.doctor.surroundings import surroundings

    try:
        plan = read_files(config, dashboard_port)
    except ConfigError as error:
        return [split_fault("settings", str(error))]
    first = ok("settings", f"{config}: {plan.settings.model.name} from {plan.settings.model.source}")
    with output.err.status("") as status:
        found = examine(
            surroundings(plan, url, api_key, ray_address, deep),
            checks(deep),
            lambda finding: status.update(f"looked at {finding.name} ..."),
        )
    return [first, *found]


def _table(findings: "list[Finding]") -> Table:
    table = Table(
        Column("Check", no_wrap=True), Column("State", no_wrap=True), Column("Found, and what to do", overflow="fold")
    )
    for one in findings:
        text = Text(printable(one.told))
        if one.advice:
            text.append(f"\n-> {printable(one.advice)}", style=STYLES[one.state])
        table.add_row(one.name, Text(one.state, style=STYLES[one.state]), text)
    return table


def _document(findings: "list[Finding]") -> dict[str, Any]:
    return {
        "fit": all(one.state != "fault" for one in findings),
        "findings": [
            {"name": one.name, "state": str(one.state), "told": one.told, "advice": one.advice} for one in findings
        ],
    }


def _summary(findings: "list[Finding]") -> str:
    counts = {state: sum(one.state == state for one in findings) for state in STYLES}
    faults, warnings = counts["fault"], counts["warning"]
    return (
        f"{counts['ok']} ok, {warnings} warning{'s' * (warnings != 1)}, {faults} fault{'s' * (faults != 1)}, "
        f"{counts['skipped']} skipped"
    )
