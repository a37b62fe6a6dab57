"""Models that are written into the folder from which they load fastest."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deployments.dtypes import DtypeName
from deployments.errors import PermanentError
from deployments.messages import Stage
from deployments.mochi.weights.loading import load_text_encoder, load_transformer, load_vae
from deployments.mochi.weights.prepare import PAGE_BYTES, Prepared, Wanted, prepare_model
from deployments.settings import ModelSettings
from deployments.storage.fetching.chunk_list import CHUNK_LIST, ChunkList
from deployments.storage.models.file_hashes import listed_hashes
from deployments.storage.models.layout import FolderFiles, shard_tensors
from deployments.storage.models.store import model_fingerprint, model_folder
from deployments.storage.models.weight_files import PARTS, STEMS
from deployments.storage.object_store import Bucket
from tests.support.workers.fakes import SHAPES, worker_settings
from tests.support.workers.memory_store import MemoryStore
from tests.support.workers.published_model import published_model

CPU = torch.device("cpu")
FILES = {
    "text_encoder": "text_encoder/model.safetensors",
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_model(tmp_path_factory.mktemp("published"), positions_seed=1)


def prepare(source: Path, target: Path, dtype: DtypeName = "bfloat16", **options: Any) -> Prepared:
    wanted = Wanted(dict.fromkeys(STEMS, dtype), options.pop("vae_encoder", False))
    return prepare_model(source, target, wanted, **options)


def loaded(folder: Path, dtype: DtypeName) -> list[Any]:
    _, encoder = load_text_encoder(folder, dtype, CPU)
    return [encoder, load_transformer(folder, dtype, CPU), load_vae(folder, dtype, CPU)]


def choice(source: str, dtype: DtypeName) -> ModelSettings:
    return worker_settings(Stage.SAMPLING).model.model_copy(update={"source": source, "dtype": dtype})


def no_bucket(name: str) -> Bucket:
    raise AssertionError(f"bucket {name} was opened")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_prepared_model_is_the_source_bit_for_bit(dtype: DtypeName, published: Path, tmp_path: Path) -> None:
    done = prepare(published, tmp_path / "m", dtype)
    for prepared, source in zip(loaded(tmp_path / "m", dtype), loaded(published, dtype), strict=True):
        assert prepared.state_dict().keys() == source.state_dict().keys()
        for name, tensor in prepared.state_dict().items():
            other = source.state_dict()[name]
            assert tensor.dtype == other.dtype and torch.equal(tensor, other), name
    assert done.nbytes == {part: (tmp_path / "m" / file).stat().st_size for part, file in FILES.items()}
    for small in ("model_index.json", "transformer/config.json", "tokenizer/tokenizer.json", "README.md"):
        assert (tmp_path / "m" / small).read_bytes() == (published / small).read_bytes()


def test_each_part_is_one_file_without_what_is_not_used(published: Path, tmp_path: Path) -> None:
    prepare(published, tmp_path / "m")
    files = {str(path.relative_to(tmp_path / "m")) for path in tmp_path.rglob("m/*/*") if "tokenizer" not in str(path)}
    assert files == {*FILES.values(), "scheduler/scheduler_config.json"} | {f"{part}/config.json" for part in FILES}
    transformer = load_file(tmp_path / "m" / FILES["transformer"])
    kinds = {name: tensor.dtype for name, tensor in transformer.items()}
    assert kinds.pop("pos_frequencies") == torch.float32 and set(kinds.values()) == {torch.bfloat16}
    assert all(name.startswith("decoder.") for name in load_file(tmp_path / "m" / FILES["vae"]))
    for file in FILES.values():
        for name, info in shard_tensors(FolderFiles(tmp_path / "m"), file).items():
            aligned = PAGE_BYTES if info.nbytes % PAGE_BYTES == 0 else 2
            assert info.offset % aligned == 0, name
    prepare(published, tmp_path / "whole", vae_encoder=True)
    whole = load_file(tmp_path / "whole" / FILES["vae"])
    assert whole.keys() == load_file(SHAPES / FILES["vae"]).keys()


def test_dtypes_may_differ_by_part(published: Path, tmp_path: Path) -> None:
    dtypes: dict[str, DtypeName] = {**dict.fromkeys(STEMS, "bfloat16"), "text_encoder": "float32"}
    prepare_model(published, tmp_path / "m", Wanted(dtypes))
    assert load_file(tmp_path / "m" / FILES["text_encoder"])["shared.weight"].dtype == torch.float32
    assert load_file(tmp_path / "m" / FILES["vae"])["decoder.conv_in.weight"].dtype == torch.bfloat16


def test_checksums_are_of_all_files_and_are_checked(published: Path, tmp_path: Path) -> None:
    folder = prepare(published, tmp_path / "m").folder
    listed = listed_hashes((folder / "SHA256SUMS").read_text())
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert listed.keys() == there - {"SHA256SUMS"}
    for name, sha256 in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256
    chunks = ChunkList.parse((folder / CHUNK_LIST).read_bytes())
    assert {name: chunks.files[name] for name in FILES.values()} == {
        name: (listed[name],) for name in FILES.values() if (folder / name).stat().st_size <= chunks.chunk_bytes
    }
    cache = tmp_path / "cache"
    assert model_folder(choice(str(folder), "bfloat16"), PARTS, no_bucket, cache) == folder
    path = folder / FILES["transformer"]
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(PermanentError, match=rf"{path} is damaged: its SHA-256"):
        model_folder(choice(str(folder), "bfloat16"), PARTS, no_bucket, cache)


def test_it_serves_from_a_bucket(published: Path, tmp_path: Path) -> None:
    folder = prepare(published, tmp_path / "m").folder
    store = MemoryStore()
    for path in folder.rglob("*"):
        if path.is_file():
            store.objects[f"mochi/{path.relative_to(folder)}"] = path.read_bytes()
    fetched = model_folder(choice("s3://models/mochi", "bfloat16"), PARTS[1:], lambda name: store, tmp_path / "cache")
    assert model_fingerprint(fetched, PARTS, "bfloat16") == model_fingerprint(folder, PARTS, "bfloat16")
    assert torch.equal(
        load_transformer(fetched, "bfloat16", CPU).pos_frequencies,
        load_transformer(published, "float32", CPU).pos_frequencies,
    )


def test_a_prepared_model_may_be_prepared_again(published: Path, tmp_path: Path) -> None:
    prepare(published, tmp_path / "once")
    prepare(tmp_path / "once", tmp_path / "twice")
    sums = [(tmp_path / name / "SHA256SUMS").read_text() for name in ("once", "twice")]
    assert sums[0] == sums[1]


@pytest.mark.parametrize("fill", [lambda path: path.write_text(""), lambda path: (path / "x").mkdir(parents=True)])
def test_nothing_is_overwritten(fill: Callable[[Path], object], published: Path, tmp_path: Path) -> None:
    fill(tmp_path / "m")
    with pytest.raises(PermanentError, match=rf"{tmp_path}/m is not empty; name a new folder") as caught:
        prepare(published, tmp_path / "m")
    assert caught.value.code == "target_unusable"
    (tmp_path / "empty").mkdir()
    assert prepare(published, tmp_path / "empty").folder == tmp_path / "empty"


def test_room_is_looked_at_before(published: Path, tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=rf"{tmp_path} has 0.0 GB free, and the model takes \d\.\d GB") as caught:
        prepare(published, tmp_path / "m", free=lambda folder: 10**6)
    assert caught.value.code == "target_unusable" and not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(published: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PermanentError, match=rf"{tmp_path}/file/m cannot be") as caught:
        prepare(published, tmp_path / "file" / "m")
    assert caught.value.code == "target_unusable"


def test_an_error_halfway_leaves_nothing(published: Path, tmp_path: Path) -> None:
    def fail(part: str, done: int, total: int) -> None:
        if part == "vae" and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(published, tmp_path / "m", progress=fail)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_no_model_and_the_next_removes_it(published: Path, tmp_path: Path) -> None:
    """It is written in a folder whose lock the kernel has released."""
    left = tmp_path / ".m-abcdefgh"
    (left / "model/transformer").mkdir(parents=True)
    (left / "model/transformer/config.json").write_text("{")
    (left / ".lock").touch()
    folder = prepare(published, tmp_path / "m").folder
    assert list(tmp_path.iterdir()) == [folder]
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "MochiPipeline"


def test_progress_goes_up_to_all_bytes_of_each_part(published: Path, tmp_path: Path) -> None:
    told: dict[str, list[tuple[int, int]]] = {}
    done = prepare(published, tmp_path / "m", progress=lambda part, *counts: told.setdefault(part, []).append(counts))
    assert list(told) == list(FILES)
    for part, counts in told.items():
        assert counts == sorted(counts) and counts[-1] == (done.nbytes[part], done.nbytes[part])
