"""The decoder's replica: latents in, mp4 and pictures out."""

from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest
import torch
from PIL import Image

from deployments.decoder.mp4_encoder import Mp4Writer
from deployments.decoder.spritesheet import Spritesheet
from deployments.decoder.video_decoder import OpenWriter, VideoDecoder
from deployments.errors import StorageUnavailableError, TransientError
from deployments.keys import checkpoint_key, latents_key, video_key
from deployments.messages import Event, Failed, Finished, InputUnusable, Progress, Stage, Started, VideoSpec
from deployments.mochi.preview import PreviewFit, from_json, preview_key
from deployments.mochi.streaming_decode import StreamingDecoder, denormalise, to_uint8
from deployments.mochi.weights.loading import load_vae
from deployments.replica.running_task import Timing
from deployments.storage.work_files import WorkLabel, pack
from deployments.storage.work_revision import work_revision
from tests.support.workers.fakes import (
    SHAPES,
    ReportLog,
    connections,
    model_without_map,
    spec,
    task,
    undecorated,
    worker_settings,
)
from tests.support.workers.memory_store import MemoryStore

MAP = preview_key("abc")
PICTURES = [video_key("video_1", "thumbnail"), video_key("video_1", "spritesheet")]


@cache
def revision() -> str:
    model = worker_settings(Stage.DECODING).model
    return work_revision(
        model, model.dtype, SHAPES, Stage.SAMPLING, connections(ReportLog(), MemoryStore()).open_bucket
    )


def sampled(shape: tuple[int, ...] = (12, 3, 8, 8)) -> MemoryStore:
    store = MemoryStore()
    put_latents(store, shape)
    return store


def put_latents(
    store: MemoryStore, shape: tuple[int, ...] = (12, 3, 8, 8), video: VideoSpec | None = None, transformer: str = "abc"
) -> torch.Tensor:
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    label = WorkLabel(latents_key("video_1"), revision(), "float32", video or spec())
    store.objects[label.key] = pack(label, {"latents": latents}, transformer=transformer)
    return latents


def replica(
    log: ReportLog,
    store: MemoryStore,
    source: Path = SHAPES,
    timing: Timing = Timing(),
    open_writer: OpenWriter = Mp4Writer,
) -> Any:
    settings = worker_settings(Stage.DECODING, source)
    return undecorated(VideoDecoder)(settings, connections(log, store), timing, open_writer)


@pytest.fixture
def unmapped(tmp_path: Path) -> Path:
    """The included model without its preview map."""
    return model_without_map(tmp_path)


async def test_pictures_then_video_then_finished(tmp_path: Path) -> None:
    log, store = ReportLog(), sampled()
    await replica(log, store).run(task(Stage.DECODING))
    assert store.written == [*PICTURES, video_key("video_1")]
    assert store.types == {**dict.fromkeys(PICTURES, "image/webp"), video_key("video_1"): "video/mp4"}
    assert Image.open(BytesIO(store.objects[video_key("video_1", "thumbnail")])).size == (64, 64)
    assert Image.open(BytesIO(store.objects[video_key("video_1", "spritesheet")])).size == (4 * 64, 3 * 64)
    (tmp_path / "v.mp4").write_bytes(store.objects[video_key("video_1")])
    assert imageio_ffmpeg.count_frames_and_secs(tmp_path / "v.mp4")[0] == 13
    started, finished = log.ends
    assert isinstance(started, Started)
    assert isinstance(finished, Finished) and set(finished.seconds) == {"load", "decode", "mp4", "store"}
    assert all(event.total == 13 for event in log.events if isinstance(event, Progress))
    assert 0 < finished.device_s <= finished.seconds["decode"] + finished.seconds["mp4"] + 1e-3


async def test_a_task_done_twice_gives_the_same_bytes() -> None:
    store = sampled()
    decoder = replica(ReportLog(), store)
    await decoder.run(task(Stage.DECODING))
    first = dict(store.objects)
    await decoder.run(task(Stage.DECODING))
    assert store.objects == first


