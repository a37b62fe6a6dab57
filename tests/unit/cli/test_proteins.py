"""`mochi-serve proteins embed`: every sequence once and in order, on from where a killed run was, refusals by name."""

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
from serve_app.client.errors import OK, PARTLY_FAILED, ClientError, UsageError
from serve_app.client.http import Client
from tests.support.proteins.api import ProteinApi, running_api
from tests.support.proteins.devices import alone
from tests.support.proteins.models import make_esm
from tests.support.proteins.sequences import drawn_sequence

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
    return EmbedOptions(fasta, tmp_path / "out", shard=70, concurrency=3)


@asynccontextmanager
async def client_of(api: ProteinApi) -> AsyncIterator[Client]:
    app = Starlette(routes=[Mount("/esm2", app=api.app)])
    async with Client("http://test", transport=httpx.ASGITransport(app), patience_s=0) as client:
        yield client


async def embed(model: Esm2, options: EmbedOptions, **settings: Any) -> tuple[int, ProteinApi]:
    async with running_api(model, **settings) as api, client_of(api) as client:
        return await run_embed(client, Output(), options), api


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def vectors(folder: Path, name: str) -> Any:
    return np.concatenate([load_file(path)[name] for path in sorted(folder.glob("*.safetensors"))])


def wanted(model: Esm2, sequences: list[ProteinSequence]) -> Any:
    queries = [Query(one.tokens, (-1,), ("mean",)) for one in sequences]
    return np.stack([alone(model, query).embeddings[-1, "mean"] for query in queries])


async def test_every_sequence_is_there_once_in_the_files_order(
    model: Esm2, options: EmbedOptions, drawn: list[ProteinSequence]
) -> None:
    code, _ = await embed(model, options)
    rows = rows_of(options.folder)
    assert code == OK and [row["index"] for row in rows] == list(range(COUNT))
    assert [row["id"] for row in rows] == [f"p{number % 150}" for number in range(COUNT)]
    assert [row["length"] for row in rows] == [len(one) for one in drawn]
    assert [row["row"] for row in rows] == [number % 70 for number in range(COUNT)]
    found = vectors(options.folder, f"{model.num_layers}.mean")
    np.testing.assert_allclose(found, wanted(model, drawn), rtol=1e-5, atol=1e-5)


async def test_a_run_that_was_cut_off_goes_on_and_ends_as_one_that_was_not(
    model: Esm2, options: EmbedOptions, drawn: list[ProteinSequence]
) -> None:
    async with running_api(model, count=1) as api, client_of(api) as client:
        device = api.devices[0]

        class Cut(Output):
            """The server breaks when the first shard is whole."""

            def message(self, text: str) -> None:
                if (options.folder / "embeddings-00000.jsonl").exists():
                    device.fails = True

        with pytest.raises(ClientError):
            await run_embed(client, Cut(), options)
    first = (options.folder / "embeddings-00000.safetensors").read_bytes()
    assert len(rows_of(options.folder)) in (70, 140)
    (options.folder / "embeddings-00002.safetensors").write_bytes(b"half a shard")
    code, api = await embed(model, options)
    assert code == OK and [row["index"] for row in rows_of(options.folder)] == list(range(COUNT))
    assert (options.folder / "embeddings-00000.safetensors").read_bytes() == first
    found = vectors(options.folder, f"{model.num_layers}.mean")
    np.testing.assert_allclose(found, wanted(model, drawn), rtol=1e-5, atol=1e-5)
    again, api = await embed(model, options)
    assert again == OK and not any(device.calls for device in api.devices), "nothing was computed twice"


async def test_what_is_refused_is_in_the_list_and_nothing_else_suffers(
    model: Esm2, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fasta = tmp_path / "in.fasta"
    fasta.write_text(f">good\nMKT\n>bad\nMK1\n>long\n{'A' * 1023}\n>gap\nM-K\n")
    code, _ = await embed(model, EmbedOptions(fasta, tmp_path / "out"))
    assert code == PARTLY_FAILED
    good, bad, long, gap = rows_of(tmp_path / "out")
    assert good["row"] == 0 and "row" not in bad
    assert [one["error"]["code"] for one in (bad, long, gap)] == [
        "sequence_invalid",
        "sequence_too_long",
        "sequence_invalid",
    ]
    assert "bad (number 2): position 3 is '1'" in capsys.readouterr().err
    code, _ = await embed(model, EmbedOptions(fasta, tmp_path / "more", windows=True, remove_gaps=True))
    assert [("error" in row) for row in rows_of(tmp_path / "more")] == [False, True, False, False]


async def test_per_residue_each_has_an_array_of_its_own(model: Esm2, tmp_path: Path) -> None:
    fasta = tmp_path / "in.fasta"
    fasta.write_text(">a\nMKTAY\n>b\nMK\n")
    code, _ = await embed(model, EmbedOptions(fasta, tmp_path / "out", layers=[0, -1], pooling=["per_residue", "max"]))
    arrays = load_file(tmp_path / "out" / "embeddings-00000.safetensors")
    last = model.num_layers
    assert code == OK and set(arrays) == {
        *(f"{index}.{layer}.per_residue" for index in (0, 1) for layer in (0, last)),
        "0.max",
        f"{last}.max",
    }
    assert arrays[f"1.{last}.per_residue"].shape == (2, model.hidden_size)


async def test_a_batch_that_is_too_much_is_halved(model: Esm2, options: EmbedOptions) -> None:
    code, _ = await embed(model, options, max_request_tokens=2_048, max_body_bytes=10_000)
    assert code == OK and len(rows_of(options.folder)) == COUNT
    long = options.fasta.with_name("long.fasta")
    long.write_text("".join(f">x{number}\n{'M' * 1000}\n" for number in range(9)))
    code, _ = await embed(model, replace(options, fasta=long, folder=options.folder / "long"), max_request_tokens=2_048)
    assert code == OK


async def test_a_folder_is_of_one_file_made_in_one_way(model: Esm2, options: EmbedOptions) -> None:
    await embed(model, options)
    with pytest.raises(UsageError, match="pooling differ"):
        await embed(model, replace(options, pooling=["max"]))
    options.fasta.write_text(">other\nMKT\n")
    with pytest.raises(UsageError, match="sha256 differ"):
        await embed(model, options)
    with pytest.raises(UsageError, match="there is no file"):
        await embed(model, replace(options, fasta=options.fasta.with_name("nothing")))
    options.fasta.write_text("MKT\n>a\nMKT\n")
    with pytest.raises(UsageError, match="before the first header"):
        await embed(model, replace(options, folder=options.folder / "new"))
