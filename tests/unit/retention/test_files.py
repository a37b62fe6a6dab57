"""Which files which job still needs, and which are deleted with it."""

import pytest

from deployments.keys import (
    FileKind,
    JobFile,
    answered_part_key,
    asked_part_key,
    checkpoint_key,
    latents_key,
    prompt_embeds_key,
    video_key,
    video_keys,
)
from serve_app.jobs import FINAL, JobState
from serve_app.retention.orphans import is_needed
from serve_app.retention.sweeper import delete_all_files, delete_work_files
from tests.support.workers.memory_store import MemoryStore

JOB = "video_0123456789abcdef0123456789abcdef"
FILE_JOB = "proteins_0123456789abcdef0123456789abcdef"
OTHER = "video_ffffffffffffffffffffffffffffffff"


@pytest.mark.parametrize("state", JobState)
def test_a_live_job_needs_all_its_files_and_an_ended_one_only_its_video(state: JobState) -> None:
    assert is_needed(JobFile("", JOB, FileKind.WORK), state) == (state not in FINAL)
    assert is_needed(JobFile("", JOB, FileKind.RESULT), state) == (state not in (JobState.FAILED, JobState.CANCELLED))


@pytest.mark.parametrize("state", JobState)
def test_what_was_done_of_a_file_is_kept_however_it_ended(state: JobState) -> None:
    assert is_needed(JobFile("", FILE_JOB, FileKind.WORK), state) == (state not in FINAL)
    assert is_needed(JobFile("", FILE_JOB, FileKind.RESULT), state)


@pytest.mark.parametrize("kind", FileKind)
def test_a_job_that_does_not_exist_needs_nothing(kind: FileKind) -> None:
    assert not is_needed(JobFile("", JOB, kind), None)
    assert not is_needed(JobFile("", FILE_JOB, kind), None)


def store_with(keys: set[str]) -> MemoryStore:
    return MemoryStore(objects=dict.fromkeys(keys, b"x"))


def work_files(job_id: str) -> set[str]:
    checkpoints = [checkpoint_key(job_id, step) for step in (3, 6, 9)]
    return {prompt_embeds_key(job_id), latents_key(job_id), *checkpoints, f"jobs/{job_id}/of-a-later-version"}


async def test_the_work_files_of_a_job_are_all_that_lies_under_its_prefix() -> None:
    kept = work_files(OTHER) | set(video_keys(JOB))
    store = store_with(work_files(JOB) | kept)
    assert await delete_work_files(store, [JOB]) == 6
    assert store.objects.keys() == kept
    assert await delete_work_files(store, [JOB]) == 0


async def test_all_files_are_those_and_the_video_and_its_pictures() -> None:
    pictures = {video_key(JOB, "thumbnail"), video_key(JOB, "spritesheet")}
    kept = work_files(OTHER) | set(video_keys(OTHER)) | {"models/x/preview.json"}
    store = store_with(work_files(JOB) | {video_key(JOB)} | pictures | kept)
    await delete_all_files(store, [JOB])
    assert store.objects.keys() == kept


async def test_all_answers_to_a_file_of_proteins_are_deleted_with_it() -> None:
    asked = {asked_part_key(FILE_JOB, part) for part in range(5)}
    answered = {answered_part_key(FILE_JOB, part, "npz") for part in range(5)}
    kept = {answered_part_key(FILE_JOB.replace("0", "1"), 0, "npz"), video_key(JOB)}
    store = store_with(asked | answered | kept)
    assert await delete_work_files(store, [FILE_JOB]) == 5
    await delete_all_files(store, [FILE_JOB])
    assert store.objects.keys() == kept
