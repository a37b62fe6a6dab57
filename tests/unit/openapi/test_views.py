import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.messages import VIDEO_STAGES, ReplicaInfo, Stage, VideoSpec
from serve_app.config import RetentionSettings
from serve_app.jobs import (
    FINAL,
    Health,
    Job,
    JobError,
    JobPage,
    JobState,
    Move,
    Origin,
    Place,
    Relation,
    Requested,
    Tier,
)
from serve_app.openapi.schemas import Status
from serve_app.openapi.views import (
    states_of,
    to_health,
    to_history,
    to_model_list,
    to_page,
    to_progress,
    to_state,
    to_video,
)
from tests.support.http.fakes import shapes_settings

RETENTION = RetentionSettings()
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
    video = to_video(dataclasses.replace(JOB, state=state), RETENTION)
    assert (video.status, video.state) == (status, state)


@pytest.mark.parametrize(
    ("status", "states"),
    [
        ("queued", {JobState.QUEUED}),
        ("in_progress", {JobState.ENCODING, JobState.SAMPLING, JobState.DECODING}),
        ("completed", {JobState.COMPLETED}),
        ("failed", {JobState.FAILED, JobState.CANCELLED}),
    ],
)
def test_the_states_of_openais_status(status: Status, states: set[JobState]) -> None:
    assert set(states_of(status)) == states


def test_every_field_of_a_new_video() -> None:
    assert to_video(JOB, RETENTION).model_dump(mode="json") == {
        "id": JOB.id,
        "object": "video",
        "model": "mochi-1",
        "status": "queued",
        "progress": 0,
        "created_at": 1_700_000_000,
        "completed_at": None,
        "expires_at": None,
        "prompt": "a red circle",
        "seconds": "1",
        "size": "64x48",
        "duration_s": 1.041667,
        "requested_seconds": None,
        "requested_size": None,
        "ignored_parameters": [],
        "error": None,
        "remixed_from_video_id": None,
        "enhanced_from_video_id": None,
        "negative_prompt": "blur",
        "num_frames": 25,
        "fps": 24,
        "quality": "exact",
        "requested_quality": None,
        "draft_reason": None,
        "num_inference_steps": 20,
        "guidance_scale": 3.0,
        "lora": None,
        "lora_scale": None,
        "seed": 7,
        "exact": False,
        "state": "queued",
        "step": 0,
        "checkpoint_step": 0,
        "steps_run": 0,
        "priority": "standard",
        "tenant": "default",
        "queue_position": None,
        "estimated_start_at": None,
        "estimated_completion_at": None,
        "gpu_seconds": 0.0,
        "parks": 0,
        "attempt": 1,
        "preview_step": None,
        "webhook_url": None,
        "cancel_at": None,
        "timings": {},
    }


@pytest.mark.parametrize(
    ("asked", "frames", "fps", "seconds", "other"),
    [
        (None, 7, 24, "1", None),
        (None, 37, 24, "2", None),
        (None, 61, 10, "6", None),
        ("1.5", 37, 24, "1.5", None),
        ("4", 97, 24, "4", None),
        ("4", 61, 24, "4", "4"),
        ("0.01", 7, 24, "0.01", "0.01"),
    ],
)
def test_seconds_are_what_was_asked_for_or_whole(
    asked: str | None, frames: int, fps: int, seconds: str, other: str | None
) -> None:
    spec = dataclasses.replace(JOB.video, num_frames=frames, fps=fps)
    video = to_video(dataclasses.replace(JOB, spec=spec, requested=Requested(seconds=asked)), RETENTION)
    assert (video.seconds, video.requested_seconds) == (seconds, other)
    assert video.duration_s == pytest.approx(frames / fps, abs=1e-6)


def test_what_was_asked_for_and_what_made_no_difference() -> None:
    requested = Requested(size="1280x720", ignored=("user", "quality"))
    video = to_video(dataclasses.replace(JOB, requested=requested), RETENTION)
    assert (video.size, video.requested_size, video.ignored_parameters) == ("64x48", "1280x720", ["user", "quality"])


@pytest.mark.parametrize(
    ("relation", "remixed", "enhanced"), [(Relation.REMIX, "video_1", None), (Relation.ENHANCE, None, "video_1")]
)
def test_what_a_video_was_made_from(relation: Relation, remixed: str | None, enhanced: str | None) -> None:
    video = to_video(dataclasses.replace(JOB, origin=Origin("video_1", relation)), RETENTION)
    assert (video.remixed_from_video_id, video.enhanced_from_video_id) == (remixed, enhanced)


