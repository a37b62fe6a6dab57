"""The command line itself; what it starts is tested in test_launch."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve_app.cli.main import app
from serve_app.cli.options import DATA_DIR_VARIABLE
from serve_app.client.errors import FAILED, WRONG_USAGE
from tests.support import ROOT


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv(DATA_DIR_VARIABLE, "overwritten by --data and put back after the test")


COMMANDS = {
    "serve",
    "generate",
    "batch",
    "remix",
    "enhance",
    "list",
    "status",
    "watch",
    "cancel",
    "delete",
    "download",
    "models",
    "doctor",
    "top",
    "keys",
    "tenants",
}


def test_help_names_the_commands_and_the_exit_codes() -> None:
    text = CliRunner().invoke(app, ["--help"]).output
    assert {line.split()[1] for line in text.splitlines() if line.startswith("\u2502 ")} >= COMMANDS
    assert "Exit codes: 0 all went well" in text


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--help"])
    assert done.exit_code == 0 and f"Usage: root {command}" in done.output


def test_the_commands_of_a_client_start_without_ray_and_torch() -> None:
    code = "import sys, serve_app.cli.main; print(*sorted({'ray', 'torch', 'fastapi', 'diffusers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_help_names_the_options() -> None:
    text = CliRunner().invoke(app, ["serve", "--help"]).output
    assert all(option in text for option in ("--config", "--data", "--dashboard-port"))


def test_a_missing_config_is_one_line_and_code_2(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["serve", "--config", str(tmp_path / "none.yaml")])
    assert done.exit_code == WRONG_USAGE
    assert done.stderr.startswith("mochi-serve: cannot read") and done.stderr.count("\n") == 1


def test_data_goes_before_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, ["serve", "--data", str(tmp_path / "file" / "data")])
    assert done.exit_code == FAILED
    assert f"cannot write in the data folder {tmp_path}/file/data" in done.stderr


def test_a_port_out_of_range_is_refused() -> None:
    assert CliRunner().invoke(app, ["serve", "--dashboard-port", "70000"]).exit_code == 2
