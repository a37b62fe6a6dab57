import asyncio
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.exceptions import ActorUnavailableError
from ray.serve.exceptions import BackPressureError

from deployments.messages import Verdict
from serve_app.config import ClassifierSettings, SafetySettings
from serve_app.errors import ConfigError, ContentPolicyError, ServiceUnavailableError
from serve_app.ingress.app import create_app
from serve_app.prompts.safety import PromptSafety, classify_with
from tests.support.http.fakes import FakeServices

Write = Callable[[str, str], Path]

CLASSIFIER = ClassifierSettings(source="some/model", refuse=("unsafe",), threshold=0.5)


class Handle:
    """Answers as a deployment's handle does: `classify.remote(prompt)` can be awaited."""

    def __init__(self, answer: Callable[[str], Any]) -> None:
        self._answer = answer
        self.prompts: list[str] = []

    @property
    def classify(self) -> "Handle":
        return self

    async def remote(self, prompt: str) -> Any:
        self.prompts.append(prompt)
        return await self._answer(prompt)


def giving(probability: float) -> Handle:
    async def answer(prompt: str) -> Verdict:
        return Verdict("unsafe", probability)

    return Handle(answer)


def raising(error: BaseException) -> Handle:
    async def answer(prompt: str) -> Verdict:
        raise error

    return Handle(answer)


async def test_without_settings_every_prompt_passes() -> None:
    await PromptSafety(SafetySettings()).check("anything at all")


async def test_the_answer_names_the_field_and_the_log_the_line(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    safety = PromptSafety(SafetySettings(blocklist=write("list.txt", "# words\nsecretword\n")))
    await safety.check("a red circle")
    with caplog.at_level(logging.WARNING, "ray.serve"), pytest.raises(ContentPolicyError) as caught:
        await safety.check("a SECRÉTword in the rain", "text")
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "content_policy", "text")
    assert "secret" not in error.message.lower()
    assert "line 2 of the block list" in caplog.text
    assert "rain" not in caplog.text


@pytest.mark.parametrize(("probability", "refused"), [(0.0, False), (0.49, False), (0.5, True), (1.0, True)])
async def test_the_threshold_refuses(probability: float, refused: bool) -> None:
    safety = PromptSafety(SafetySettings(classifier=CLASSIFIER), classify_with(giving(probability)))
    if not refused:
        return await safety.check("a red circle")
    with pytest.raises(ContentPolicyError):
        await safety.check("a red circle")


async def test_a_probability_that_is_no_number_refuses() -> None:
    safety = PromptSafety(SafetySettings(classifier=CLASSIFIER), classify_with(giving(math.nan)))
    with pytest.raises(ContentPolicyError):
        await safety.check("a red circle")


async def test_what_the_list_refuses_is_not_shown_to_the_classifier(write: Write) -> None:
    handle = giving(0.0)
    settings = SafetySettings(blocklist=write("list.txt", "secretword"), classifier=CLASSIFIER)
    safety = PromptSafety(settings, classify_with(handle))
    with pytest.raises(ContentPolicyError):
        await safety.check("secretword")
    await safety.check("a red circle")
    assert handle.prompts == ["a red circle"]


@pytest.mark.parametrize("error", [ActorUnavailableError("away", b"0" * 16), BackPressureError(1, 1)])
async def test_without_an_answer_no_prompt_passes(error: Exception) -> None:
    safety = PromptSafety(SafetySettings(classifier=CLASSIFIER), classify_with(raising(error)))
    with pytest.raises(ServiceUnavailableError) as caught:
        await safety.check("a red circle")
    assert (caught.value.status, caught.value.code) == (503, "safety_unavailable")
    assert int(caught.value.headers["Retry-After"]) > 0


async def test_a_classifier_that_never_answers() -> None:
    async def never(prompt: str) -> Verdict:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(ServiceUnavailableError):
        await classify_with(Handle(never), timeout_s=0.01)("a red circle")


async def test_other_errors_are_not_taken_for_absence() -> None:
    with pytest.raises(KeyError):
        await classify_with(raising(KeyError("x")))("a red circle")


def test_settings_that_cannot_be_served(tmp_path: Path, write: Write) -> None:
    with pytest.raises(ConfigError, match="safety.classifier is set"):
        PromptSafety(SafetySettings(classifier=CLASSIFIER))
    with pytest.raises(ConfigError, match="missing.txt"):
        PromptSafety(SafetySettings(blocklist=tmp_path / "missing.txt"))
    with pytest.raises(ConfigError, match="line 2"):
        PromptSafety(SafetySettings(blocklist=write("list.txt", "ok\n/(/")))


async def test_a_refused_prompt_costs_nothing(write: Write) -> None:
    services = FakeServices()
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(services)), base_url="http://127.0.0.1"
    ) as client:
        first = (await client.post("/v1/videos", json={"prompt": "a red circle"})).json()["id"]
        services.safety = PromptSafety(SafetySettings(blocklist=write("list.txt", "blue")))
        for path, field in (("/v1/videos", "prompt"), ("/generate", "text"), (f"/v1/videos/{first}/remix", "prompt")):
            answer = await client.post(path, json={field: "a BLÜE circle"})
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert (error["code"], error["param"], error["type"]) == ("content_policy", field, "invalid_request_error")
        assert [*services.memory.jobs] == [first]


async def test_what_is_not_wanted_may_be_named(write: Write) -> None:
    services = FakeServices()
    services.safety = PromptSafety(SafetySettings(blocklist=write("list.txt", "blue")))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(services)), base_url="http://127.0.0.1"
    ) as client:
        answer = await client.post("/v1/videos", json={"prompt": "a red circle", "negative_prompt": "blue"})
    assert answer.status_code == 200
