"""Which LoRA a request asks for: a name that the server's settings have, and by how much it counts."""

import json
from collections.abc import Callable
from dataclasses import replace

from deployments.messages import VideoSpec
from deployments.settings import MAX_LORA_SCALE, ModelSettings
from serve_app.errors import InvalidRequestError, conflict, quote
from serve_app.requests.client_fields import EMPTY, Understood

FIELD = "lora"
SCALE_FIELD = "lora_scale"
_AS_TRAINED = 1.0


def understand_lora(understood: Understood) -> Understood:
    """Put a name and a scale in place of the object {"name": ..., "scale": ...} that vllm-omni's clients send.

    An empty value is none. What is neither stays for `check_fields` to refuse.

    Raises:
        InvalidRequestError: the object has another entry, or `lora_scale` says something else.
    """
    if FIELD not in understood.fields:
        return understood
    value = _parsed(understood.fields[FIELD])
    fields = type(understood.fields)(understood.fields)  # a Form stays one
    if value in EMPTY:
        del fields[FIELD]
        return replace(understood, fields=fields)
    if not isinstance(value, dict):
        return understood
    if unknown := [key for key, entry in value.items() if key not in ("name", "scale") and entry not in EMPTY]:
        raise InvalidRequestError(
            f"Invalid '{FIELD}': got {quote(unknown[0])} in it. It may have 'name' and 'scale': LoRAs are loaded by "
            "this server's settings, and not for a request.",
            FIELD,
        )
    scale = value.get("scale")
    if scale is not None and fields.get(SCALE_FIELD) not in (None, scale, str(scale)):
        raise conflict(FIELD, SCALE_FIELD)
    fields[FIELD] = value.get("name")
    if scale is not None:
        fields[SCALE_FIELD] = scale
    return replace(understood, fields=fields)


def _parsed(value: object) -> object:
    """A form has the object as text."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def known_lora(model: ModelSettings) -> Callable[[str], str]:
    """A check of a name. It raises ValueError."""

    def check(name: str) -> str:
        if name not in model.loras:
            raise ValueError("there is no such LoRA" if model.loras else "this server has no LoRAs")
        return name

    return check


def lora_sentence(model: ModelSettings) -> str:
    """What the field must be."""
    if not model.loras:
        return "left out: this server has no LoRAs"
    return f"the name of a LoRA: {' or '.join(map(repr, model.loras))}; without it the model is as it is"


def scale_sentence() -> str:
    """What the field must be."""
    return (
        f"a number from 0 to {MAX_LORA_SCALE:g}, by how much the LoRA counts: {_AS_TRAINED:g} as it was trained, 0 not "
        "at all; only for a video with a LoRA"
    )


def with_lora(spec: VideoSpec, name: str | None, scale: float | None, model: ModelSettings) -> VideoSpec:
    """The video with this LoRA and scale; what is None is as it is, but the scale of another LoRA.

    Raises:
        InvalidRequestError: a scale without a LoRA, or the video's own LoRA is not served any more.
    """
    lora = name or spec.lora
    if lora is None:
        if scale is not None:
            raise InvalidRequestError(
                f"'{SCALE_FIELD}' is of a LoRA, and none is asked for: name one in '{FIELD}', or leave it out.",
                SCALE_FIELD,
            )
        return spec
    kept = spec.lora_scale if lora == spec.lora else _AS_TRAINED
    made = replace(spec, lora=lora, lora_scale=kept if scale is None else scale)
    if made.lora_choice is not None and lora not in model.loras:
        known = f"name another ({', '.join(map(repr, model.loras))}), or " if model.loras else ""
        raise InvalidRequestError(
            f"The video was made with the LoRA {quote(lora)}, which is not served any more: {known}ask for "
            f"'{SCALE_FIELD}': 0 to do without.",
            FIELD,
        )
    return made
