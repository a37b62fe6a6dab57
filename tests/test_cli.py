"""The command line itself; what it starts is tested in test_launch."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve_app.cli import BAD_CONFIG, CANNOT_START, DATA_DIR_VARIABLE, app

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv(DATA_DIR_VARIABLE, "overwritten by --data and put back after the test")


def test_help_names_the_command_and_its_options() -> None:
    assert "serve" in CliRunner().invoke(app, ["--help"]).output
    told = CliRunner().invoke(app, ["serve", "--help"]).output
    assert all(option in told for option in ("--config", "--data", "--dashboard-port"))


def test_a_missing_config_is_one_line_and_code_2(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["serve", "--config", str(tmp_path / "none.yaml")])
    assert done.exit_code == BAD_CONFIG
    assert done.stderr.startswith("mochi-serve: cannot read") and done.stderr.count("\n") == 1


def test_data_goes_before_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, ["serve", "--data", str(tmp_path / "file" / "data")])
    assert done.exit_code == CANNOT_START
    assert f"cannot write in the data folder {tmp_path}/file/data" in done.stderr


def test_a_port_out_of_range_is_refused() -> None:
    assert CliRunner().invoke(app, ["serve", "--dashboard-port", "70000"]).exit_code == 2
