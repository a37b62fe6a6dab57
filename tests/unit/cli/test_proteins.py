"""`mochi-serve proteins embed`: every sequence once and in order, on from where a killed run was, refusals by name."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file
from starlette.applications import Starlette
from starlette.routing import Mount

from deployments.proteins.alphabet import ProteinSequence
from deployments.proteins.esm2 import Esm2
from deployments.proteins.queries import Query
from serve_app.cli.output import Output
from serve_app.cli.proteins.embed import run_embed
from serve_app.cli.proteins.options import EmbedOptions
from serve_app.client.errors import OK, PARTLY_FAILED, ClientError, LocalFileError, UsageError
from serve_app.client.http import Client
from tests.support.proteins.api import ProteinApi
from tests.support.proteins.devices import alone
from tests.support.proteins.files import Files, running_files
from tests.support.proteins.models import make_esm
from tests.support.proteins.sequences import drawn_sequence
from tests.support.waiting import until

COUNT = 200


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Esm2:
    return Esm2(make_esm(tmp_path_factory.mktemp("esm") / "model"))


@pytest.fixture
def drawn() -> list[ProteinSequence]:
    return [drawn_sequence(1 + number % 23, number) for number in range(COUNT)]


@pytest.fixture
def options(drawn: list[ProteinSequence], tmp_path: Path) -> EmbedOptions:
    fasta = tmp_path / "in.fasta"
    fasta.write_text("".join(f">p{number % 150} of {number}\n{one.text}\n" for number, one in enumerate(drawn)))
    return EmbedOptions(fasta, tmp_path / "out")


@asynccontextmanager
async def serving(model: Esm2, folder: Path, parts_of: int = 70, **more: Any) -> AsyncIterator[tuple[Files, Client]]:
    """A server that answers files in parts of so many sequences, and a client of it."""
    url = f"sqlite:///{folder / 'jobs.db'}"
    async with running_files(model, url, part_sequences=parts_of, **more) as files, client_of(files.api) as client:
        yield files, client


@asynccontextmanager
async def client_of(api: ProteinApi) -> AsyncIterator[Client]:
    app = Starlette(routes=[Mount("/esm2", app=api.app)])
    async with Client("http://test", transport=httpx.ASGITransport(app), patience_s=0) as client:
        yield client


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def vectors(folder: Path, name: str) -> Any:
    return np.concatenate([load_file(path)[name] for path in sorted(folder.glob("*.safetensors"))])


def wanted(model: Esm2, sequences: list[ProteinSequence]) -> Any:
    queries = [Query(one.tokens, (-1,), ("mean",)) for one in sequences]
    return np.stack([alone(model, query).embeddings[-1, "mean"] for query in queries])


async def test_every_sequence_is_there_once_in_the_files_order(
    model: Esm2, options: EmbedOptions, drawn: list[ProteinSequence], tmp_path: Path
) -> None:
    async with serving(model, tmp_path) as (_, client):
        assert await run_embed(client, Output(), options) == OK
    rows = rows_of(options.folder)
    assert [row["index"] for row in rows] == list(range(COUNT))
    assert [row["id"] for row in rows] == [f"p{number % 150}" for number in range(COUNT)]
    assert [row["length"] for row in rows] == [len(one) for one in drawn]
    assert [row["row"] for row in rows] == [number % 70 for number in range(COUNT)]
    found = vectors(options.folder, f"{model.num_layers}.mean")
    np.testing.assert_allclose(found, wanted(model, drawn), rtol=1e-5, atol=1e-5)


async def test_a_run_that_was_cut_off_goes_on_with_the_same_job(
    model: Esm2, options: EmbedOptions, drawn: list[ProteinSequence], tmp_path: Path
) -> None:
    async with serving(model, tmp_path, parts_of=20) as (files, client):
        run = asyncio.create_task(run_embed(client, Output(), options))
        await until(lambda: (options.folder / "embeddings-00000.jsonl").exists())
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        first = (options.folder / "embeddings-00000.safetensors").read_bytes()
        (options.folder / "embeddings-00009.safetensors").write_bytes(b"half a shard")
        assert await run_embed(client, Output(), options) == OK
        assert [row["index"] for row in rows_of(options.folder)] == list(range(COUNT))
        assert (options.folder / "embeddings-00000.safetensors").read_bytes() == first
        found = vectors(options.folder, f"{model.num_layers}.mean")
        np.testing.assert_allclose(found, wanted(model, drawn), rtol=1e-5, atol=1e-5)
        assert len((await files.api.client.get("/jobs")).json()["data"]) == 1
        called = [len(device.calls) for device in files.api.devices]
        assert await run_embed(client, Output(), options) == OK
        assert [len(device.calls) for device in files.api.devices] == called, "nothing was computed twice"


async def test_what_is_refused_is_in_the_list_and_nothing_else_suffers(
    model: Esm2, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fasta = tmp_path / "in.fasta"
    fasta.write_text(f">good\nMKT\n>bad\nMK1\n>long\n{'A' * 1023}\n>gap\nM-K\n")
    async with serving(model, tmp_path) as (_, client):
        assert await run_embed(client, Output(), EmbedOptions(fasta, tmp_path / "out")) == PARTLY_FAILED
        good, bad, long, gap = rows_of(tmp_path / "out")
        assert good["row"] == 0 and "row" not in bad
        assert [one["error"]["code"] for one in (bad, long, gap)] == [
            "sequence_invalid",
            "sequence_too_long",
            "sequence_invalid",
        ]
        assert "bad (number 2): position 3 is '1'" in capsys.readouterr().err
        more = EmbedOptions(fasta, tmp_path / "more", windows=True, remove_gaps=True)
        await run_embed(client, Output(), more)
    assert [("error" in row) for row in rows_of(tmp_path / "more")] == [False, True, False, False]


async def test_a_packed_file_is_sent_as_it_is(model: Esm2, options: EmbedOptions, tmp_path: Path) -> None:
    packed = tmp_path / "in.fasta.gz"
    packed.write_bytes(gzip.compress(options.fasta.read_bytes()))
    async with serving(model, tmp_path) as (_, client):
        assert await run_embed(client, Output(), replace(options, fasta=packed)) == OK
        packed.write_bytes(packed.read_bytes()[:20])
        with pytest.raises(LocalFileError, match="cannot read"):
            await run_embed(client, Output(), replace(options, fasta=packed, folder=tmp_path / "half"))
    assert [row["index"] for row in rows_of(options.folder)] == list(range(COUNT))


async def test_per_residue_each_has_an_array_of_its_own(model: Esm2, tmp_path: Path) -> None:
    fasta = tmp_path / "in.fasta"
    fasta.write_text(">a\nMKTAY\n>b\nMK\n")
    options = EmbedOptions(fasta, tmp_path / "out", layers=[0, -1], pooling=["per_residue", "max"])
    async with serving(model, tmp_path) as (_, client):
        assert await run_embed(client, Output(), options) == OK
    arrays = load_file(tmp_path / "out" / "embeddings-00000.safetensors")
    last = model.num_layers
    assert set(arrays) == {
        *(f"{index}.{layer}.per_residue" for index in (0, 1) for layer in (0, last)),
        "0.max",
        f"{last}.max",
    }
    assert arrays[f"1.{last}.per_residue"].shape == (2, model.hidden_size)


async def test_a_job_that_is_cancelled_ends_the_command(model: Esm2, options: EmbedOptions, tmp_path: Path) -> None:
    async with serving(model, tmp_path, workers=0) as (files, client):
        run = asyncio.create_task(run_embed(client, Output(), options))
        while not (jobs := (await files.api.client.get("/jobs")).json()["data"]):
            await asyncio.sleep(0.01)
        assert jobs[0]["priority"] == "batch"
        await files.api.client.post(f"/jobs/{jobs[0]['id']}/cancel")
        with pytest.raises(ClientError, match="is cancelled: the job was cancelled"):
            await run


async def test_a_folder_is_of_one_file_made_in_one_way(model: Esm2, options: EmbedOptions, tmp_path: Path) -> None:
    async with serving(model, tmp_path) as (_, client):

        async def refused(match: str, changed: EmbedOptions = options) -> None:
            with pytest.raises(UsageError, match=match):
                await run_embed(client, Output(), changed)

        await run_embed(client, Output(), options)
        await refused("pooling differ", replace(options, pooling=["max"]))
        options.fasta.write_text(">other\nMKT\n")
        await refused("sha256 differ")
        await refused("there is no file", replace(options, fasta=options.fasta.with_name("nothing")))
        options.fasta.write_text("MKT\n>a\nMKT\n")
        await refused("before the first header", replace(options, folder=options.folder / "new"))
        options.fasta.write_text("\n")
        await refused("holds no sequence", replace(options, folder=options.folder / "new"))
