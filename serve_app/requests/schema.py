"""The fields of a request for a video: their types, bounds and defaults for the served model.

One class checks requests and describes them in the OpenAPI document. The description of a field ends the sentence
"It must be ..." in error messages.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, create_model
from pydantic.config import JsonDict

from deployments.clip import PIXELS_PER_TOKEN, TEMPORAL_COMPRESSION, is_length, length_below
from deployments.settings import MAX_LORA_SCALE, Dimension, ModelSettings
from deployments.step_rules import Quality
from serve_app.jobs import TIERS, Tier
from serve_app.prompts.cleaning import clean_prompt, is_blank
from serve_app.requests import deadlines
from serve_app.requests.client_fields import CLIENT_FIELDS, Effect
from serve_app.requests.loras import known_lora, lora_sentence, scale_sentence
from serve_app.requests.qualities import AUTO as AUTO_QUALITY
from serve_app.requests.qualities import quality_sentence, quality_values
from serve_app.requests.sizes import (
    AUTO,
    BUILT_IN_SIZES,
    default_size,
    nearest_size,
    parse_aspect_ratio,
    parse_resolution,
    parse_size,
    written_size,
    wrong_side,
)

MAX_SEED = 2**63 - 1
MAX_SECONDS = 86_400

DECIMAL = re.compile(r"[+-]?[0-9]{0,40}\.?[0-9]{1,40}([eE][+-]?[0-9]{1,4})?")
SIZE_PARTS = ("width", "height")
# -1 and an empty text are no seed, see `client_fields`.
_SEED_SCHEMA: JsonDict = {
    "anyOf": [{"type": "integer", "minimum": -1, "maximum": MAX_SEED}, {"const": ""}, {"type": "null"}]
}
# Inlined: a reference to a definition would lead nowhere in the OpenAPI document.
_TIER_SCHEMA = WithJsonSchema({"type": "string", "enum": list(TIERS)})
_DURATION_SCHEMA = WithJsonSchema(
    {"anyOf": [deadlines.TEXT_SCHEMA, {"type": "number", "minimum": deadlines.MIN_S, "maximum": deadlines.MAX_S}]}
)
AnyQuality = Quality | Literal["auto"]
Duration = Annotated[str | int | float, AfterValidator(deadlines.seconds_of), _DURATION_SCHEMA]
"""Seconds once it is checked."""


def _describe_client_fields(schema: dict[str, Any]) -> None:
    """Add the fields that clients of other servers send to the JSON schema of a body."""
    own = schema.get("properties", {})
    for field in CLIENT_FIELDS.values():
        if field.effect is Effect.RENAMED and field.note not in own:
            continue
        described = own[field.note] if field.effect is Effect.RENAMED else field.json_schema
        own[field.name] = {**described, "description": f"{field.outcome} ({field.sent_by})"}


class Request(BaseModel):
    """The fields of a request's body, checked."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, json_schema_extra=_describe_client_fields)


class VideoRequest(Request):
    """All that can be asked of any model; `request_schema` adds the bounds and defaults of one."""

    prompt: str
    negative_prompt: str
    model: str
    size: str | None
    aspect_ratio: str | None
    resolution: str | None
    seconds: str | int | float | None
    width: int
    height: int
    num_frames: int
    fps: int
    quality: AnyQuality | None
    num_inference_steps: int
    guidance_scale: float
    lora: str | None
    lora_scale: float | None
    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description=f"an integer from 0 to {MAX_SEED}; without it, and for -1, one is drawn",
        json_schema_extra=_SEED_SCHEMA,
    )
    exact: bool = Field(
        False, description="true or false; true gives the same bits each time on the same kind of device"
    )
    priority: Annotated[Tier, Field(strict=False), _TIER_SCHEMA] | None = Field(
        None,
        description=f"{', '.join(TIERS[:-1])} or {TIERS[-1]}; what waits with a higher priority goes first; default: "
        f"{Tier.STANDARD}, or the tenant's highest if that is lower",
    )
    webhook_url: str | None = Field(
        None,
        max_length=2000,
        description="an http or https URL with a public address; it is sent a signed event when the video is "
        "completed, failed or cancelled",
    )
    cancel_after: Duration | None = Field(None, description=deadlines.ALLOWED)


