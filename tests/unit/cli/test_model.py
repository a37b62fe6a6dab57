"""The command that prepares a model."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from serve_app.cli.main import app
from tests.support.workers.fakes import SHAPES


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOCHI_SERVE_MODEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MOCHI_SERVE_CONFIG", raising=False)


def prepare(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, ["model", "prepare", *arguments])
    assert done.exit_code == code, done.output
    return done


def test_a_model_is_prepared_and_its_place_is_told(tmp_path: Path) -> None:
    done = prepare(str(SHAPES), "made", "--dtype", "float32", "--vae-dtype", "bfloat16", "--json")
    told = json.loads(done.stdout)
    assert told["folder"] == str(tmp_path / "made") and (tmp_path / "made/SHA256SUMS").exists()
    assert told["dtypes"] == {"text_encoder": "float32", "transformer": "float32", "vae": "bfloat16"}
    sizes = {path.parent.name: path.stat().st_size for path in tmp_path.glob("made/*/*.safetensors")}
    assert told["bytes"] == sizes
    for part in sizes:
        assert f"{part}: 0.0" in done.stderr  # progress, a line for each quarter
    done = prepare("made", "again")
    assert f"model.source: {tmp_path}/again" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "reason", "code"),
    [
        (("./nothing", "made"), "no such folder", 1),
        ((str(SHAPES), "full"), "full is not empty; name a new folder", 1),
        (("s3://bucket", "made"), "lacks a bucket or a prefix", 1),
        (("s3://bucket/prefix", "made"), "serve_config.yaml", 2),
        ((str(SHAPES), "made", "--dtype", "float8"), "--dtype", 2),
    ],
)
def test_what_is_wrong_is_told(arguments: tuple[str, ...], reason: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("")
    assert reason in prepare(*arguments, code=code).stderr
    assert not (tmp_path / "made").exists()
