"""From the fields of a request to what is asked for: defaults, conflicts, and the arithmetic of seconds and frames.

Types and bounds of single fields are in `request_schema`; here is what concerns several of them.
"""

import hashlib
import json
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError

from deployments.messages import VideoSpec
from deployments.settings import Dimension, ModelSettings
from serve_app.errors import InvalidRequestError
from serve_app.jobs import Tier
from serve_app.prompt_limits import CountTokens, check_tokens
from serve_app.request_body import Form
from serve_app.request_schema import DECIMAL, SIZE_PARTS, VideoRequest, allowed_values
from serve_app.wording import shown

# A drawn seed is below 2**53, so that a client whose numbers are doubles (JavaScript) can send it back.
DRAWN_SEEDS = 2**53

_NUMBERS = frozenset(
    {"width", "height", "num_frames", "fps", "num_inference_steps", "guidance_scale", "seed", "seconds"}
)
_BOOLEANS = {"true": True, "false": False}
_INTEGER = re.compile(r"-?[0-9]{1,40}")


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A request that the model can be asked for.

    fingerprint: 64 hexadecimal digits that are equal for two requests that ask for the same; a seed that was drawn
    is no part of it.
    """

    spec: VideoSpec
    tier: Tier
    fingerprint: str


@dataclass(frozen=True)
class VideoRequests:
    """Turns the fields of requests into what is asked of one model."""

    model: ModelSettings
    schema: type[VideoRequest]
    count_tokens: CountTokens | None

    def check(self, fields: Mapping[str, object]) -> CheckedRequest:
        """Check the fields and fill in what was not given.

        Raises:
            InvalidRequestError: names the field, what was given and what is allowed.
        """
        request = self._validated(_typed(fields) if isinstance(fields, Form) else fields)
        self._check_model(request.model)
        width, height = _size(request)
        num_frames = _num_frames(request, self.model.num_frames)
        self._check_pixels(request, width, height, num_frames)
        self._check_tokens(request)
        spec = VideoSpec(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            width=width,
            height=height,
            num_frames=num_frames,
            fps=request.fps,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            seed=secrets.randbelow(DRAWN_SEEDS) if request.seed is None else request.seed,
            exact=request.exact,
        )
        return CheckedRequest(spec, request.priority, _fingerprint(request, spec))

    def _validated(self, fields: Mapping[str, object]) -> VideoRequest:
        self._check_names(fields)
        given = {name: value for name, value in fields.items() if value is not None}
        try:
            return self.schema.model_validate(given)
        except ValidationError as error:
            raise self._explained(dict(error.errors(include_url=False)[0])) from None

    def _check_names(self, fields: Mapping[str, object]) -> None:
        allowed = allowed_values(self.schema)
        for name, value in fields.items():
            if name.partition("[")[0] == "input_reference":
                if value is None:
                    continue
                raise InvalidRequestError(
                    "Unsupported parameter: 'input_reference'. This model makes videos from text alone; leave it out.",
                    "input_reference",
                    "unsupported_parameter",
                )
            if name not in allowed:
                raise InvalidRequestError(
                    f"Unknown parameter: {shown(name)}. Allowed are: {', '.join(allowed)}.",
                    shown(name)[1:-1] if len(name) <= 60 else None,
                    "unknown_parameter",
                )

    def _explained(self, error: dict[str, Any]) -> InvalidRequestError:
        name = str(error["loc"][0])
        must = f"It must be {allowed_values(self.schema)[name]}."
        if error["type"] == "missing":
            return InvalidRequestError(
                f"Missing required parameter: '{name}'. {must}", name, "missing_required_parameter"
            )
        reason = f" ({error['ctx']['error']})" if error["type"] == "value_error" else ""
        return InvalidRequestError(f"Invalid '{name}': got {shown(error['input'])}{reason}. {must}", name)

    def _check_model(self, name: str) -> None:
        if name != self.model.name:
            raise InvalidRequestError(
                f"The model {shown(name)} is not served here; use '{self.model.name}' or leave it out.",
                "model",
                "model_not_found",
            )

    def _check_pixels(self, request: VideoRequest, width: int, height: int, num_frames: int) -> None:
        pixels = width * height * num_frames
        if pixels > self.model.max_pixels:
            asked = [n for n in ("size", "width", "height", "seconds", "num_frames") if n in request.model_fields_set]
            raise InvalidRequestError(
                f"{width}x{height} with {num_frames} frames is {pixels} pixels in all; at most "
                f"{self.model.max_pixels} are allowed: ask for a smaller size or fewer frames.",
                asked[0] if asked else "size",
            )

    def _check_tokens(self, request: VideoRequest) -> None:
        prompt_field = self.schema.model_fields["prompt"].alias or "prompt"
        for param, text in ((prompt_field, request.prompt), ("negative_prompt", request.negative_prompt)):
            check_tokens(param, text, self.count_tokens, self.model.max_sequence_length)


def _typed(form: Form) -> dict[str, object]:
    """The fields of a form, whose values are text; what does not have the type of its field is refused later."""
    return {name: _typed_value(name, value) for name, value in form.items()}


def _typed_value(name: str, value: object) -> object:
    if name in _NUMBERS:
        return _number(value)
    return _BOOLEANS.get(value, value) if name == "exact" and isinstance(value, str) else value


def _number(value: object) -> object:
    if not isinstance(value, str):
        return value
    if _INTEGER.fullmatch(value):
        return int(value)
    return float(value) if DECIMAL.fullmatch(value) else value


def _size(request: VideoRequest) -> tuple[int, int]:
    if request.size is None:
        return request.width, request.height
    for name in SIZE_PARTS:
        if name in request.model_fields_set:
            raise conflict("size", name)
    width, _, height = request.size.partition("x")
    return int(width), int(height)


def _num_frames(request: VideoRequest, bounds: Dimension) -> int:
    if request.seconds is None:
        return request.num_frames
    if "num_frames" in request.model_fields_set:
        raise conflict("seconds", "num_frames")
    num_frames = nearest_num_frames(float(request.seconds), request.fps, bounds.minimum)
    if num_frames > bounds.maximum:
        raise InvalidRequestError(
            f"Invalid 'seconds': {float(request.seconds):g} seconds at {request.fps} fps are {num_frames} frames; "
            f"at most {bounds.maximum} frames ({bounds.maximum / request.fps:.3g} seconds at {request.fps} fps) "
            "are allowed.",
            "seconds",
        )
    return num_frames


def _fingerprint(request: VideoRequest, spec: VideoSpec) -> str:
    """SHA-256 over the request as it was understood: however it was written, with its defaults filled in."""
    meant = asdict(spec) | {"seed": request.seed, "model": request.model, "priority": request.priority}
    return hashlib.sha256(json.dumps(meant, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def nearest_num_frames(seconds: float, fps: int, minimum: int) -> int:
    """The 6k + 1 nearest to seconds * fps (of two equally near, the larger), at least `minimum`."""
    return max(minimum, 6 * math.floor((seconds * fps - 1) / 6 + 0.5) + 1)


def conflict(one: str, other: str) -> InvalidRequestError:
    """The refusal of two parameters that may not be given together."""
    return InvalidRequestError(
        f"'{one}' and '{other}' say the same thing; give only one of them.", one, "conflicting_parameters"
    )