def test_a_video_tells_its_deadline_in_whole_seconds() -> None:
    video = to_video(dataclasses.replace(JOB, cancel_at=JOB.created_at + 90), RETENTION)
    assert video.cancel_at == 1_700_000_090


def test_a_video_shows_its_webhook() -> None:
    video = to_video(dataclasses.replace(JOB, webhook_url="https://example.com/hook"), RETENTION)
    assert video.webhook_url == "https://example.com/hook"


def test_only_a_live_video_has_a_preview() -> None:
    for state in JobState:
        video = to_video(dataclasses.replace(JOB, state=state, preview_step=8), RETENTION)
        assert video.preview_step == (None if state in FINAL else 8)


def test_an_event_for_each_move() -> None:
    move = Move(1_700_000_000.25, JobState.ENCODING, Stage.ENCODING, 2, "claimed")
    assert to_state(JOB.id, 3, move).model_dump(mode="json") == {
        "type": "state",
        "video_id": JOB.id,
        "number": 3,
        "at": 1_700_000_000.25,
        "state": "encoding",
        "stage": "encoding",
        "attempt": 2,
        "note": "claimed",
    }


def test_progress_shows_step_and_place() -> None:
    place = Place(position=2, starts_at=1_700_000_012.9, finishes_at=1_700_000_100.2)
    job = dataclasses.replace(JOB, step=5, progress=0.24, place=place)
    assert to_progress(job).model_dump(mode="json") == {
        "type": "progress",
        "video_id": JOB.id,
        "state": "queued",
        "progress": 24,
        "step": 5,
        "num_inference_steps": 20,
        "queue_position": 2,
        "estimated_start_at": 1_700_000_012,
        "estimated_completion_at": 1_700_000_100,
    }


def test_a_model_shows_bounds_and_defaults() -> None:
    model = shapes_settings().model
    (served,) = to_model_list(model, draft_when_wait_over_s=90.0).model_dump(mode="json")["data"]
    assert (served["id"], served["draft_when_wait_over_s"]) == ("mochi-1", 90.0)
    assert served["limits"]["width"] == {"default": 96, "minimum": 32, "maximum": 128}
    assert served["limits"]["max_prompt_tokens"] == 64
    assert served["defaults"] == {
        "width": 96,
        "height": 96,
        "num_frames": 37,
        "fps": 24,
        "num_inference_steps": 8,
        "enhanced_steps": model.enhanced_steps,
        "guidance_scale": 3.0,
        "quality": "exact",
    }


def test_lost_steps_are_seen() -> None:
    spec = dataclasses.replace(SPEC, exact=True)
    job = dataclasses.replace(JOB, spec=spec, state=JobState.SAMPLING, step=12, checkpoint_step=10, steps_run=15)
    video = to_video(job, RETENTION)
    assert (video.exact, video.step, video.checkpoint_step, video.steps_run) == (True, 12, 10, 15)


def test_whose_it_is_where_it_stands_and_what_it_cost() -> None:
    place = Place(position=3, starts_at=1_700_000_012.9, finishes_at=1_700_000_100.2)
    job = dataclasses.replace(JOB, tenant="acme", tier=Tier.BATCH, place=place, device_s=12.345678, parks=2)
    video = to_video(job, RETENTION)
    assert (video.priority, video.tenant, video.queue_position) == ("batch", "acme", 3)
    assert (video.estimated_start_at, video.estimated_completion_at) == (1_700_000_012, 1_700_000_100)
    assert (video.gpu_seconds, video.parks) == (12.346, 2)


def test_the_next_in_the_queue_has_the_position_0() -> None:
    video = to_video(dataclasses.replace(JOB, place=Place(0, None, None)), RETENTION)
    assert (video.queue_position, video.estimated_start_at) == (0, None)


@pytest.mark.parametrize(
    ("state", "expires_at"),
    [(JobState.COMPLETED, 2_000_129_600), (JobState.FAILED, 2_000_043_200), (JobState.CANCELLED, 2_000_043_200)],
)
def test_a_final_video_expires_after_the_days_of_its_kind(state: JobState, expires_at: int) -> None:
    job = dataclasses.replace(JOB, state=state, completed_at=2_000_000_000.0)
    assert to_video(job, RetentionSettings(completed_days=1.5, failed_days=0.5)).expires_at == expires_at
    assert to_video(job, RetentionSettings(completed_days=None, failed_days=None)).expires_at is None


