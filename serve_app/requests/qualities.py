"""Which quality a request asks for: this API's own names, and the words of other servers' clients, in one table."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from deployments.settings import ModelSettings
from deployments.step_rules import QUALITIES, Quality
from serve_app.requests.client_fields import EMPTY, Understood

FIELD = "quality"
AUTO: Literal["auto"] = "auto"
"""The word that leaves the quality to the server: the default one, or a draft where that would wait for long."""
DRAFT: Quality = "draft"


@dataclass(frozen=True, slots=True)
class QualityWord:
    """A word that is no quality of ours."""

    word: str
    sent_by: str
    means: Quality | None  # None: what the server makes by default

    @property
    def outcome(self) -> str:
        """What happens, for people."""
        if self.word == AUTO:
            return "as if it were not given, or a [draft under load](#drafts-under-load)"
        return "as if it were not given" if self.means is None else f"the same as `{self.means}`"


_OPENAI = "OpenAI's clients"

QUALITY_WORDS: dict[str, QualityWord] = {
    word.word: word
    for word in (
        QualityWord(AUTO, _OPENAI, None),
        QualityWord("standard", _OPENAI, None),
        QualityWord("hd", _OPENAI, "exact"),
        QualityWord("high", f"{_OPENAI}, sglang", "exact"),
        QualityWord("medium", f"{_OPENAI}, sglang", "fast"),
        QualityWord("turbo", "Open WebUI's forks", "fast"),
        QualityWord("low", f"{_OPENAI}, sglang", "draft"),
    )
}


def understand_quality(understood: Understood, model: ModelSettings) -> Understood:
    """Put our name in place of a client's word for a quality.

    A word for a quality that the model does not offer makes no difference, which the answer tells: a client may have
    it built in. `auto` stays, and so does what is neither a quality nor such a word, for `check_fields` to refuse.
    """
    value = understood.fields.get(FIELD)
    word = value.strip().lower() if isinstance(value, str) else value
    if isinstance(word, str) and (word == AUTO or word in QUALITIES):
        return _with(understood, word)
    if isinstance(word, str) and word in QUALITY_WORDS:
        means = QUALITY_WORDS[word].means
        if means is None or means in model.offered:
            return _with(understood, means)
        return replace(_with(understood, None), ignored=(*understood.ignored, FIELD))
    return _with(understood, None) if word in EMPTY else understood


def quality_sentence(model: ModelSettings) -> str:
    """What the field must be."""
    return (
        f"{_listed([repr(name) for name in model.offered])}, best first (or {', '.join(map(repr, QUALITY_WORDS))}, "
        f"words that clients have built in; with '{AUTO}' it may be a draft where it would wait for long); "
        f"default: '{model.quality}'"
    )


def quality_values(model: ModelSettings) -> list[str]:
    """All texts that the field may be."""
    return [*model.offered, *QUALITY_WORDS, ""]


def _with(understood: Understood, quality: str | None) -> Understood:
    fields = type(understood.fields)(understood.fields)  # a Form stays one
    if quality is None:
        fields.pop(FIELD, None)
    else:
        fields[FIELD] = quality
    return replace(understood, fields=fields)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