class RemixRequest(Request):
    """What can be asked of a remix; the rest is as in the video that it is made from."""

    prompt: str
    quality: AnyQuality | None
    lora: str | None
    lora_scale: float | None
    priority: Tier | None
    webhook_url: str | None
    cancel_after: Duration | None


class EnhanceRequest(Request):
    """What can be asked of an enhanced video; the rest is as in the video that it is made from."""

    quality: AnyQuality | None
    num_inference_steps: int
    lora: str | None
    lora_scale: float | None
    priority: Tier | None
    webhook_url: str | None
    cancel_after: Duration | None


Derived = TypeVar("Derived", RemixRequest, EnhanceRequest)


def request_schema(settings: ModelSettings, name: str, prompt_field: str = "prompt") -> type[VideoRequest]:
    """The class of requests to a model.

    Args:
        settings: of the model.
        name: of the class in the OpenAPI document.
        prompt_field: what the prompt is called on the wire.
    """
    max_chars = settings.max_prompt_chars
    chars = f"{max_chars} characters, without control characters except tab and newline"
    frames = settings.num_frames

    class ModelRequest(VideoRequest):
        model_config = ConfigDict(title=name)

        prompt: Annotated[
            str, Field(max_length=max_chars), AfterValidator(clean_prompt), AfterValidator(_not_blank)
        ] = Field(alias=prompt_field, min_length=1, description=f"a text, not blank, of at most {chars}")
        negative_prompt: Annotated[str, Field(max_length=max_chars), AfterValidator(clean_prompt)] = Field(
            "", description=f"a text of at most {chars}"
        )
        model: str = Field(settings.name, description=_model_sentence(settings))
        size: Annotated[str, AfterValidator(_size_check(settings))] | None = Field(
            None, description=_size_sentence(settings)
        )
        aspect_ratio: Annotated[str, AfterValidator(_aspect_ratio)] | None = Field(
            None,
            description="'WIDTH:HEIGHT', for example '16:9'; the nearest size of this shape is made; not together with "
            "size, width or height",
        )
        resolution: Annotated[str, AfterValidator(_resolution)] | None = Field(
            None,
            description="the shorter side as '480p'; the nearest size is made; not together with size, width or height",
        )
        seconds: Annotated[str | int | float, AfterValidator(_seconds)] | None = Field(
            None, description=_seconds_sentence(settings)
        )
        width: int = _integer(settings.width, "in pixels, a multiple of 16", PIXELS_PER_TOKEN)
        height: int = _integer(settings.height, "in pixels, a multiple of 16", PIXELS_PER_TOKEN)
        num_frames: Annotated[
            int, Field(ge=frames.minimum, le=frames.maximum), AfterValidator(_whole_latent_frames)
        ] = Field(frames.default, description=_num_frames_sentence(frames))
        fps: int = _integer(settings.fps, "in frames a second")
        quality: Annotated[AnyQuality, AfterValidator(_offered(settings))] | None = Field(
            None,
            description=quality_sentence(settings),
            json_schema_extra={"anyOf": [{"enum": [*quality_values(settings)]}, {"type": "null"}]},
        )
        num_inference_steps: int = _integer(settings.num_inference_steps, "in denoising steps")
        guidance_scale: float = Field(
            settings.guidance_scale,
            ge=1,
            le=settings.max_guidance_scale,
            allow_inf_nan=False,
            description=f"a number from 1 to {settings.max_guidance_scale:g}",
        )
        lora: Annotated[str, AfterValidator(known_lora(settings))] | None = Field(
            None,
            description=lora_sentence(settings),
            json_schema_extra={"anyOf": [{"enum": [*settings.loras, ""]}, {"type": "null"}]},
        )
        lora_scale: float | None = Field(
            None, ge=0, le=MAX_LORA_SCALE, allow_inf_nan=False, description=scale_sentence()
        )

    return ModelRequest


def derived_schema(kind: type[Derived], schema: type[VideoRequest], name: str) -> type[Derived]:
    """The class of requests that have only the fields of `kind`, each with its bounds in `schema`."""
    picked = {field: schema.model_fields[field] for field in kind.model_fields}
    fields: dict[str, Any] = {field: (info.annotation, info) for field, info in picked.items()}
    return create_model(name, __base__=kind, **fields)


