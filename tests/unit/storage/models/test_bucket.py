"""Models from a bucket: what is fetched, what is kept, and what is said when that fails."""

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from deployments.dtypes import DtypeName
from deployments.errors import PermanentError, StorageUnavailableError, TransientError
from deployments.storage.fetching.chunk_list import CHUNK_LIST, ChunkHasher, ChunkList
from deployments.storage.models.bucket import FetchOptions, fetch_model
from deployments.storage.models.file_hashes import HashRecord
from deployments.storage.models.layout import FolderFiles, shard_tensors
from deployments.storage.models.positions import KEPT, exact_positions
from deployments.storage.object_store import ObjectRange
from tests.support.workers.memory_store import MemoryStore
from tests.support.workers.published_model import published_model

SOURCE = "s3://models/mochi/preview"
PREFIX = "mochi/preview/"
PARTS = ("scheduler", "transformer")
SHARDS = [f"transformer/diffusion_pytorch_model.bf16-0000{i}-of-00002.safetensors" for i in (1, 2)]
FULL = "transformer/diffusion_pytorch_model-00002-of-00003.safetensors"
"""Has the positions in float32."""
OPTIONS = FetchOptions(chunk_bytes=50_000, pauses_s=(0, 0))


class Bucket(MemoryStore):
    """Counts the bytes that are read of each file, and asks before each range whether it may go on."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.read: Counter[str] = Counter()
        self._counting = threading.Lock()
        self.before: Callable[[str, int], object] = lambda name, offset: None
        for path in folder.rglob("*"):
            if path.is_file():
                self.add(f"{PREFIX}{path.relative_to(folder)}", path.read_bytes(), "")

    @contextmanager
    def open_range(self, key: str, offset: int, length: int) -> Iterator[ObjectRange]:
        name = key.removeprefix(PREFIX)
        self.before(name, offset)
        with super().open_range(key, offset, length) as found:
            with self._counting:
                self.read[name] += min(length, len(self.objects[key]) - offset)
            yield found

    def size(self, name: str) -> int:
        return len(self.objects[PREFIX + name])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_model(tmp_path_factory.mktemp("published"))


@pytest.fixture
def bucket(published: Path) -> Bucket:
    return Bucket(published)


def fetch(
    bucket: MemoryStore,
    cache: Path,
    options: FetchOptions = OPTIONS,
    parts: Sequence[str] = PARTS,
    dtype: DtypeName = "bfloat16",
) -> Path:
    return fetch_model(SOURCE, bucket, PREFIX.strip("/"), parts, dtype, cache, HashRecord(cache / "hashes"), options)


def contents(folder: Path) -> dict[str, bytes]:
    """Of what came from the bucket as it is there."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    files = (path for path in files if path != folder / KEPT)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def wanted(published: Path) -> dict[str, bytes]:
    names = ["model_index.json", "scheduler/scheduler_config.json", "transformer/config.json", *SHARDS]
    names.append("transformer/diffusion_pytorch_model.safetensors.index.bf16.json")
    return {name: (published / name).read_bytes() for name in names}


def test_the_files_of_one_variant_are_fetched_and_of_the_other_the_positions(
    bucket: Bucket, published: Path, tmp_path: Path
) -> None:
    folder = fetch(bucket, tmp_path)
    assert contents(folder) == wanted(published)
    index = "transformer/diffusion_pytorch_model.safetensors.index.json"
    assert set(bucket.read) - set(wanted(published)) == {index, FULL}
    full = FolderFiles(published)
    positions = shard_tensors(full, FULL)["pos_frequencies"]
    first = min(info.offset for info in shard_tensors(full, FULL).values())
    assert bucket.read[FULL] == first + positions.nbytes < bucket.size(FULL) / 10
    kept = exact_positions(FolderFiles(folder), "bfloat16")
    assert kept is not None and kept.data == full.read(FULL, positions.offset, positions.nbytes)
    headers = sum(bucket.read[name] - bucket.size(name) for name in SHARDS)
    assert 0 < headers < 50_000  # read before, to see whether they are Mochi's
    bucket.read.clear()
    assert fetch(bucket, tmp_path) == folder
    assert not bucket.read


def test_another_part_and_the_other_variant_come_into_the_same_folder(bucket: Bucket, tmp_path: Path) -> None:
    folder = fetch(bucket, tmp_path)
    bucket.read.clear()
    assert fetch(bucket, tmp_path, parts=("vae",), dtype="float32") == folder
    assert {name for name in bucket.read if name.endswith("safetensors")} == {"vae/diffusion_pytorch_model.safetensors"}


