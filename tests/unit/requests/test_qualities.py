"""The quality of a request: its own names, the words of other clients, and what is inherited."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.messages import Stage, VideoSpec
from deployments.settings import QualitySettings
from deployments.step_rules import DEFAULT_RULES, QUALITIES, StepRules
from serve_app.errors import InvalidRequestError
from serve_app.jobs import Job, JobState
from serve_app.requests.body import Form
from serve_app.requests.qualities import QUALITY_WORDS
from serve_app.requests.videos import EnhanceRequestChecker, RemixRequestChecker
from tests.support import ROOT
from tests.support.http.fakes import shapes_settings
from tests.support.request_checks import RequestChecks

FAST = QualitySettings(num_inference_steps=7, guidance_until=0.5)
DRAFT = QualitySettings(num_inference_steps=4, guidance_scale=1.0, reuse_run=1, reuse_until=0.5)
MODEL = shapes_settings().model.model_copy(update={"qualities": {"fast": FAST, "draft": DRAFT}})
ONLY_EXACT = MODEL.model_copy(update={"qualities": {}})
REQUESTS = RequestChecks(MODEL)
checker, check, refused = REQUESTS.checker, REQUESTS.check, REQUESTS.refused


@pytest.mark.parametrize("quality", QUALITIES)
def test_a_quality_brings_its_rules_and_defaults(quality: Any) -> None:
    spec = check(quality=quality).spec
    assert (spec.quality, spec.rules) == (quality, MODEL.rules_of(quality))
    assert (spec.num_inference_steps, spec.guidance_scale) == (MODEL.steps_of(quality), MODEL.guidance_of(quality))
    given = check(quality=quality, num_inference_steps=11, guidance_scale=2.5).spec
    assert (given.num_inference_steps, given.guidance_scale, given.rules) == (11, 2.5, spec.rules)


def test_without_one_it_is_the_servers_and_the_same_request_as_ever() -> None:
    plain = check()
    assert (plain.spec.quality, plain.spec.rules) == ("exact", DEFAULT_RULES)
    assert check(ONLY_EXACT).fingerprint == plain.fingerprint == check(quality="exact").fingerprint
    by_default = MODEL.model_copy(update={"quality": "draft"})
    assert check(by_default).spec == check(quality="draft").spec
    assert len({check(quality=quality).fingerprint for quality in QUALITIES}) == 3
    # Passes of its own are another thing, and go with each quality.
    assert check(quality="draft", exact=True).spec.exact and not check(quality="exact").spec.exact


@pytest.mark.parametrize("word", QUALITY_WORDS.values(), ids=lambda word: word.word)
def test_words_of_other_clients(word: Any) -> None:
    for written in (word.word, word.word.upper(), f" {word.word} "):
        made = check(quality=written)
        assert made.spec == check(quality=word.means or MODEL.quality).spec
        assert made.requested.ignored == ()
    form = checker().check(Form(prompt="a red circle", seed="1", num_inference_steps="5", quality=word.word))
    assert form.spec == check(quality=word.means, num_inference_steps=5).spec
    unoffered = check(ONLY_EXACT, quality=word.word)
    assert unoffered.spec == check(ONLY_EXACT).spec
    assert unoffered.requested.ignored == (("quality",) if word.means in ("fast", "draft") else ())


@pytest.mark.parametrize("empty", [None, "", "null", {}, []])
def test_what_is_empty_is_nothing(empty: object) -> None:
    assert check(quality=empty) == check()


@pytest.mark.parametrize("wrong", ["best", "exact fast", 1, True, 0, ["fast"], {"name": "fast"}])
def test_what_is_no_quality_is_refused_with_the_known_ones(wrong: object) -> None:
    error = refused(quality=wrong)
    assert (error.status, error.param, error.code) == (400, "quality", "invalid_value")
    assert "'exact', 'fast' or 'draft'" in error.message


def test_a_quality_that_is_not_offered_is_refused_with_the_known_ones() -> None:
    error = refused(ONLY_EXACT, quality="fast")
    assert (error.param, error.code) == ("quality", "invalid_value")
    assert "must be 'exact', best first" in error.message and "'draft'" not in error.message


def source(quality: Any) -> Job:
    # As it was accepted when `draft` meant something else.
    rules = StepRules(reuse_run=3)
    spec = VideoSpec("a red circle", "", 64, 64, 25, 24, 5, 1.5, 1, quality=quality, rules=rules)
    return Job("video_1", "mochi-1", spec, JobState.COMPLETED, Stage.DECODING, 1, 0.0)


def test_a_remix_is_of_the_same_quality_unless_it_asks_for_another() -> None:
    remix = RemixRequestChecker(checker())
    for fields in ({}, {"quality": "draft"}, {"quality": "auto"}, {"quality": "low"}):
        spec = remix.check({"prompt": "a red circle", **fields}, source("draft")).spec
        assert spec == source("draft").spec
    spec = remix.check({"prompt": "a red circle", "quality": "hd"}, source("draft")).spec
    assert (spec.quality, spec.rules) == ("exact", DEFAULT_RULES)
    assert (spec.num_inference_steps, spec.guidance_scale) == (MODEL.steps_of("exact"), MODEL.guidance_scale)
    assert (spec.seed, spec.width) == (1, 64)


def test_an_enhanced_video_may_be_of_a_better_quality() -> None:
    enhance = EnhanceRequestChecker(checker())
    kept = enhance.check({}, source("draft")).spec
    assert (kept.quality, kept.rules, kept.guidance_scale) == ("draft", StepRules(reuse_run=3), 1.5)
    better = enhance.check({"quality": "exact", "num_inference_steps": 9}, source("draft")).spec
    assert (better.quality, better.rules, better.num_inference_steps) == ("exact", DEFAULT_RULES, 9)
    assert better.guidance_scale == MODEL.guidance_scale
    with pytest.raises(InvalidRequestError, match="made with 5 steps; to enhance it"):
        enhance.check({"quality": "exact", "num_inference_steps": 5}, source("draft"))


async def test_the_answer_tells_it_and_the_model_what_there_is(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/videos", json={"prompt": "a red circle", "quality": "turbo"})
    assert (answer.json()["quality"], answer.json()["ignored_parameters"]) == ("fast", [])
    (model,) = (await client.get("/v1/models")).json()["data"]
    assert [each["name"] for each in model["qualities"]] == list(QUALITIES)
    assert model["defaults"]["quality"] == "exact"


def test_the_documentation_has_the_table() -> None:
    documentation = Path(ROOT / "docs" / "api.md").read_text()
    rows = [f"| `{word.word}` | {word.sent_by} | {word.outcome} |" for word in QUALITY_WORDS.values()]
    assert "\n".join(rows) in documentation
