"""docs/proteins.md: what it shows runs as it stands, over devices without Ray, and what it tells of settings is so."""

import asyncio
import json
import re
import types
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from deployments.embedder.settings import ProteinSettings
from deployments.proteins.esm2 import Esm2
from tests.support import ROOT
from tests.support.proteins.api import ProteinApi

PAGE = (ROOT / "docs" / "proteins.md").read_text(encoding="utf-8")
URL = "http://127.0.0.1:8000/esm2"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def python_blocks() -> list[str]:
    """Without the one that draws: matplotlib is no package of ours."""
    return [block for block in blocks("python") if "matplotlib" not in block]


async def test_the_page_runs_from_above_to_below(
    api: ProteinApi, model: Esm2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (fasta,) = blocks("fasta")
    (command,) = [block for block in blocks("") if "--data-binary" in block]
    (query,) = re.findall(r"predict/batch\?(\S+)'", command)
    headers = dict(re.findall(r"-H '([\w-]+): ([^']+)'", command))
    monkeypatch.chdir(tmp_path)
    answer = await api.client.post(f"/predict/batch?{query}", content=fasta, headers=headers)
    assert answer.status_code == 200, answer.text
    Path("proteins.npz").write_bytes(answer.content)
    await asyncio.to_thread(run, python_blocks(), httpx_of(api, asyncio.get_running_loop()))
    told = capsys.readouterr().out
    assert f"{model.num_layers} per_residue (76, {model.hidden_size})" in told
    assert "damaged position 4 is '1', which stands for no amino acid" in told
    assert len(re.findall(r"^(?:I44A|K48R|I44A:K48R) -?\d", told, re.MULTILINE)) == 4
    assert "18 [(" in told  # the masked position


def httpx_of(api: ProteinApi, loop: asyncio.AbstractEventLoop) -> Any:
    """What the page uses of httpx, for the app in this process."""

    def post(url: str, *, timeout: float, **fields: Any) -> httpx.Response:
        sent = api.client.post(url.removeprefix(URL), **fields)
        return asyncio.run_coroutine_threadsafe(sent, loop).result(timeout)

    return types.SimpleNamespace(post=post)


def run(sources: list[str], client: Any) -> None:
    names: dict[str, Any] = {"httpx": client, "np": np}
    for source in sources:
        exec(re.sub(r"^import httpx$", "", source, flags=re.MULTILINE), names)


async def test_the_bodies_of_its_commands_are_answered(api: ProteinApi) -> None:
    commands = re.findall(rf"curl -s {URL}(/\S+) -H 'content-type: application/json' -d '(.*?)'$", PAGE, re.M | re.S)
    assert [path for path, _ in commands] == ["/predict", "/predict/batch"]
    for path, body in commands:
        await api.post(path, **json.loads(body))


def rows(heading: str) -> list[list[str]]:
    """The cells of the table with this first line."""
    (table,) = re.findall(rf"^{re.escape(heading)}\n\| ---.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_it_tells_every_setting_and_its_default() -> None:
    told = {
        name.strip("`"): yaml.safe_load(default.strip("`")) for name, default, _ in rows("| setting | default | what |")
    }
    assert told == {
        name: None if field.is_required() else field.default for name, field in ProteinSettings.model_fields.items()
    }


async def test_it_tells_every_error_that_is_no_error_of_the_videos(api: ProteinApi) -> None:
    of_videos = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    told = re.findall(r"`(\w+)`", of_videos + " ".join(cells[1] for cells in rows("| status | code | when |")))
    document = (await api.client.get("/openapi.json")).text
    codes = set(re.findall(r'"code": ?"(\w+)"', document))
    assert "sequence_invalid" in codes and codes - set(told) == set()