def test_contents_that_changed_are_fetched_into_another_folder(bucket: Bucket, published: Path, tmp_path: Path) -> None:
    before = fetch(bucket, tmp_path)
    config = (published / "transformer/config.json").read_bytes() + b"\n"
    bucket.add(f"{PREFIX}transformer/config.json", config, "")
    bucket.read.clear()
    after = fetch(bucket, tmp_path)
    assert after != before
    assert contents(before) == wanted(published)  # for replicas that are loading it
    assert contents(after) == wanted(published) | {"transformer/config.json": config}
    assert all(bucket.read[name] < bucket.size(name) for name in SHARDS)  # their headers alone
    bucket.add(f"{PREFIX}transformer/config.json", config + b"\n", "")
    last = fetch(bucket, tmp_path, replace(OPTIONS, unused_s=0))
    assert not before.exists() and not after.exists() and contents(last)


def test_a_fetch_that_was_cut_off_goes_on_where_it_stopped(bucket: Bucket, published: Path, tmp_path: Path) -> None:
    ranges = 0

    def cut_off(name: str, offset: int) -> None:
        nonlocal ranges
        ranges += name in SHARDS and offset > 0
        if ranges > 3:
            raise StorageUnavailableError("killed")

    bucket.before = cut_off
    with pytest.raises(StorageUnavailableError):
        fetch(bucket, tmp_path, replace(OPTIONS, pauses_s=()))
    assert not [path for path in tmp_path.rglob("*.safetensors") if not path.name.startswith(".")]
    fetched = sum(bucket.read[name] for name in SHARDS)
    assert fetched > 100_000
    bucket.before = lambda name, offset: None
    folder = fetch(bucket, tmp_path)
    assert contents(folder) == wanted(published)
    again = sum(bucket.read[name] for name in SHARDS) - sum(map(bucket.size, SHARDS))
    assert again < 100_000  # headers, twice; no range came twice
    assert not list(tmp_path.rglob(".partial-*"))


def test_half_files_of_others_that_are_gone_are_removed(bucket: Bucket, tmp_path: Path) -> None:
    """Those of an earlier release, and those of a state that is no more; the lock tells that nobody works on them."""
    home = fetch(bucket, tmp_path).parent
    (home / ".partial-abc").mkdir()
    (home / "vae").mkdir()
    (home / "0123456789abcdef" / "vae").mkdir(parents=True)
    (home / "0123456789abcdef" / ".used").touch()
    (home / "0123456789abcdef" / "vae" / ".partial-x.safetensors").touch()
    fetch(bucket, tmp_path, parts=("vae",))
    assert not [path for path in home.rglob("*") if path.name.startswith(".partial-")]
    assert not (home / "vae").exists()


def test_a_range_that_fails_is_asked_for_again(bucket: Bucket, published: Path, tmp_path: Path) -> None:
    failures: Counter[tuple[str, int]] = Counter()

    def fail_twice(name: str, offset: int) -> None:
        # Headers are read at other offsets.
        if offset > 0 and offset % OPTIONS.chunk_bytes == 0 and failures[name, offset] < 2:
            failures[name, offset] += 1
            raise StorageUnavailableError("it stopped sending")

    bucket.before = fail_twice
    assert contents(fetch(bucket, tmp_path)) == wanted(published)
    assert set(failures.values()) == {2}


def test_a_store_that_fails_for_long_fails_the_fetch(bucket: Bucket, tmp_path: Path) -> None:
    def fail(name: str, offset: int) -> None:
        if offset >= OPTIONS.chunk_bytes:
            raise StorageUnavailableError("it stopped sending")

    bucket.before = fail
    with pytest.raises(StorageUnavailableError, match="it stopped sending"):
        fetch(bucket, tmp_path)


def test_a_model_that_is_changed_meanwhile_is_fetched_as_it_is_then(
    bucket: Bucket, published: Path, tmp_path: Path
) -> None:
    other = (published / SHARDS[1]).read_bytes()[:-1] + b"\x01"
    key = PREFIX + SHARDS[1]

    def change(name: str, offset: int) -> None:
        if name == SHARDS[1] and offset == OPTIONS.chunk_bytes:
            bucket.objects[key] = other

    bucket.before = change
    folder = fetch(bucket, tmp_path)
    assert contents(folder) == wanted(published) | {SHARDS[1]: other}

    counter = iter(range(3, 256))

    def change_always(name: str, offset: int) -> None:
        if name == SHARDS[1]:
            bucket.objects[key] = other[:-1] + bytes([next(counter)])

    bucket.before = change_always
    bucket.objects[key] = (published / SHARDS[1]).read_bytes()[:-1] + b"\x02"
    with pytest.raises(TransientError, match="was changed while") as caught:
        fetch(bucket, tmp_path)
    assert caught.value.code == "model_changed"


