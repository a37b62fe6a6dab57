"""A whole server with proteins: the same embeddings, to the last bit, whatever is killed while a file is embedded."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.commands import started
from tests.support.proteins.models import make_esm
from tests.support.proteins.sequences import drawn_sequence
from tests.support.servers.server import END_S, Server, running_server

COUNT = 400
EMBEDDER = "ray::ServeReplica:proteins:ProteinEmbedder"
INGRESS = "ray::ServeReplica:proteins:ProteinIngress"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("proteins")
    environ = {
        "MOCHI_SERVE__PROTEINS__SOURCE": str(make_esm(folder / "esm", layers=6, hidden=160, heads=20)),
        "MOCHI_SERVE__PROTEINS__REPLICAS": "2",
        "MOCHI_SERVE__PROTEINS__TORCH_THREADS": "1",
    }
    with running_server(folder / "server", environ, until="/esm2/health") as server:
        yield server


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fasta") / "in.fasta"
    path.write_text("".join(f">p{i}\n{drawn_sequence(10 + i % 190, i).text}\n" for i in range(COUNT)))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("embeddings-")}


def embedded(server: Server, fasta: Path, folder: Path, kill: tuple[str, ...] = ()) -> dict[str, bytes]:
    """What the command writes while processes with these titles are killed one after the other."""
    command = started(server.url, "proteins", "embed", str(fasta), "-o", str(folder), "--shard", "100")
    try:
        for number, title in enumerate(kill):
            deadline = time.monotonic() + END_S
            while len(files(folder) if folder.exists() else ()) < 2 * number + 2 and command.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            victims = [process for process in server.descendants() if title in " ".join(process.cmdline())]
            assert victims, f"no process {title} runs"
            victims[0].kill()
        _, told = command.communicate(timeout=600)
    finally:
        command.kill()
    assert command.returncode == 0, told
    return files(folder)


def test_nothing_is_lost_and_no_bit_differs_when_replicas_are_killed(
    server: Server, fasta: Path, tmp_path: Path
) -> None:
    calm = embedded(server, fasta, tmp_path / "calm")
    assert len(calm) == 8
    assert embedded(server, fasta, tmp_path / "stormy", kill=(EMBEDDER, INGRESS, EMBEDDER)) == calm


def test_both_applications_answer_at_one_address(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=END_S) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/esm2/health").json()["logical_devices"] == 2
        assert client.get("/esm2/nothing").json()["error"]["code"] == "unknown_url"
        page = client.get("/metrics").text
        assert 'mochi_serve_devices{application="proteins",breaker="closed"} 2' in page
        assert "mochi_serve_protein_tokens_total" in page
