"""The fields of a request for a video: their types, bounds and defaults for the served model.

One class checks requests and describes them in the OpenAPI document. A field's description ends the sentence
"It must be ..." in error messages.
"""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, create_model

from deployments.clip import PIXELS_PER_TOKEN, TEMPORAL_COMPRESSION, is_length, is_side, length_below
from deployments.settings import Dimension, ModelSettings
from serve_app.jobs import TIERS, Tier
from serve_app.prompts.cleaning import clean_prompt

MAX_SEED = 2**63 - 1
MAX_SECONDS = 86_400

DECIMAL = re.compile(r"[+-]?[0-9]{0,40}\.?[0-9]{1,40}([eE][+-]?[0-9]{1,4})?")
SIZE_PARTS = ("width", "height")
_SIZE = re.compile(r"([0-9]{1,6})x([0-9]{1,6})")
# White space and what draws nothing: Default_Ignorable_Code_Point of Unicode's DerivedCoreProperties.txt, the marks of
# interlinear annotation and the empty braille pattern.
_INVISIBLE = re.compile(
    r"[\s\u00AD\u034F\u061C\u115F\u1160\u17B4\u17B5\u180B-\u180F\u200B-\u200F\u202A-\u202E\u2060-\u206F\u2800\u3164"
    r"\uFE00-\uFE0F\uFEFF\uFFA0\uFFF0-\uFFFB\U0001BCA0-\U0001BCA3\U0001D173-\U0001D17A\U000E0000-\U000E0FFF]*"
)


class VideoRequest(BaseModel):
    """The fields that all models share; `request_schema` adds bounds and defaults."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    prompt: str
    negative_prompt: str
    model: str
    size: str | None
    seconds: str | int | float | None
    width: int
    height: int
    num_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    seed: int | None
    exact: bool
    priority: Tier | None
    webhook_url: str | None


def request_schema(model: ModelSettings, name: str, prompt_field: str = "prompt") -> type[VideoRequest]:
    """The class of requests to `model`, named `name` in the OpenAPI document.

    Args:
        prompt_field: what the prompt is called on the wire.
    """
    text = Annotated[str, Field(max_length=model.max_prompt_chars), AfterValidator(clean_prompt)]
    guidance = Annotated[float, Field(ge=1, le=model.max_guidance_scale, allow_inf_nan=False)]
    chars = f"{model.max_prompt_chars} characters, without control characters except tab and newline"
    prompt_field_info = Field(alias=prompt_field, min_length=1, description=f"a text, not blank, of at most {chars}")
    fields: dict[str, Any] = {
        "prompt": (Annotated[text, AfterValidator(_not_blank)], prompt_field_info),
        "negative_prompt": (text, Field("", description=f"a text of at most {chars}")),
        "model": (str, Field(model.name, description=f"'{model.name}', the model that is served")),
        "size": _size_field(model),
        "seconds": _seconds_field(model),
        "width": _integer(model.width, PIXELS_PER_TOKEN, "in pixels, a multiple of 16"),
        "height": _integer(model.height, PIXELS_PER_TOKEN, "in pixels, a multiple of 16"),
        "num_frames": _num_frames_field(model.num_frames),
        "fps": _integer(model.fps, 1, "in frames a second"),
        "num_inference_steps": _integer(model.num_inference_steps, 1, "in denoising steps"),
        "guidance_scale": (
            guidance,
            Field(model.guidance_scale, description=f"a number from 1 to {model.max_guidance_scale:g}"),
        ),
        "seed": (
            Annotated[int, Field(ge=0, le=MAX_SEED)] | None,
            Field(None, description=f"an integer from 0 to {MAX_SEED}; without it one is drawn"),
        ),
        "exact": (
            bool,
            Field(False, description="true or false; true gives the same bits each time on the same kind of device"),
        ),
        "priority": _priority_field(),
        "webhook_url": _webhook_field(),
    }
    return create_model(name, __base__=VideoRequest, **fields)


def derived_schema(of: type[VideoRequest], name: str, *fields: str) -> type[BaseModel]:
    """The class of requests that have only these fields of `of`, and take the rest from another video."""
    picked: dict[str, Any] = {field: (of.model_fields[field].annotation, of.model_fields[field]) for field in fields}
    return create_model(name, __config__=VideoRequest.model_config, **picked)


def _integer(bounds: Dimension, multiple_of: int, what: str) -> tuple[Any, Any]:
    checked = Annotated[int, Field(ge=bounds.minimum, le=bounds.maximum, multiple_of=multiple_of)]
    description = f"an integer from {bounds.minimum} to {bounds.maximum}, {what}"
    return checked, Field(bounds.default, description=description)


def _num_frames_field(bounds: Dimension) -> tuple[Any, Any]:
    checked = Annotated[int, Field(ge=bounds.minimum, le=bounds.maximum), AfterValidator(_whole_latent_frames)]
    description = (
        f"an integer from {bounds.minimum} to {bounds.maximum} of the form 6k + 1 "
        f"({', '.join(str(n) for n in range(bounds.minimum, bounds.maximum + 1, TEMPORAL_COMPRESSION)[:3])}, ...)"
    )
    return checked, Field(bounds.default, description=description)


def _size_field(model: ModelSettings) -> tuple[Any, Any]:
    def check(size: str) -> str:
        match = _SIZE.fullmatch(size)
        if not match:
            raise ValueError("not WIDTHxHEIGHT")
        for side, bounds, what in zip(match.groups(), (model.width, model.height), SIZE_PARTS, strict=True):
            if not is_side(int(side)) or not bounds.minimum <= int(side) <= bounds.maximum:
                raise ValueError(f"{what} {side}")
        return size

    w, h = model.width, model.height
    description = (
        f"'WIDTHxHEIGHT' in pixels, both multiples of 16, width from {w.minimum} to {w.maximum}, "
        f"height from {h.minimum} to {h.maximum}, for example '{w.default}x{h.default}'; not together with "
        "width or height"
    )
    return Annotated[str, AfterValidator(check)] | None, Field(None, description=description)


def _seconds_field(model: ModelSettings) -> tuple[Any, Any]:
    longest = model.num_frames.maximum / model.fps.default
    description = (
        "a number above 0 or one as text, rounded to the nearest possible number of frames, "
        f"at most {model.num_frames.maximum} frames ({longest:.3g} seconds at {model.fps.default} fps); "
        "not together with num_frames"
    )
    return Annotated[str | int | float, AfterValidator(_seconds)] | None, Field(None, description=description)


def _priority_field() -> tuple[Any, Any]:
    *names, last = TIERS
    # Inlined: a reference to a definition would lead nowhere in the OpenAPI document.
    schema = WithJsonSchema({"type": "string", "enum": list(TIERS)})
    description = (
        f"{', '.join(names)} or {last}; what waits with a higher priority goes first; default: "
        f"{Tier.STANDARD}, or the tenant's highest if that is lower"
    )
    return Annotated[Tier, Field(strict=False), schema] | None, Field(None, description=description)


def _webhook_field() -> tuple[Any, Any]:
    description = (
        "an http or https URL with a public address; it is sent a signed event when the video is completed, failed or "
        "cancelled"
    )
    return Annotated[str, Field(max_length=2000)] | None, Field(None, description=description)


def allowed_values(schema: type[BaseModel]) -> dict[str, str | None]:
    """What each field must be, by its name on the wire."""
    return {info.alias or name: info.description for name, info in schema.model_fields.items()}


def _not_blank(text: str) -> str:
    if _INVISIBLE.fullmatch(text):
        raise ValueError("blank")
    return text


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
