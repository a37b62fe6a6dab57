"""Requests that leave their quality to the server, and what a draft under load is enhanced to."""

from dataclasses import replace
from typing import Any

import pytest
from torch import equal

from deployments.messages import Stage, VideoSpec
from deployments.mochi.denoise import initial_noise
from deployments.settings import QualitySettings
from serve_app.errors import InvalidRequestError
from serve_app.jobs import DraftReason, Job, JobState, Requested
from serve_app.requests.schema import request_schema
from serve_app.requests.videos import CheckedRequest, EnhanceRequestChecker, RemixRequestChecker, VideoRequestChecker
from tests.support.http.fakes import shapes_settings
from tests.support.request_checks import PLAIN

QUALITIES = {"draft": QualitySettings(num_inference_steps=4, guidance_scale=1.5, reuse_run=1, reuse_until=0.5)}
MODEL = shapes_settings().model.model_copy(update={"qualities": QUALITIES})
AUTO: dict[str, Any] = {"quality": "auto"}


def checker(drafts: bool = True, **model: Any) -> VideoRequestChecker:
    served = MODEL.model_copy(update=model)
    return VideoRequestChecker(served, request_schema(served, "Request"), None, drafts)


def check(drafts: bool = True, **fields: object) -> CheckedRequest:
    return checker(drafts).check(PLAIN | fields)


def cut_job(asked: CheckedRequest) -> Job:
    """What a registry makes of a request that would wait for too long."""
    assert asked.draft is not None
    reason = DraftReason(90.5, 60.0, asked.spec.quality, asked.spec.num_inference_steps, asked.spec.guidance_scale)
    requested = replace(asked.requested, draft=reason)
    return Job("video_1", "mochi-1", asked.draft, JobState.COMPLETED, Stage.DECODING, 1, 0.0, requested=requested)


@pytest.mark.parametrize("word", ["auto", "AUTO", " auto "])
def test_auto_may_be_a_draft_of_the_same_video(word: str) -> None:
    asked = check(quality=word)
    assert asked.spec == check().spec
    assert asked.draft is not None
    assert (asked.draft.quality, asked.draft.rules) == ("draft", MODEL.rules_of("draft"))
    assert (asked.draft.num_inference_steps, asked.draft.guidance_scale) == (4, 1.5)
    assert asked.draft.seed == asked.spec.seed
    assert asked.requested.quality == "auto"


@pytest.mark.parametrize(
    "fields",
    [{}, {"quality": "exact"}, {"quality": "standard"}, {"quality": "draft"}]
    + [AUTO | more for more in ({"num_inference_steps": 8}, {"num_inference_steps": 3}, {"exact": True})],
)
def test_what_names_its_steps_or_quality_is_no_draft(fields: dict[str, Any]) -> None:
    asked = check(**fields)
    assert (asked.draft, asked.requested.quality) == (None, None)


def test_a_guidance_scale_that_was_named_stays() -> None:
    asked = check(**AUTO, guidance_scale=2.5)
    assert asked.draft is not None
    assert (asked.spec.guidance_scale, asked.draft.guidance_scale) == (2.5, 2.5)


def test_where_there_are_no_drafts_it_is_the_default_quality() -> None:
    off = check(drafts=False, **AUTO)
    assert (off.draft, off.requested, off.fingerprint) == (None, Requested(), check().fingerprint)
    assert checker(qualities={}).check(PLAIN | AUTO).draft is None
    by_default = checker(quality="draft").check(PLAIN | AUTO)
    assert (by_default.spec.quality, by_default.draft) == ("draft", None)


def test_that_it_may_be_a_draft_makes_another_request() -> None:
    assert check(**AUTO).fingerprint != check().fingerprint
    assert check(**AUTO).sent_fingerprint != check().sent_fingerprint
    # The setting may change between a request and its repeat.
    assert check(**AUTO).sent_fingerprint == check(drafts=False, **AUTO).sent_fingerprint


@pytest.mark.parametrize("fields", [{}, {"guidance_scale": 2.5}, {"guidance_scale": 1.5, "lora": ""}])
@pytest.mark.parametrize("body", [{}, AUTO, {"num_inference_steps": 8}])
def test_a_draft_under_load_is_enhanced_to_what_was_asked_for(fields: dict[str, Any], body: dict[str, object]) -> None:
    asked = check(**AUTO | fields)
    enhanced = EnhanceRequestChecker(checker()).check(body, cut_job(asked))
    assert enhanced.spec == asked.spec
    assert (enhanced.draft, enhanced.requested) == (None, Requested())
    assert equal(initial_noise(enhanced.spec), initial_noise(cut_job(asked).video))


def test_an_enhance_may_name_other_steps_and_qualities() -> None:
    enhance, job = EnhanceRequestChecker(checker()), cut_job(check(**AUTO))
    more = enhance.check({"num_inference_steps": 30}, job).spec
    assert (more.quality, more.rules, more.num_inference_steps) == ("exact", MODEL.rules_of("exact"), 30)
    better_draft = enhance.check({"quality": "draft"}, job).spec
    assert (better_draft.quality, better_draft.num_inference_steps) == ("draft", MODEL.enhanced_steps)
    with pytest.raises(InvalidRequestError, match="made with 4 steps; to enhance it"):
        enhance.check({"num_inference_steps": 3}, job)


def test_it_is_enhanced_also_where_a_draft_has_as_many_steps() -> None:
    videos = checker(qualities={"draft": QualitySettings(reuse_run=1)})
    job = cut_job(videos.check(PLAIN | AUTO))
    assert job.video.num_inference_steps == MODEL.num_inference_steps.default
    assert EnhanceRequestChecker(videos).check({}, job).spec == videos.check(PLAIN).spec


def test_a_quality_that_is_gone_becomes_the_default() -> None:
    fast = MODEL.qualities | {"fast": QualitySettings(num_inference_steps=6)}
    job = cut_job(checker(qualities=fast, quality="fast").check(PLAIN | AUTO))
    enhanced = EnhanceRequestChecker(checker()).check({}, job).spec
    assert (enhanced.quality, enhanced.num_inference_steps) == ("exact", 6)


def test_a_remix_is_a_draft_only_if_it_says_auto() -> None:
    remix, asked = RemixRequestChecker(checker()), check(**AUTO)
    prompt = {"prompt": "a blue circle"}
    as_made = remix.check(prompt, cut_job(asked))
    assert (as_made.spec.quality, as_made.draft, as_made.requested) == ("draft", None, Requested())
    again = remix.check(prompt | AUTO, cut_job(asked))
    assert again.spec == replace(asked.spec, prompt="a blue circle")
    assert asked.draft is not None and again.draft == replace(asked.draft, prompt="a blue circle")
    assert again.requested == Requested(quality="auto")


def test_a_remix_keeps_steps_that_were_asked_for() -> None:
    def remixed(spec: VideoSpec) -> VideoSpec | None:
        source = Job("video_1", "mochi-1", spec, JobState.COMPLETED, Stage.DECODING, 1, 0.0)
        return RemixRequestChecker(checker()).check({"prompt": "a blue circle", **AUTO}, source).draft

    assert remixed(check(num_inference_steps=30).spec) is None
    assert remixed(check(exact=True).spec) is None
    draft = remixed(check(guidance_scale=2.5).spec)
    assert draft is not None and draft.guidance_scale == 2.5
