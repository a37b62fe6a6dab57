"""Fields that clients of other servers send, and what happens to each: the one table of them.

A client of one of the many servers with this API sends fields that this server has no use for, or calls ours by another
name. None of them costs it its request unless it asks for what cannot be done: that would be another video than the one
that was asked for. `docs/api.md` and the OpenAPI document show the table.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from serve_app.errors import InvalidRequestError, conflict, quote
from serve_app.requests.body import Form

# Of objects in objects; clients wrap their fields once, and some twice.
MAX_DEPTH = 4
# What counts as not given; the texts are those of forms.
EMPTY: tuple[object, ...] = (None, "", [], {}, "null", "[]", "{}")


class Effect(StrEnum):
    """What happens to a field."""

    RENAMED = "renamed"  # it is one of ours
    UNPACKED = "unpacked"  # its entries are fields of the request
    IGNORED = "ignored"  # it makes no difference, and the answer tells so
    ONLY = "only"  # it may say just what is done anyway
    REFUSED = "refused"  # it may only be empty


@dataclass(frozen=True, slots=True)
class ClientField:
    """A field that is no field of ours."""

    name: str
    sent_by: str
    effect: Effect
    note: str  # our name of a RENAMED field; else why, to end a sentence
    only: tuple[object, ...] = ()  # the values of an ONLY field, as JSON has them

    @property
    def outcome(self) -> str:
        """What happens, for people."""
        match self.effect:
            case Effect.RENAMED:
                return f"the same as `{self.note}`"
            case Effect.UNPACKED:
                return "a JSON object, or one as text; its entries count as fields of the request"
            case Effect.IGNORED:
                return f"ignored: {self.note}"
            case Effect.ONLY:
                return f"only {' or '.join(f'`{json.dumps(value)}`' for value in self.only)}: {self.note}"
            case Effect.REFUSED:
                return f"refused unless it is empty: {self.note}"

    @property
    def json_schema(self) -> dict[str, Any]:
        """For the OpenAPI document; of a RENAMED field it is that of ours."""
        match self.effect:
            case Effect.UNPACKED:
                return {"type": ["object", "string", "null"]}
            case Effect.ONLY | Effect.REFUSED:
                return {"enum": list(self.harmless)}
        return {}

    @property
    def harmless(self) -> tuple[object, ...]:
        """What an ONLY or REFUSED field may be: forms have it as text, as JSON or Python writes it."""
        texts = (text for value in self.only for text in (str(value), json.dumps(value)) if not isinstance(value, str))
        return (*self.only, *dict.fromkeys(texts), *EMPTY)


def _fields(effect: Effect, sent_by: str, note: str, *names: str, only: tuple[object, ...] = ()) -> list[ClientField]:
    return [ClientField(name, sent_by, effect, note, only) for name in names]


_TEXT_ALONE = "the model makes videos from text alone"
_OTHER_MODELS = "it belongs to models of another kind"
_OWN_WAY = "the server decides how it samples and encodes"

CLIENT_FIELDS: dict[str, ClientField] = {
    field.name: field
    for field in (
        *_fields(Effect.RENAMED, "LiteLLM, OpenRouter, new-api", "seconds", "duration"),
        *_fields(Effect.RENAMED, "OpenRouter", "webhook_url", "callback_url"),
        *_fields(Effect.UNPACKED, "sglang, LiteLLM", "", "extra_body", "extra_json"),
        *_fields(Effect.UNPACKED, "vllm-omni, sglang, LiteLLM", "", "extra_params"),
        *_fields(Effect.UNPACKED, "NVIDIA Dynamo", "", "nvext"),
        *_fields(Effect.IGNORED, "OpenAI, LiteLLM, Dynamo", "keys and tenants say whose a request is", "user"),
        *_fields(Effect.IGNORED, "OpenAI, LiteLLM", "nothing is kept beside the video", "metadata"),
        *_fields(Effect.IGNORED, "OpenAI's image clients", "the prompt says the style", "style"),
        *_fields(Effect.IGNORED, "new-api", "`quality` and the steps decide the quality", "mode"),
        *_fields(Effect.IGNORED, "vllm-omni, sglang", _OTHER_MODELS, "flow_shift"),
        *_fields(Effect.IGNORED, "vllm-omni", _OTHER_MODELS, "boundary_ratio", "true_cfg_scale", "guidance_scale_2"),
        *_fields(
            Effect.IGNORED,
            "sglang",
            _OWN_WAY,
            *("enable_teacache", "enable_cache_dit", "cache_dit_params", "cfg_gate_step"),
            *("attention_backend_override", "diffusers_kwargs"),
            *("output_quality", "output_compression", "x264_preset"),
        ),
        *_fields(Effect.IGNORED, "vllm-omni", _OWN_WAY, "video_codec_options", "preencode_mp4"),
        *_fields(Effect.ONLY, "OpenAI, sglang, LiteLLM", "a request makes one video", "n", only=(1,)),
        *_fields(
            Effect.ONLY, "OpenAI, Dynamo", "the video is downloaded by its id", "response_format", only=("url", "mp4")
        ),
        *_fields(Effect.ONLY, "Dynamo", "videos are mp4", "output_format", only=("mp4",)),
        *_fields(
            Effect.ONLY,
            "Dynamo",
            "progress comes from GET /v1/videos/{id}/events",
            "stream",
            only=(False,),
        ),
        *_fields(
            Effect.ONLY,
            "LiteLLM, OpenRouter, vllm-omni",
            "the videos have no sound",
            *("generate_audio", "generate_sound"),
            only=(False,),
        ),
        *_fields(Effect.ONLY, "sglang", "the prompt is used as it is", "enhance_prompt", only=(False,)),
        *_fields(
            Effect.ONLY,
            "vllm-omni, sglang",
            "the model's own frames are sent",
            *("enable_frame_interpolation", "enable_upscaling"),
            only=(False,),
        ),
        *_fields(Effect.REFUSED, "OpenAI, vllm-omni, n8n", _TEXT_ALONE, "input_reference"),
        *_fields(Effect.REFUSED, "LiteLLM, OpenAI", _TEXT_ALONE, "characters"),
        *_fields(Effect.REFUSED, "OpenRouter", _TEXT_ALONE, "input_references", "frame_images"),
        *_fields(Effect.REFUSED, "vllm-omni", _TEXT_ALONE, "image_reference", "video_reference", "audio_reference"),
        *_fields(Effect.REFUSED, "sglang", _TEXT_ALONE, "reference_url"),
        *_fields(Effect.REFUSED, "new-api", _TEXT_ALONE, "image", "images"),
        *_fields(
            Effect.REFUSED, "vllm-omni, sglang", "a video has one LoRA, and `lora` is the field that names it", "loras"
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Understood:
    """A request in this API's own words, not checked yet."""

    fields: dict[str, object]  # a Form if the request was one
    ignored: tuple[str, ...]  # names of fields that make no difference


