"""A whole server with proteins: the same embeddings, to the last bit, whatever is killed while a file is embedded."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.commands import started
from tests.support.proteins.models import make_esm
from tests.support.proteins.sequences import drawn_sequence
from tests.support.servers.server import END_S, Server, running_server, title_of

COUNT = 400
FILE = 20_000
PARTS_OF = 100
EMBEDDER = "ray::ServeReplica:proteins:ProteinEmbedder"
INGRESS = "ray::ServeReplica:proteins:ProteinIngress"
FILES = "ray::ServeReplica:proteins:ProteinFiles"
REGISTRY = "ray::JobRegistry"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("proteins")
    environ = {
        "MOCHI_SERVE__PROTEINS__SOURCE": str(make_esm(folder / "esm", layers=6, hidden=160, heads=20)),
        "MOCHI_SERVE__PROTEINS__REPLICAS": "2",
        "MOCHI_SERVE__PROTEINS__TORCH_THREADS": "1",
        "MOCHI_SERVE__PROTEINS__PART_SEQUENCES": str(PARTS_OF),
    }
    with running_server(folder / "server", environ, until="/esm2/health") as server:
        yield server


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fasta") / "in.fasta"
    path.write_text("".join(f">p{i}\n{drawn_sequence(10 + i % 190, i).text}\n" for i in range(COUNT)))
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "in.fasta"
    path.write_text("".join(f">p{i}\n{drawn_sequence(5 + i % 20, i).text}\n" for i in range(FILE)))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("embeddings-")}


def embedded(server: Server, fasta: Path, folder: Path, kill: tuple[str, ...] = (), every: int = 1) -> dict[str, bytes]:
    """What the command writes while processes with these titles are killed, one after `every` further shards."""
    command = started(server.url, "proteins", "embed", str(fasta), "-o", str(folder))
    try:
        for number, title in enumerate(kill):
            deadline = time.monotonic() + END_S
            while len(list(folder.glob("*.jsonl"))) < every * number + 1 and command.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert command.poll() is None, "it was done before all were killed"
            victims = [process for process in server.descendants() if title in title_of(process)]
            assert victims, f"no process {title} runs"
            victims[0].kill()
        _, told = command.communicate(timeout=1200)
    finally:
        command.kill()
    assert command.returncode == 0, told
    return files(folder)


def test_nothing_is_lost_and_no_bit_differs_when_replicas_are_killed(
    server: Server, fasta: Path, tmp_path: Path
) -> None:
    calm = embedded(server, fasta, tmp_path / "calm")
    assert len(calm) == 2 * COUNT // PARTS_OF
    assert embedded(server, fasta, tmp_path / "stormy", kill=(EMBEDDER, INGRESS, EMBEDDER)) == calm


def test_a_large_file_is_embedded_once_whatever_is_killed(server: Server, large: Path, tmp_path: Path) -> None:
    calm = embedded(server, large, tmp_path / "calm")
    kill = (FILES, REGISTRY, EMBEDDER, FILES, REGISTRY)
    stormy = embedded(server, large, tmp_path / "stormy", kill=kill, every=30)
    assert stormy == calm
    rows = [json.loads(line) for name in sorted(stormy) if name.endswith("jsonl") for line in stormy[name].splitlines()]
    assert [(row["index"], row["id"]) for row in rows] == [(n, f"p{n}") for n in range(FILE)]
    assert not any("error" in row for row in rows)


def test_both_applications_answer_at_one_address(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=END_S) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/esm2/health").json()["logical_devices"] == 2
        assert client.get("/esm2/nothing").json()["error"]["code"] == "unknown_url"
        page = client.get("/metrics").text
        assert 'mochi_serve_devices{application="proteins",breaker="closed"} 2' in page
        assert "mochi_serve_protein_tokens_total" in page