def test_a_live_video_does_not_expire() -> None:
    assert to_video(dataclasses.replace(JOB, state=JobState.SAMPLING), RETENTION).expires_at is None


def test_a_history_keeps_its_order() -> None:
    moves = [
        Move(1_700_000_000.25, JobState.QUEUED, Stage.ENCODING, 1, "accepted"),
        Move(1_700_000_001.5, JobState.ENCODING, Stage.ENCODING, 1, ""),
    ]
    assert to_history(moves).model_dump(mode="json") == {
        "object": "list",
        "data": [
            {"at": 1_700_000_000.25, "state": "queued", "stage": "encoding", "attempt": 1, "note": "accepted"},
            {"at": 1_700_000_001.5, "state": "encoding", "stage": "encoding", "attempt": 1, "note": ""},
        ],
    }


@given(st.floats(0, 1), st.sampled_from(JobState))
def test_only_a_completed_video_is_at_100(progress: float, state: JobState) -> None:
    shown = to_video(dataclasses.replace(JOB, state=state, progress=progress), RETENTION).progress
    assert (shown == 100) == (state is JobState.COMPLETED)
    assert 0 <= shown <= 100


def test_a_failed_video_says_why() -> None:
    failed = dataclasses.replace(JOB, state=JobState.FAILED, error=JobError("out_of_memory", "no room"))
    error = to_video(failed, RETENTION).error
    assert error is not None
    assert (error.code, error.message) == ("out_of_memory", "no room")


def test_a_cancelled_video_has_the_code_cancelled() -> None:
    error = to_video(dataclasses.replace(JOB, state=JobState.CANCELLED), RETENTION).error
    assert error is not None
    assert error.code == "cancelled"


def test_an_empty_page_has_no_ids() -> None:
    assert to_page(JobPage((), has_more=False), RETENTION).model_dump() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


def test_health_names_all_that_is_missing() -> None:
    report = to_health(Health({}, {}, "the database is read-only"), "the object store does not answer")
    assert report.status == "unavailable"
    assert report.error is not None
    for part in ("encoding", "sampling", "decoding", "the object store does not answer", "the database is read-only"):
        assert part in report.error.message


def test_a_report_tells_the_revision_of_each_replicas_model() -> None:
    replicas: dict[Stage, tuple[ReplicaInfo, ...]] = {
        stage: (ReplicaInfo(f"{stage}#1", stage, 1, "cpu", "mochi-1", revision="abc"),) for stage in VIDEO_STAGES
    }
    report = to_health(Health(replicas, {}, "ok"), "ok")
    assert {replica.revision for each in report.devices.values() for replica in each} == {"abc"}


def test_a_stage_whose_replicas_all_have_a_problem_is_not_ready_and_says_why() -> None:
    problem = "the driver reported Xid 79 (fallen off the bus) for the GPU: reset it, or restart the machine"
    well: dict[Stage, tuple[ReplicaInfo, ...]] = {
        stage: (ReplicaInfo(f"{stage}#1", stage, 1, "cuda:0", "mochi-1"),) for stage in VIDEO_STAGES
    }
    sick = dataclasses.replace(well[Stage.SAMPLING][0], replica="sampling#2", slots=0, problem=problem)
    only_sick = Health(well | {Stage.SAMPLING: (sick,)}, {})
    accepting = to_health(only_sick, "ok")
    assert (accepting.status, accepting.error) == ("starting", None)
    assert accepting.waiting_for == f"no sampling replica is ready: {problem}"
    alone = to_health(only_sick, "ok", must_be_ready=True)
    assert alone.error is not None
    assert alone.error.message == f"Not ready: no sampling replica is ready: {problem}."
    beside = to_health(Health(well | {Stage.SAMPLING: (*well[Stage.SAMPLING], sick)}, {}), "ok")
    assert beside.status == "ok"
    assert [replica.problem for replica in beside.devices[Stage.SAMPLING]] == [None, problem]


def test_a_replica_that_leaves_is_no_problem() -> None:
    leaving: dict[Stage, tuple[ReplicaInfo, ...]] = {
        stage: (ReplicaInfo(f"{stage}#1", stage, 0, "cpu", "mochi-1"),) for stage in VIDEO_STAGES
    }
    assert to_health(Health(leaving, {}), "ok").status == "ok"