def understand(fields: Mapping[str, object], own: Collection[str]) -> Understood:
    """Translate the fields of other servers. A name that nobody knows stays for `check_fields` to refuse.

    Args:
        fields: of a body.
        own: what this API calls the fields of the request.

    Raises:
        InvalidRequestError: a field asks for what cannot be done, or two say different things.
    """
    made: dict[str, object] = Form() if isinstance(fields, Form) else {}
    names: dict[str, str] = {}  # as what the client sent each
    ignored: dict[str, None] = {}
    for name, value in _unpacked(fields, own, 1):
        field = None if name in own else CLIENT_FIELDS.get(name.partition("[")[0])
        ours = name
        if field is not None:
            if field.effect is Effect.RENAMED and field.note in own:
                ours = field.note
            elif field.effect is Effect.IGNORED:
                if not _is_one_of(value, EMPTY):
                    ignored[field.name] = None
                continue
            elif field.effect in (Effect.ONLY, Effect.REFUSED):
                _check_harmless(field, value)
                continue
        if value is None or (ours == "seed" and _is_random(value)):
            continue
        if ours in names and not _is_same(made[ours], value):
            raise conflict(names[ours], name)
        made[ours] = value
        names.setdefault(ours, name)
    return Understood(made, tuple(ignored))


def _unpacked(fields: Mapping[str, object], own: Collection[str], depth: int) -> Iterator[tuple[str, object]]:
    """Names and values, those inside of objects too."""
    for name, value in fields.items():
        base, _, entry = name.partition("[")
        field = CLIENT_FIELDS.get(base)
        if name in own or field is None or field.effect is not Effect.UNPACKED:
            yield name, value
        elif entry:  # a form has one part for each: extra_body[seed]
            yield from _unpacked({entry.removesuffix("]"): value}, own, depth)
        elif depth >= MAX_DEPTH:
            raise InvalidRequestError(f"'{base}' is nested too deeply; give its entries as fields.", base)
        else:
            yield from _unpacked(_entries(field, value), own, depth + 1)


def _entries(field: ClientField, value: object) -> Mapping[str, object]:
    parsed = {} if value is None or value == "" else value
    if isinstance(value, str) and value:
        try:
            parsed = json.loads(value)
            parsed = {} if parsed is None else parsed
        except (ValueError, RecursionError):
            parsed = None
    if not isinstance(parsed, dict):
        raise InvalidRequestError(f"Invalid '{field.name}': got {quote(value)}. It must be a JSON object.", field.name)
    return parsed


def _check_harmless(field: ClientField, value: object) -> None:
    if _is_one_of(value, field.harmless):
        return
    allowed = f"; {field.name} may be {' or '.join(json.dumps(value) for value in field.only)}" if field.only else ""
    raise InvalidRequestError(
        f"Unsupported parameter: '{field.name}'. Here {field.note}{allowed}, or leave it out.",
        field.name,
        "unsupported_parameter",
    )


def _is_one_of(value: object, values: Iterable[object]) -> bool:
    """As JSON has it, where true is no 1."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)


def _is_same(one: object, other: object) -> bool:
    """Whether two values say the same, as text or not. All of our fields are scalars, so lists and objects do not."""
    return all(isinstance(value, str | int | float) for value in (one, other)) and str(one) == str(other)


def _is_random(seed: object) -> bool:
    """Other servers draw a seed for -1, and forms send an empty field for one that is not filled in."""
    return not isinstance(seed, bool) and seed in (-1, "-1", "")