def allowed_values(schema: type[BaseModel]) -> dict[str, str | None]:
    """What each field must be, by its name on the wire."""
    return {info.alias or name: info.description for name, info in schema.model_fields.items()}


def _integer(bounds: Dimension, what: str, multiple_of: int = 1) -> Any:
    return Field(
        bounds.default,
        ge=bounds.minimum,
        le=bounds.maximum,
        multiple_of=multiple_of,
        description=f"an integer from {bounds.minimum} to {bounds.maximum}, {what}",
    )


def _model_sentence(settings: ModelSettings) -> str:
    known = f"'{settings.name}', the model that is served"
    return f"{known} (or {', '.join(map(repr, settings.aliases))}, which mean the same)" if settings.aliases else known


def _size_sentence(settings: ModelSettings) -> str:
    width, height = settings.width, settings.height
    fitted = f"or '{AUTO}' or a size that clients have built in ({', '.join(BUILT_IN_SIZES[:4])}, ...), for which the "
    return (
        f"'WIDTHxHEIGHT' in pixels, both multiples of 16, width from {width.minimum} to {width.maximum}, "
        f"height from {height.minimum} to {height.maximum}, for example '{width.default}x{height.default}'; "
        + (f"{fitted}nearest is made; " if settings.fit_sizes else "")
        + "not together with width or height"
    )


def _seconds_sentence(settings: ModelSettings) -> str:
    frames, fps = settings.num_frames.maximum, settings.fps.default
    return (
        "a number above 0 or one as text, rounded to the nearest possible number of frames, "
        f"at most {frames} frames ({frames / fps:.3g} seconds at {fps} fps)"
        + ("; for a longer one the longest is made" if settings.fit_seconds else "")
        + "; not together with num_frames"
    )


def _num_frames_sentence(bounds: Dimension) -> str:
    shortest = ", ".join(str(n) for n in range(bounds.minimum, bounds.maximum + 1, TEMPORAL_COMPRESSION)[:3])
    return f"an integer from {bounds.minimum} to {bounds.maximum} of the form 6k + 1 ({shortest}, ...)"


def _not_blank(text: str) -> str:
    if is_blank(text):
        raise ValueError("blank")
    return text


def _offered(settings: ModelSettings) -> Callable[[AnyQuality], AnyQuality]:
    def check(quality: AnyQuality) -> AnyQuality:
        if quality != AUTO_QUALITY and quality not in settings.offered:
            raise ValueError("this model has no such quality")
        return quality

    return check


def _size_check(settings: ModelSettings) -> Callable[[str], str]:
    def check(text: str) -> str:
        written = written_size(text)
        if written == AUTO or parse_resolution(written):
            size = default_size(settings)
            wrong = None if settings.fit_sizes else f"this server fits no sizes; its default is {size}"
        elif size_or_none := parse_size(written):
            size = size_or_none
            wrong = wrong_side(size, settings)
            if settings.fit_sizes and written in BUILT_IN_SIZES:
                return written
            if wrong and size.width and size.height:
                nearest = nearest_size(size.width, size.height, settings, settings.num_frames.minimum)
                wrong += f"; the nearest is {nearest}"
        else:
            wrong = "not WIDTHxHEIGHT"
        if wrong:
            raise ValueError(wrong)
        return written

    return check


def _aspect_ratio(text: str) -> str:
    written = text.strip(" ")
    if not parse_aspect_ratio(written):
        raise ValueError("not WIDTH:HEIGHT")
    return written


def _resolution(text: str) -> str:
    written = written_size(text)
    if not parse_resolution(written):
        raise ValueError("not the height of a picture as 480p")
    return written


def _whole_latent_frames(num_frames: int) -> int:
    if not is_length(num_frames):
        raise ValueError(f"the next one below is {length_below(num_frames)}")
    return num_frames


def _seconds(value: str | int | float) -> float:
    if isinstance(value, str) and not DECIMAL.fullmatch(value):
        raise ValueError("not a number")
    # Compared before the conversion: an integer may be too large for a float.
    number = float(value) if isinstance(value, str) else value
    if not 0 < number <= MAX_SECONDS:
        raise ValueError("out of range")
    return float(number)
