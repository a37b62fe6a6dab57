"""Refuses prompts, by a block list and by a classifier, before anything is written or spent.

The block list finds words as they are spelled. Words that are disguised (l33t, s p e l l e d) are found by the
classifier alone.

Only the prompt is checked. A negative prompt says what is not wanted, and careful people write just the listed words
there ("nude, gore"); guidance moves the video away from it, so it cannot bring in what it names.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from deployments.messages import Verdict
from serve_app.config import ClassifierSettings, SafetySettings
from serve_app.errors import ConfigError, ContentPolicyError, ServiceUnavailableError
from serve_app.prompts.blocklist import load_blocklist

log = logging.getLogger("ray.serve")

Classify = Callable[[str], Awaitable[Verdict]]

CLASSIFY_TIMEOUT_S = 10.0
RETRY_AFTER_S = 5


class PromptSafety:
    """The checks that the settings ask for; without a block list and a classifier every prompt passes.

    Args:
        settings: which checks there are.
        classify: asks the classifier; needed if the settings have one, see `classify_with`.

    Raises:
        ConfigError: the block list cannot be read or holds a bad entry, or the classifier is missing.
    """

    def __init__(self, settings: SafetySettings, classify: Classify | None = None) -> None:
        self._blocklist = None if settings.blocklist is None else load_blocklist(settings.blocklist)
        self._classifier = settings.classifier
        self._classify = classify
        if settings.classifier is not None and classify is None:
            raise ConfigError("safety.classifier is set, and no classifier was started with the app")

    async def check(self, prompt: str, param: str = "prompt") -> None:
        """Return if the prompt passes.

        The log names the entry or the label that refused it. The answer does not: the list could be found out word by
        word.

        Args:
            prompt: cleaned.
            param: what the prompt is called in the request.

        Raises:
            ContentPolicyError: the prompt is refused.
            ServiceUnavailableError: `safety_unavailable`, the classifier does not answer; no prompt passes unseen.
        """
        await self._check_blocklist(prompt, param)
        if self._classifier is not None and self._classify is not None:
            await self._check_class(prompt, param, self._classifier, self._classify)

    async def _check_blocklist(self, prompt: str, param: str) -> None:
        if self._blocklist is None:
            return
        # In a thread: its regular expressions may be searched for as long as seconds.
        hit = await asyncio.to_thread(self._blocklist.find, prompt)
        if hit is not None:
            why = "its search took too long" if hit.slow else "it was found"
            log.warning(f"refused a prompt of {len(prompt)} characters: line {hit.line} of the block list, {why}")
            raise _refused(param)

    async def _check_class(self, prompt: str, param: str, settings: ClassifierSettings, classify: Classify) -> None:
        verdict = await classify(prompt)
        # Written so that a probability that is no number refuses.
        if not verdict.probability < settings.threshold:
            found = f"{verdict.label!r} with probability {verdict.probability:.3f}"
            log.warning(f"refused a prompt of {len(prompt)} characters: the classifier found {found}")
            raise _refused(param)


def classify_with(handle: Any, timeout_s: float = CLASSIFY_TIMEOUT_S) -> Classify:
    """A function that asks a deployment for its verdict on a prompt.

    It raises ServiceUnavailableError, `safety_unavailable`, if no answer comes in time.

    Args:
        handle: of `deployments.prompts.prompt_classifier.PromptClassifier`.
        timeout_s: longest time for one prompt.
    """

    async def classify(prompt: str) -> Verdict:
        try:
            async with asyncio.timeout(timeout_s):
                verdict: Verdict = await handle.classify.remote(prompt)
                return verdict
        except (RayError, RayServeException, TimeoutError) as error:
            log.error(f"the prompt classifier gave no answer: {type(error).__name__}: {error}")
            raise ServiceUnavailableError(
                "Prompts cannot be checked now, so none is accepted; send the request again later.",
                code="safety_unavailable",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            ) from error

    return classify


def _refused(param: str) -> ContentPolicyError:
    return ContentPolicyError(
        "This prompt is refused by the content policy of this server, and nothing was spent on it; "
        "describe something else.",
        param,
    )