async def test_a_stop_kills_ffmpeg_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    killed: list[Mp4Writer] = []

    class Noted(Mp4Writer):
        def kill(self) -> None:
            super().kill()
            killed.append(self)

    def at_progress(event: Event) -> bool:
        return isinstance(event, Progress)

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    log, store, video = ReportLog(stop_at=at_progress), MemoryStore(), spec(num_frames=595)
    put_latents(store, (12, 100, 8, 8), video)
    await replica(log, store, open_writer=Noted).run(task(Stage.DECODING, video))
    assert store.written == []
    assert [type(event) for event in log.ends] == [Started]
    (writer,) = killed
    assert not writer.is_running
    assert list(tmp_path.iterdir()) == []


async def test_an_mp4_that_fails_halfway_fails_the_job_and_not_the_next() -> None:
    broken = True

    class Breaking(Mp4Writer):
        def write(self, frames: torch.Tensor) -> None:
            if broken and len(frames) == 6:
                raise TransientError("mp4_failed", "no space left")
            super().write(frames)

    log, store, other = ReportLog(), sampled(), sampled()
    decoder = replica(log, store, open_writer=Breaking)
    await decoder.run(task(Stage.DECODING))
    started, failed = log.ends
    assert isinstance(started, Started) and isinstance(failed, Failed)
    assert (failed.code, failed.transient) == ("mp4_failed", True)
    assert store.written == []
    broken = False
    await decoder.run(task(Stage.DECODING))
    await replica(ReportLog(), other).run(task(Stage.DECODING))
    assert store.objects == other.objects


class Watched(MemoryStore):
    """Calls `on_put` with the key of each write before it is done."""

    def __init__(self, on_put: Callable[[str], None]) -> None:
        super().__init__()
        self._on_put = on_put

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        self._on_put(key)
        await super().put(key, data, content_type)


async def test_a_stop_while_the_poster_is_written_keeps_the_video_out() -> None:
    def stop(key: str) -> None:
        decoder.worker.tasks["lease_1"].stop()

    log, store = ReportLog(), Watched(stop)
    put_latents(store)
    decoder = replica(log, store)
    await decoder.run(task(Stage.DECODING))
    assert store.written == [video_key("video_1", "thumbnail")]
    assert [type(event) for event in log.ends] == [Started]


async def test_the_work_files_are_left_to_the_registry() -> None:
    """A job whose video is there does not fail because of what is only swept up."""
    store = sampled()
    store.objects[checkpoint_key("video_1", 5)] = b"state"
    await replica(ReportLog(), store).run(task(Stage.DECODING))
    assert [change for change, _ in store.changes] == ["put", "put", "put"]


def latents_of_another_size(store: MemoryStore) -> str:
    put_latents(store, (12, 3, 8, 4))
    return "(12, 3, 8, 4); the job needs (12, 3, 8, 8)"


def latents_of_another_request(store: MemoryStore) -> str:
    put_latents(store, video=spec(seed=2))
    return "made for another request"


def latents_that_are_no_numbers(store: MemoryStore) -> str:
    label = WorkLabel(latents_key("video_1"), revision(), "float32", spec())
    store.objects[label.key] = pack(label, {"latents": torch.full((12, 3, 8, 8), torch.nan)})
    return "not finite"


def no_latents(store: MemoryStore) -> str:
    del store.objects[latents_key("video_1")]
    return latents_key("video_1")


@pytest.mark.parametrize(
    "spoil", [latents_of_another_size, latents_of_another_request, latents_that_are_no_numbers, no_latents]
)
async def test_latents_that_do_not_fit_are_to_be_made_again(spoil: Callable[[MemoryStore], str]) -> None:
    log, store = ReportLog(), sampled()
    why = spoil(store)
    await replica(log, store).run(task(Stage.DECODING))
    end = log.ends[-1]
    assert isinstance(end, InputUnusable) and why in end.reason
    assert store.written == []


