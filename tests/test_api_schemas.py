import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.messages import Stage, VideoSpec
from serve_app.api_schemas import Status, to_health, to_page, to_video
from serve_app.jobs import Health, Job, JobError, JobState

SPEC = VideoSpec("a red circle", "blur", 64, 48, 25, 24, 20, 3.0, 7)
JOB = Job("video_" + "0" * 32, "mochi-1", SPEC, JobState.QUEUED, Stage.ENCODING, 1, 1_700_000_000.9)


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (JobState.QUEUED, "queued"),
        (JobState.ENCODING, "in_progress"),
        (JobState.SAMPLING, "in_progress"),
        (JobState.DECODING, "in_progress"),
        (JobState.COMPLETED, "completed"),
        (JobState.FAILED, "failed"),
        (JobState.CANCELLED, "failed"),
    ],
)
def test_openais_view_of_each_state(state: JobState, status: Status) -> None:
    video = to_video(dataclasses.replace(JOB, state=state))
    assert (video.status, video.state) == (status, state)


def test_every_field_of_a_new_video() -> None:
    assert to_video(JOB).model_dump(mode="json") == {
        "id": JOB.id,
        "object": "video",
        "model": "mochi-1",
        "status": "queued",
        "progress": 0,
        "created_at": 1_700_000_000,
        "completed_at": None,
        "expires_at": None,
        "prompt": "a red circle",
        "seconds": "1.042",
        "size": "64x48",
        "error": None,
        "remixed_from_video_id": None,
        "negative_prompt": "blur",
        "num_frames": 25,
        "fps": 24,
        "num_inference_steps": 20,
        "guidance_scale": 3.0,
        "seed": 7,
        "exact": False,
        "state": "queued",
        "step": 0,
        "checkpoint_step": 0,
        "steps_run": 0,
        "attempt": 1,
        "timings": {},
    }


def test_lost_steps_are_seen() -> None:
    spec = dataclasses.replace(SPEC, exact=True)
    job = dataclasses.replace(JOB, spec=spec, state=JobState.SAMPLING, step=12, checkpoint_step=10, steps_run=15)
    video = to_video(job)
    assert (video.exact, video.step, video.checkpoint_step, video.steps_run) == (True, 12, 10, 15)


@settings(deadline=None)
@given(st.floats(0, 1), st.sampled_from(JobState))
def test_only_a_completed_video_is_at_100(progress: float, state: JobState) -> None:
    shown = to_video(dataclasses.replace(JOB, state=state, progress=progress)).progress
    assert (shown == 100) == (state is JobState.COMPLETED)
    assert 0 <= shown <= 100


def test_a_failed_video_says_why() -> None:
    failed = dataclasses.replace(JOB, state=JobState.FAILED, error=JobError("out_of_memory", "no room"))
    error = to_video(failed).error
    assert error is not None
    assert (error.code, error.message) == ("out_of_memory", "no room")


def test_a_cancelled_video_has_the_code_cancelled() -> None:
    error = to_video(dataclasses.replace(JOB, state=JobState.CANCELLED)).error
    assert error is not None
    assert error.code == "cancelled"


def test_an_empty_page_has_no_ids() -> None:
    assert to_page([], has_more=False).model_dump() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


def test_health_names_all_that_is_missing() -> None:
    report = to_health(Health({}, {}), "the object store does not answer")
    assert report.status == "unavailable"
    assert report.error is not None
    for part in ("encoding", "sampling", "decoding", "the object store does not answer"):
        assert part in report.error.message
