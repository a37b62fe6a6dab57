"""Requests that are the same through a change of defaults, and those that are not."""

import pytest

from deployments.messages import Stage, VideoSpec
from deployments.settings import ModelSettings
from serve_app.jobs import Job, JobState
from serve_app.requests.body import Form
from serve_app.requests.schema import request_schema
from serve_app.requests.videos import CheckedRequest, EnhanceRequestChecker, RemixRequestChecker, VideoRequestChecker
from tests.support.http.fakes import shapes_settings

MODEL = shapes_settings().model
STEPS = MODEL.num_inference_steps.model_copy(update={"default": 10})
SIDE = MODEL.width.model_copy(update={"default": 64})
NEW_DEFAULTS = MODEL.model_copy(
    update={
        "name": "mochi-2",
        "num_inference_steps": STEPS,
        "width": SIDE,
        "height": SIDE,
        "guidance_scale": 4.0,
        "fit_sizes": not MODEL.fit_sizes,
    }
)
PLAIN: dict[str, object] = {"prompt": "a red circle"}


def check(fields: dict[str, object], model: ModelSettings = MODEL, prompt_field: str = "prompt") -> CheckedRequest:
    return VideoRequestChecker(model, request_schema(model, "Request", prompt_field), None).check(fields)


@pytest.mark.parametrize(
    "fields",
    [{}, {"width": 80, "height": 64}, {"size": "80x64", "seed": 3}, {"duration": 1}, {"extra_body": {"fps": 12}}],
)
def test_what_was_sent_is_the_same_after_the_defaults_changed(fields: dict[str, object]) -> None:
    before, after = (check(PLAIN | fields, model) for model in (MODEL, NEW_DEFAULTS))
    assert before.spec.num_inference_steps != after.spec.num_inference_steps
    assert before.fingerprint != after.fingerprint
    assert before.sent_fingerprint == after.sent_fingerprint


def test_what_was_sent_has_a_fingerprint_that_stays_the_same() -> None:
    # Kept with the jobs, as the other one: after an upgrade the same request must still be the same.
    asked = check(PLAIN | {"seed": 1, "num_inference_steps": 16, "cancel_after": "2m"})
    assert asked.sent_fingerprint == "051d9461971e125068f22dca218cf0c9fe8d39cc7838de507c1bc890a406d3ae"


def test_forms_and_the_short_route_are_sent_the_same() -> None:
    rest = {"seed": 7, "guidance_scale": 2.5, "exact": True, "priority": "batch"}
    form = Form(prompt="a red circle", seed="7", guidance_scale="2.50", exact="true", priority="batch")
    sent = check(PLAIN | rest).sent_fingerprint
    assert check(form).sent_fingerprint == sent
    assert check({"text": "a red circle", **rest}, prompt_field="text").sent_fingerprint == sent


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "a red circles"},
        {"negative_prompt": "blue"},
        {"width": 80},
        {"num_frames": 31},
        {"seconds": 1},
        {"num_inference_steps": 21},
        {"seed": 0},
        {"exact": True},
        {"priority": "batch"},
        {"webhook_url": "https://example.com/hook"},
        {"cancel_after": 60},
    ],
)
def test_every_field_that_is_sent_makes_another_request(fields: dict[str, object]) -> None:
    assert check(PLAIN | fields).sent_fingerprint != check(PLAIN).sent_fingerprint


def source(job_id: str) -> Job:
    spec = VideoSpec("a red circle", "", 64, 64, 25, 24, 8, 3.0, 1)
    return Job(job_id, "mochi-1", spec, JobState.COMPLETED, Stage.DECODING, 1, 0.0)


def test_a_video_made_from_another_is_another_request() -> None:
    videos = VideoRequestChecker(MODEL, request_schema(MODEL, "Request"), None)
    remix, enhance = RemixRequestChecker(videos), EnhanceRequestChecker(videos)
    sent = [
        videos.check(PLAIN),
        *(remix.check(PLAIN, source(job_id)) for job_id in ("video_1", "video_2")),
        *(enhance.check({}, source(job_id)) for job_id in ("video_1", "video_2")),
    ]
    assert len({request.sent_fingerprint for request in sent}) == 5
