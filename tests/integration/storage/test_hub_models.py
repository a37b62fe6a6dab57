"""Models from a hub on loopback, by the hub's own library."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deployments.errors import PermanentError
from deployments.messages import Stage
from deployments.settings import LoraSettings
from deployments.storage.models.hub import Hub, Pins, StorePins, check_hub, fetch_from_hub, pin_key
from deployments.storage.models.layout import FolderFiles, shard_tensors
from deployments.storage.models.lora_files import LoraFiles, lora_files
from deployments.storage.models.positions import KEPT, exact_positions
from deployments.storage.models.store import model_folder
from tests.support.servers.hub import HubServer, hub_server
from tests.support.servers.ports import free_ports
from tests.support.workers.fakes import worker_settings
from tests.support.workers.memory_store import MemoryStore
from tests.support.workers.published_model import published_model

MODEL = "genmo/mochi-1-preview"
PARTS = ("scheduler", "transformer")
INDEX = "transformer/diffusion_pytorch_model.safetensors.index.json"
FULL = "transformer/diffusion_pytorch_model-00002-of-00003.safetensors"
SHARDS = [f"transformer/diffusion_pytorch_model.bf16-0000{i}-of-00002.safetensors" for i in (1, 2)]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return published_model(tmp_path / "published")


def fetch(hub: Hub, revision: str | None = None, pins: Pins | None = None) -> Path:
    return fetch_from_hub(MODEL, revision, PARTS, "bfloat16", hub, pins)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_files_of_one_variant_are_fetched(published: Path, tmp_path: Path) -> None:
    with hub_server(MODEL, published) as server:
        folder = fetch(Hub(server.endpoint, tmp_path / "cache"))
        wanted = {
            "model_index.json",
            "scheduler/scheduler_config.json",
            "transformer/config.json",
            "transformer/diffusion_pytorch_model.safetensors.index.bf16.json",
            *SHARDS,
        }
        assert names(folder) == wanted | {KEPT}
        assert set(server.read) == wanted | {INDEX, FULL}
        assert all(server.read[name] == (published / name).stat().st_size for name in wanted)
        server.read.clear()
        assert fetch(Hub(server.endpoint, tmp_path / "cache")) == folder
        assert not server.read


def test_the_positions_are_read_in_float32_by_ranges(published: Path, tmp_path: Path) -> None:
    full = FolderFiles(published)
    tensors = shard_tensors(full, FULL)
    positions = tensors["pos_frequencies"]
    with hub_server(MODEL, published) as server:
        folder = fetch(Hub(server.endpoint, tmp_path / "cache"))
        assert server.read[FULL] == min(info.offset for info in tensors.values()) + positions.nbytes
    kept = exact_positions(FolderFiles(folder), "bfloat16")
    assert kept is not None and kept.data == full.read(FULL, positions.offset, positions.nbytes)
    assert exact_positions(FolderFiles(folder), "float32") is None
    assert load_file(folder / KEPT)["pos_frequencies"].dtype == torch.float32


def test_a_cache_without_the_positions_is_told_unless_the_hub_is_in_reach(published: Path, tmp_path: Path) -> None:
    """Two replicas of one commit, with them and without, would make different videos under one name."""
    with hub_server(MODEL, published) as server:
        hub = Hub(server.endpoint, tmp_path / "cache")
        folder = fetch(hub)
        (folder / KEPT).unlink()
        check_hub(MODEL, folder.name, PARTS, "bfloat16", hub)  # they can be fetched
        fetch(hub)
        assert (folder / KEPT).exists()
        (folder / KEPT).unlink()
    for use in (lambda: fetch(hub), lambda: check_hub(MODEL, None, PARTS, "bfloat16", hub)):
        with pytest.raises(PermanentError, match=rf"lacks {KEPT}, and the hub cannot be reached") as caught:
            use()
        assert caught.value.code == "model_incomplete"
    check_hub(MODEL, None, ("scheduler",), "bfloat16", hub)  # who needs no transformer misses nothing


def test_a_hub_that_gives_no_ranges_is_told(published: Path, tmp_path: Path) -> None:
    with hub_server(MODEL, published) as server:
        server.ranges = False
        with pytest.raises(PermanentError, match=rf"a range of {INDEX} of {MODEL} could not be read .* not 206"):
            fetch(Hub(server.endpoint, tmp_path / "cache"))


async def test_without_a_revision_the_first_commit_is_written_down_and_used_again(
    published: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Inside a running loop, as a replica's constructor is; on another machine too, which has another cache."""
    store = MemoryStore()
    with hub_server(MODEL, published) as server, caplog.at_level(logging.INFO, "ray.serve"):
        first = server.main
        folder = fetch(Hub(server.endpoint, tmp_path / "one"), pins=StorePins(store))
        assert folder.name == first and f"commit {first} is used from now on" in caplog.text
        (published / "README.md").write_bytes(b"a newer model")
        assert server.commit(published) != first
        assert fetch(Hub(server.endpoint, tmp_path / "two"), pins=StorePins(store)).name == first
        assert fetch(Hub(server.endpoint, tmp_path / "one"), "main", StorePins(store)).name == server.main
        store.objects[pin_key(MODEL)] = b"{"
        assert fetch(Hub(server.endpoint, tmp_path / "one"), pins=StorePins(store)).name == server.main