@torch.no_grad()
def sheet_by_hand(latents: torch.Tensor) -> bytes:
    vae, sheet = load_vae(SHAPES, "float32", torch.device("cpu")), Spritesheet(13, 64, 64)
    for piece in StreamingDecoder(vae).decode(denormalise(vae, latents)):
        sheet.add(to_uint8(piece))
    return sheet.webp()


async def test_the_spritesheet_is_of_the_frames_of_the_video() -> None:
    store = MemoryStore()
    latents = put_latents(store)
    await replica(ReportLog(), store).run(task(Stage.DECODING))
    assert store.objects[video_key("video_1", "spritesheet")] == sheet_by_hand(latents)


async def test_a_store_that_is_away_for_a_moment_costs_no_work() -> None:
    refusals = dict.fromkeys([*PICTURES, video_key("video_1")], 1)

    def down(key: str) -> bool:
        refusals[key] = refusals.get(key, 0) - 1
        return refusals[key] >= 0

    log, store = ReportLog(), sampled()
    store.down = down
    await replica(log, store, timing=Timing(store_retry_s=0)).run(task(Stage.DECODING))
    assert store.written == [*PICTURES, video_key("video_1")]
    assert [type(event) for event in log.ends] == [Started, Finished]


@torch.no_grad()
def fitted_by_hand(latents: torch.Tensor) -> torch.Tensor:
    vae, fit = load_vae(SHAPES, "float32", torch.device("cpu")), PreviewFit()
    for index, piece in enumerate(StreamingDecoder(vae).decode(denormalise(vae, latents))):
        fit.add(latents[:, index], to_uint8(piece))
    return fit.solve().weights


async def test_the_first_video_of_a_model_leaves_its_preview_map(unmapped: Path) -> None:
    log, store = ReportLog(), MemoryStore()
    latents = put_latents(store)
    decoder = replica(log, store, unmapped)
    await decoder.run(task(Stage.DECODING))
    assert store.written == [*PICTURES, video_key("video_1"), MAP]
    torch.testing.assert_close(from_json(store.objects[MAP]).weights, fitted_by_hand(latents), atol=1e-4, rtol=1e-3)
    await decoder.run(task(Stage.DECODING))
    await replica(log, store, unmapped).run(task(Stage.DECODING))
    assert store.written.count(MAP) == 1


async def test_a_failed_video_leaves_no_map(unmapped: Path) -> None:
    store = sampled((12, 2, 8, 8))
    decoder = replica(ReportLog(), store, unmapped)
    await decoder.run(task(Stage.DECODING))
    assert store.written == []


async def test_latents_without_a_revision_leave_no_map(unmapped: Path) -> None:
    store = MemoryStore()
    put_latents(store, transformer="")
    await replica(ReportLog(), store, unmapped).run(task(Stage.DECODING))
    assert store.written == [*PICTURES, video_key("video_1")]


async def test_a_map_that_cannot_be_kept_fails_no_job_and_is_tried_again(unmapped: Path) -> None:
    class Refusing(MemoryStore):
        refused = 0

        async def put(self, key: str, data: bytes, content_type: str) -> None:
            if key == MAP and not self.refused:
                self.refused += 1
                raise StorageUnavailableError("away")
            await super().put(key, data, content_type)

    log, store = ReportLog(), Refusing()
    put_latents(store)
    decoder = replica(log, store, unmapped)
    await decoder.run(task(Stage.DECODING))
    assert store.refused == 1 and MAP not in store.objects
    assert [type(event) for event in log.ends] == [Started, Finished]
    await decoder.run(task(Stage.DECODING))
    assert MAP in store.objects


async def test_the_job_has_ended_before_the_map_is_kept(unmapped: Path) -> None:
    ended: list[bool] = []
    log = ReportLog()

    class Noting(MemoryStore):
        async def put(self, key: str, data: bytes, content_type: str) -> None:
            if key == MAP:
                ended.append(isinstance(log.ends[-1], Finished))
            await super().put(key, data, content_type)

    store = Noting()
    put_latents(store)
    await replica(log, store, unmapped).run(task(Stage.DECODING))
    assert ended == [True]
