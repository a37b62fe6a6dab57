"""Which keys are ours."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.keys import (
    FileKind,
    JobFile,
    answered_part_key,
    answers_prefix,
    asked_part_key,
    checkpoint_key,
    is_of_proteins,
    latents_key,
    parse_key,
    prompt_embeds_key,
    video_key,
    work_prefix,
)
from deployments.messages import JobKind
from deployments.mochi.preview import preview_key
from serve_app.jobs import new_job_id

JOB = "video_0123456789abcdef0123456789abcdef"
FILE_JOB = "proteins_0123456789abcdef0123456789abcdef"


@given(st.uuids(), st.integers(0, 10**6))
def test_every_key_that_the_workers_write_is_known(uuid: object, step: int) -> None:
    job_id = f"video_{str(uuid).replace('-', '')}"
    for key in (prompt_embeds_key(job_id), latents_key(job_id), checkpoint_key(job_id, step)):
        assert parse_key(key) == JobFile(key, job_id, FileKind.WORK)
    for key in (video_key(job_id), video_key(job_id, "thumbnail"), video_key(job_id, "spritesheet")):
        assert parse_key(key) == JobFile(key, job_id, FileKind.RESULT)


@given(st.uuids(), st.integers(0, 10**6), st.sampled_from(["safetensors", "npz"]))
def test_the_parts_of_files_are_known(uuid: object, part: int, file_format: str) -> None:
    job_id = f"proteins_{str(uuid).replace('-', '')}"
    asked, answered = asked_part_key(job_id, part), answered_part_key(job_id, part, file_format)
    assert parse_key(asked) == JobFile(asked, job_id, FileKind.WORK) and asked.startswith(work_prefix(job_id))
    assert parse_key(answered) == JobFile(answered, job_id, FileKind.RESULT)
    assert answered.startswith(answers_prefix(job_id)) and is_of_proteins(job_id)


def test_ids_are_made_in_the_form_that_is_known() -> None:
    assert parse_key(video_key(new_job_id())) is not None
    assert parse_key(asked_part_key(new_job_id(JobKind.PROTEINS), 0)) is not None


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
        f"proteins/{JOB}/part-00000.npz",
        f"jobs/{JOB}/part-00000.json",
        f"jobs/{FILE_JOB}/latents.safetensors",
        f"proteins/{FILE_JOB}/part-00000.csv",
        f"proteins/{FILE_JOB}/part-0.npz",
        f"videos/{FILE_JOB}.mp4",
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
