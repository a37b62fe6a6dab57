"""The decoder's replica: latents in, mp4 and poster out."""

from io import BytesIO
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from deployments import video_decoder
from deployments.errors import PermanentError
from deployments.messages import (
    Event,
    Failed,
    Finished,
    Progress,
    Stage,
    Started,
    VideoSpec,
    latents_key,
    poster_key,
    video_key,
)
from deployments.mp4_encoder import Mp4Writer
from deployments.video_decoder import VideoDecoder, check_latents
from tests.worker_fakes import MemoryLink, MemoryStore, connections, spec, task, undecorated, worker_settings


def sampled(shape: tuple[int, ...] = (12, 3, 8, 8)) -> MemoryStore:
    store = MemoryStore()
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    store.objects[latents_key("video_1")] = save({"latents": latents})
    return store


def replica(link: MemoryLink, store: MemoryStore) -> Any:
    return undecorated(VideoDecoder)(worker_settings(Stage.DECODING), connections=connections(link, store))


async def test_poster_then_video_then_finished(tmp_path: Path) -> None:
    link, store = MemoryLink(), sampled()
    await replica(link, store).run(task(Stage.DECODING))
    assert store.written == [poster_key("video_1"), video_key("video_1")]
    assert store.types == {poster_key("video_1"): "image/webp", video_key("video_1"): "video/mp4"}
    assert Image.open(BytesIO(store.objects[poster_key("video_1")])).size == (64, 64)
    (tmp_path / "v.mp4").write_bytes(store.objects[video_key("video_1")])
    assert imageio_ffmpeg.count_frames_and_secs(tmp_path / "v.mp4")[0] == 13
    started, finished = link.ends
    assert isinstance(started, Started)
    assert isinstance(finished, Finished) and set(finished.seconds) == {"load", "decode", "mp4", "store"}
    assert all(event.total == 13 for event in link.events if isinstance(event, Progress))


async def test_a_task_done_twice_gives_the_same_bytes() -> None:
    store = sampled()
    decoder = replica(MemoryLink(), store)
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

    monkeypatch.setattr(video_decoder, "Mp4Writer", Noted)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    link, store = MemoryLink(stop_at=at_progress), sampled((12, 100, 8, 8))
    await replica(link, store).run(task(Stage.DECODING, spec(num_frames=595)))
    assert store.written == []
    assert [type(event) for event in link.ends] == [Started]
    (writer,) = killed
    assert writer._process.poll() is not None
    assert list(tmp_path.iterdir()) == []


async def test_latents_of_another_size_fail_for_good() -> None:
    link, store = MemoryLink(), sampled((12, 2, 8, 8))
    await replica(link, store).run(task(Stage.DECODING))
    failed = link.ends[-1]
    assert isinstance(failed, Failed) and (failed.code, failed.transient) == ("latents_mismatch", False)
    assert store.written == []


def test_the_mismatch_names_both_shapes() -> None:
    video: VideoSpec = spec()
    check_latents(torch.zeros(12, 3, 8, 8), video)
    with pytest.raises(PermanentError, match=r"\(12, 3, 8, 4\); the job needs \(12, 3, 8, 8\)"):
        check_latents(torch.zeros(12, 3, 8, 4), video)
