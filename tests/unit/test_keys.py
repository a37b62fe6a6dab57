"""Which keys are ours, and which files which job still needs."""

import time
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.keys import FileKind, JobFile, checkpoint_key, latents_key, parse_key, prompt_embeds_key, video_key
from deployments.mochi.preview import preview_key
from deployments.storage.object_store import ListedObject
from serve_app.jobs import FINAL, JobState, new_job_id
from serve_app.retention.orphans import is_needed
from serve_app.retention.sweeper import delete_all_files, delete_work_files

JOB = "video_0123456789abcdef0123456789abcdef"
OTHER = "video_ffffffffffffffffffffffffffffffff"


@given(st.uuids(), st.integers(0, 10**6))
def test_every_key_that_the_workers_write_is_known(uuid: object, step: int) -> None:
    job_id = f"video_{str(uuid).replace('-', '')}"
    for key in (prompt_embeds_key(job_id), latents_key(job_id), checkpoint_key(job_id, step)):
        assert parse_key(key) == JobFile(key, job_id, FileKind.WORK)
    for key in (video_key(job_id), video_key(job_id, "thumbnail"), video_key(job_id, "spritesheet")):
        assert parse_key(key) == JobFile(key, job_id, FileKind.VIDEO)


def test_ids_are_made_in_the_form_that_is_known() -> None:
    assert parse_key(video_key(new_job_id())) is not None


def test_ids_are_in_the_order_of_their_making() -> None:
    first = new_job_id()
    time.sleep(0.002)
    assert first < new_job_id()


@pytest.mark.parametrize(
    "key",
    [
        "",
        "ready",
        "mochi-serve/installations/1",
        preview_key("0123abcd"),
        f"models/{JOB}/latents.safetensors",
        f"backup/jobs/{JOB}/latents.safetensors",
        f"backup/videos/{JOB}.mp4",
        f"jobs/{JOB}",
        f"jobs/{JOB}/",
        f"jobs/{JOB}/notes.txt",
        f"jobs/{JOB}/latents.safetensors.bak",
        f"jobs/{JOB}/latents.safetensors\n",
        f"jobs/{JOB}/old/latents.safetensors",
        f"jobs/{JOB}/sample-abc.safetensors",
        f"jobs/{JOB}/sample-0001.safetensors",
        f"jobs/{JOB[:-1]}/latents.safetensors",
        f"jobs/{JOB}0/latents.safetensors",
        f"jobs/{JOB.upper()}/latents.safetensors",
        "jobs/mine/latents.safetensors",
        "videos/holiday.mp4",
        f"videos/{JOB}",
        f"videos/{JOB}.mov",
        f"videos/{JOB}.mp4.part",
        f"videos/{JOB}.sprites",
        f"videos/{JOB}.sprites.mp4",
        f"videos/{JOB}spritesXwebp",
        f"videos/{JOB}.sprites.webp.bak",
        f"videos/{JOB}/a.mp4",
        f"Videos/{JOB}.mp4",
    ],
)
def test_a_key_of_another_form_is_not_ours(key: str) -> None:
    assert parse_key(key) is None


@pytest.mark.parametrize("state", JobState)
def test_a_live_job_needs_all_its_files_and_an_ended_one_only_its_video(state: JobState) -> None:
    assert is_needed(FileKind.WORK, state) == (state not in FINAL)
    assert is_needed(FileKind.VIDEO, state) == (state not in (JobState.FAILED, JobState.CANCELLED))


@pytest.mark.parametrize("kind", FileKind)
def test_a_job_that_does_not_exist_needs_nothing(kind: FileKind) -> None:
    assert not is_needed(kind, None)


class _Keys:
    """A store of keys alone, two on a page."""

    def __init__(self, *keys: str) -> None:
        self.keys = set(keys)

    async def list_pages(self, prefix: str) -> AsyncIterator[list[ListedObject]]:
        found = [ListedObject(key, None) for key in sorted(self.keys) if key.startswith(prefix)]
        for first in range(0, len(found), 2):
            yield found[first : first + 2]

    async def delete_many(self, keys: Sequence[str]) -> None:
        self.keys -= set(keys)


def _files(job_id: str) -> list[str]:
    checkpoints = [checkpoint_key(job_id, step) for step in (3, 6, 9)]
    return [prompt_embeds_key(job_id), latents_key(job_id), *checkpoints, f"jobs/{job_id}/of-a-later-version"]


async def test_the_work_files_of_a_job_are_all_that_lies_under_its_prefix() -> None:
    videos = [video_key(JOB), video_key(JOB, "thumbnail"), video_key(JOB, "spritesheet")]
    store = _Keys(*_files(JOB), *_files(OTHER), *videos)
    assert await delete_work_files(store, [JOB]) == 6
    assert store.keys == {*_files(OTHER), *videos}
    assert await delete_work_files(store, [JOB]) == 0


async def test_all_files_are_those_and_the_video_and_its_pictures() -> None:
    kept = {
        *_files(OTHER),
        video_key(OTHER),
        video_key(OTHER, "thumbnail"),
        video_key(OTHER, "spritesheet"),
        "models/x/preview.json",
    }
    store = _Keys(*_files(JOB), video_key(JOB), video_key(JOB, "thumbnail"), video_key(JOB, "spritesheet"), *kept)
    await delete_all_files(store, [JOB])
    assert store.keys == kept