def test_a_file_that_changed_in_the_cache_is_told_and_fetched_again(
    bucket: Bucket, published: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = fetch(bucket, tmp_path)
    path = folder / SHARDS[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    bucket.read.clear()
    with caplog.at_level(logging.WARNING, "ray.serve"):
        assert fetch(bucket, tmp_path) == folder
    assert contents(folder) == wanted(published)
    assert f"{path} is not as it was fetched" in caplog.text
    assert bucket.read[SHARDS[1]] < bucket.size(SHARDS[1])


def test_too_little_room_is_told_before_anything_is_fetched(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=rf"cache of models {tmp_path}/preview-\w+ has 0.0 GB free") as caught:
        fetch(bucket, tmp_path, replace(OPTIONS, free_bytes=lambda folder: 100))
    assert caught.value.code == "cache_unusable"
    assert all(bucket.read[name] < bucket.size(name) for name in SHARDS)


def test_a_cache_that_cannot_be_written_is_named(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(PermanentError, match=rf"{tmp_path}/cache/preview-\w+ cannot be written") as caught:
        fetch(bucket, tmp_path / "cache")
    assert caught.value.code == "cache_unusable"


def test_another_pipeline_is_refused_before_its_weights_are_fetched(bucket: Bucket, tmp_path: Path) -> None:
    bucket.add(f"{PREFIX}model_index.json", b'{"_class_name": "WanPipeline"}', "")
    with pytest.raises(
        PermanentError, match=r"s3://models/mochi/preview/model_index.json is of the class 'WanPipeline'"
    ):
        fetch(bucket, tmp_path)
    assert set(bucket.read) == {"model_index.json"}


def test_positions_that_are_damaged_in_the_cache_are_read_again(bucket: Bucket, tmp_path: Path) -> None:
    kept = fetch(bucket, tmp_path) / KEPT
    whole = kept.read_bytes()
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:100], b""):
        kept.write_bytes(damaged)
        bucket.read.clear()
        fetch(bucket, tmp_path)
        assert kept.read_bytes() == whole and 0 < bucket.read[FULL] < bucket.size(FULL) / 10


def test_that_there_are_no_positions_in_float32_is_asked_once(bucket: Bucket, tmp_path: Path) -> None:
    for name in [key for key in bucket.objects if key.startswith(f"{PREFIX}transformer/diff") and "bf16" not in key]:
        del bucket.objects[name]
    folder = fetch(bucket, tmp_path)
    assert exact_positions(FolderFiles(folder), "bfloat16") is None
    bucket.read.clear()
    assert fetch(bucket, tmp_path) == folder
    assert not bucket.read


def test_positions_that_cannot_be_read_now_fail_the_fetch(bucket: Bucket, published: Path, tmp_path: Path) -> None:
    """A replica without them would make other videos than the rest."""

    def fail(name: str, offset: int) -> None:
        if name == FULL and offset > 0:
            raise StorageUnavailableError("it stopped sending")

    bucket.before = fail
    with pytest.raises(StorageUnavailableError, match="it stopped sending"):
        fetch(bucket, tmp_path)
    assert not list(tmp_path.rglob(Path(KEPT).name))
    bucket.before = lambda name, offset: None
    assert contents(fetch(bucket, tmp_path)) == wanted(published)
    assert list(tmp_path.rglob(Path(KEPT).name))


def test_a_key_that_leads_out_of_the_folder_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    bucket.add(f"{PREFIX}transformer/../../x.json", b"{}", "")
    with pytest.raises(PermanentError, match="outside") as caught:
        fetch(bucket, tmp_path)
    assert caught.value.code == "bad_object_key"


def test_two_replicas_of_one_machine_fetch_once(bucket: Bucket, published: Path, tmp_path: Path) -> None:
    threads = [threading.Thread(target=fetch, args=(bucket, tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    headers = sum(bucket.read[name] - bucket.size(name) for name in SHARDS)
    assert 0 < headers < 50_000


def with_list(bucket: Bucket, chunk_bytes: int = 40_000) -> None:
    """Put a list of chunks beside the model, as `model prepare` does."""
    files = {}
    for name in SHARDS:
        hasher = ChunkHasher(chunk_bytes)
        hasher.update(bucket.objects[PREFIX + name])
        files[name] = hasher.hashes()
    bucket.add(PREFIX + CHUNK_LIST, ChunkList(chunk_bytes, files).encode(), "")


def test_the_models_own_list_says_how_long_chunks_are_and_what_is_in_them(
    bucket: Bucket, published: Path, tmp_path: Path
) -> None:
    with_list(bucket)
    lengths: set[int] = set()

    def note(name: str, offset: int) -> None:
        if name == SHARDS[0]:
            lengths.add(offset)

    bucket.before = note
    folder = fetch(bucket, tmp_path)
    assert contents(folder) == wanted(published)
    assert set(range(0, bucket.size(SHARDS[0]), 40_000)) <= lengths


def test_a_byte_that_changed_in_the_bucket_is_found_by_the_list(bucket: Bucket, tmp_path: Path) -> None:
    with_list(bucket)
    data = bytearray(bucket.objects[PREFIX + SHARDS[1]])
    data[90_000] ^= 1
    bucket.objects[PREFIX + SHARDS[1]] = bytes(data)
    with pytest.raises(
        PermanentError, match=r"00002\.safetensors is damaged: its 40000 bytes from 80000 have the SHA-256 .* upload"
    ) as caught:
        fetch(bucket, tmp_path)
    assert caught.value.code == "model_incomplete"
    assert not [path for path in tmp_path.rglob("*.safetensors") if not path.name.startswith(".")]


def test_a_byte_that_changed_on_the_way_is_asked_for_again(bucket: Bucket, published: Path, tmp_path: Path) -> None:
    with_list(bucket)
    key, whole = PREFIX + SHARDS[1], bucket.objects[PREFIX + SHARDS[1]]

    class OnceDamaged(Bucket):
        damaged = False

        @contextmanager
        def open_range(self, key_: str, offset: int, length: int) -> Iterator[ObjectRange]:
            with super().open_range(key_, offset, length) as found:
                pieces = b"".join(found.chunks)
                if key_ == key and offset == 80_000 and not self.damaged:
                    self.damaged, pieces = True, b"\0" * len(pieces)
                yield ObjectRange(found.etag, iter([pieces]))

    way = OnceDamaged(published)
    way.objects = bucket.objects
    folder = fetch(way, tmp_path)
    assert way.damaged and (folder / SHARDS[1]).read_bytes() == whole


def test_a_file_of_another_size_than_in_the_list_is_told_before_it_is_fetched(bucket: Bucket, tmp_path: Path) -> None:
    with_list(bucket)
    listed = ChunkList.parse(bucket.objects[PREFIX + CHUNK_LIST])
    shorter = ChunkList(listed.chunk_bytes, {name: chunks[:-1] for name, chunks in listed.files.items()})
    bucket.add(PREFIX + CHUNK_LIST, shorter.encode(), "")
    with pytest.raises(PermanentError, match=r"damaged: it has \d+ bytes, which are \d+ chunks, and chunks.json"):
        fetch(bucket, tmp_path)
    bucket.add(PREFIX + CHUNK_LIST, b"{}", "")
    with pytest.raises(PermanentError, match="chunks.json is damaged"):
        fetch(bucket, tmp_path)
    assert all(bucket.read[name] < bucket.size(name) for name in SHARDS)


def test_a_bound_of_the_cache_removes_what_was_used_last_of_all(bucket: Bucket, tmp_path: Path) -> None:
    old = tmp_path / "other" / "state"
    old.mkdir(parents=True)
    (old / ".used").touch()
    (old / "weights").write_bytes(bytes(1_000_000))
    size = sum(map(bucket.size, SHARDS))
    fetch(bucket, tmp_path, replace(OPTIONS, cache_bytes=size + 500_000))
    assert not old.exists()


def test_what_was_fetched_is_not_read_again_to_know_its_hash(bucket: Bucket, published: Path, tmp_path: Path) -> None:
    """The hashes were taken as the bytes came."""
    record = HashRecord(tmp_path / "hashes", kept_from_bytes=1)
    folder = fetch_model(SOURCE, bucket, PREFIX.strip("/"), PARTS, "bfloat16", tmp_path, record, OPTIONS)
    noted = [json.loads(note.read_text()) for note in record.folder.iterdir()]
    assert {note["path"] for note in noted} == {str((folder / name).resolve()) for name in wanted(published)}
    assert all("sha256" not in note for note in noted)