def test_a_hub_out_of_reach_is_no_fault_of_a_model_that_is_here(published: Path, tmp_path: Path) -> None:
    with hub_server(MODEL, published) as server:
        folder = fetch(Hub(server.endpoint, tmp_path / "cache"))
    assert fetch(Hub(server.endpoint, tmp_path / "cache")) == folder


def test_a_hub_out_of_reach_is_told_with_the_cache(tmp_path: Path) -> None:
    hub = Hub(f"http://127.0.0.1:{free_ports(1)[0]}", tmp_path / "cache")
    with pytest.raises(
        PermanentError, match=rf"cannot be reached \(.*\), and {tmp_path}/cache does not hold"
    ) as caught:
        fetch(hub)
    assert caught.value.code == "model_not_found" and "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("model", "revision", "reason"),
    [("genmo/mochi-2", None, "no such model on the hub"), (MODEL, "v9", "has no revision 'v9'")],
)
def test_what_the_hub_does_not_have_is_told(
    model: str, revision: str | None, reason: str, published: Path, tmp_path: Path
) -> None:
    with hub_server(MODEL, published) as server, pytest.raises(PermanentError, match=reason) as caught:
        fetch_from_hub(model, revision, PARTS, "bfloat16", Hub(server.endpoint, tmp_path / "cache"), None)
    assert caught.value.code == "model_not_found"


def test_another_pipeline_is_refused_before_its_weights_are_fetched(published: Path, tmp_path: Path) -> None:
    (published / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    store = MemoryStore()
    with hub_server(MODEL, published) as server:
        with pytest.raises(PermanentError, match=r"model_index.json is of the class 'WanPipeline'"):
            fetch(Hub(server.endpoint, tmp_path / "cache"), pins=StorePins(store))
        assert not [name for name in server.read if name.endswith("safetensors")]
    assert not store.objects


def test_a_start_asks_nobody_for_what_is_here(published: Path, tmp_path: Path) -> None:
    """What became of the newest commit does not matter to who uses another one."""
    with hub_server(MODEL, published) as server:
        hub = Hub(server.endpoint, tmp_path / "cache")
        commit = fetch(hub).name
        (published / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
        server.commit(published)
        check_hub(MODEL, None, PARTS, "bfloat16", hub)
        with pytest.raises(PermanentError, match="'WanPipeline'"):
            check_hub(MODEL, "main", PARTS, "bfloat16", hub)
    check_hub(MODEL, None, PARTS, "bfloat16", hub)
    check_hub(MODEL, commit, PARTS, "bfloat16", hub)


def test_room_and_a_cache_that_cannot_be_written_are_told(published: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with hub_server(MODEL, published) as server:
        with pytest.raises(PermanentError, match=rf"cache of the hub {tmp_path}/cache has 0.0 GB free"):
            fetch(Hub(server.endpoint, tmp_path / "cache", free_bytes=lambda folder: 10))
        with pytest.raises(PermanentError, match=rf"cache of the hub {tmp_path}/file/cache cannot be written"):
            fetch(Hub(server.endpoint, tmp_path / "file" / "cache"))
        assert not server.read


def _folder(server: HubServer, tmp_path: Path) -> Path:
    settings = worker_settings(Stage.SAMPLING).model.model_copy(update={"source": MODEL, "dtype": "bfloat16"})

    def no_bucket(name: str) -> MemoryStore:
        raise AssertionError(f"bucket {name} was opened")

    return model_folder(settings, PARTS[1:], no_bucket, tmp_path, Hub(server.endpoint, tmp_path / "hub"))


def test_a_byte_that_changed_in_the_cache_is_refused(published: Path, tmp_path: Path) -> None:
    """The hub's cache keeps large files under their SHA-256."""
    with hub_server(MODEL, published) as server:
        path = _folder(server, tmp_path) / SHARDS[0]
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.resolve().write_bytes(data)
        with pytest.raises(PermanentError, match=f"{SHARDS[0]} is damaged: its SHA-256"):
            _folder(server, tmp_path)


def test_a_lora_of_the_hub_without_its_samples(tmp_path: Path) -> None:
    published, store = tmp_path / "published", MemoryStore()
    published.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json", "sample.mp4"):
        (published / name).write_bytes(f"the contents of {name}".encode())
    settings = LoraSettings(source="someone/mochi-ink")

    def found(cache: str, settings: LoraSettings = settings) -> LoraFiles:
        hub = Hub(server.endpoint, tmp_path / cache)
        return lora_files("ink", settings, lambda name: store, tmp_path / "own", hub, StorePins(store))

    with hub_server("someone/mochi-ink", published) as server:
        first = found("one")
        assert names(first.weights.parent) == {"adapter_model.safetensors", "adapter_config.json"}
        assert "sample.mp4" not in server.read
        (published / "adapter_model.safetensors").write_bytes(b"newer weights")
        server.commit(published)
        assert found("one").digest == found("two").digest == first.digest  # the first commit is written down
        assert found("one", settings.model_copy(update={"revision": "main"})).digest != first.digest
        with pytest.raises(PermanentError, match=r"model\.loras\.ink: someone/mochi-ink lacks a\.safetensors"):
            found("one", settings.model_copy(update={"weight_name": "a.safetensors"}))
        with pytest.raises(
            PermanentError, match=r"model\.loras\.ink\.source 'someone/else': no such folder and no such"
        ):
            found("one", settings.model_copy(update={"source": "someone/else"}))
    assert found("one").digest == first.digest  # the hub is away
