"""The command `doctor`: what it prints, and its exit codes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve_app.cli.main import app
from serve_app.client.errors import FAILED
from serve_app.doctor import examination
from serve_app.doctor.finding import Check, Finding, fault, ok, skipped, warning
from serve_app.doctor.surroundings import Surroundings
from tests.support import ROOT


def found(*findings: Finding) -> tuple[Check, ...]:
    def look(s: Surroundings) -> Iterator[Finding]:
        yield from findings

    return (Check("first", look),)


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MOCHI_SERVE_CONFIG", raising=False)
    monkeypatch.setenv("MOCHI_SERVE__DATA_DIR", str(tmp_path / "data"))


def test_a_fault_is_code_1_and_stands_with_its_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = found(ok("disk", "there is room"), fault("ports", "8000 is taken", "end it"), skipped("gpus", "none"))
    monkeypatch.setattr(examination, "CHECKS", checks)
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == FAILED and "8000 is taken" in done.stdout and "-> end it" in done.stdout
    assert "gpus" not in done.stdout and "2 ok, 0 warnings, 1 fault, 1 skipped" in done.stdout
    assert "gpus" in CliRunner().invoke(app, ["doctor", "--all"]).stdout


def test_a_warning_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "CHECKS", found(warning("pins", "others", "install them")))
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0


def test_json_is_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "CHECKS", found(fault("ports", "8000 is taken", "end it")))
    document = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert document["fit"] is False
    assert document["findings"][0]["name"] == "settings" and document["findings"][0]["state"] == "ok"
    assert document["findings"][1:] == [
        {"name": "ports", "state": "fault", "told": "8000 is taken", "advice": "end it"}
    ]


def test_wrong_settings_are_a_finding_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOCHI_SERVE__SAMPLER__SLOTS", "many")
    done = CliRunner().invoke(app, ["doctor", "--json"])
    (finding,) = json.loads(done.stdout)["findings"]
    assert done.exit_code == FAILED and finding["name"] == "settings" and "sampler.slots" in finding["told"]


def test_a_model_that_is_not_there_does_not_end_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOCHI_SERVE__MODEL__SOURCE", "./nowhere")
    monkeypatch.setattr(
        examination, "CHECKS", [check for check in examination.CHECKS if check.name in ("model", "exposure")]
    )
    found = {one["name"]: one for one in json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)["findings"]}
    assert found["exposure"]["state"] == "ok"
    assert found["model"]["state"] == "fault" and "no such folder" in found["model"]["told"]


def test_every_check_is_in_the_documentation() -> None:
    names = [check.name for check in examination.CHECKS]
    text = (ROOT / "docs" / "operations.md").read_text()
    assert len(names) == len(set(names))
    assert [name for name in names if f"`{name}`" not in text] == []
