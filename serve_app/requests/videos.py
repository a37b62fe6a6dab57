"""From the fields of a request to what is asked for: defaults, conflicts, and the arithmetic of seconds and frames.

Types and bounds of single fields are in `request_schema`; here is what concerns several of them, or another video.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import BaseModel

from deployments.clip import nearest_length
from deployments.messages import VideoSpec
from deployments.settings import Dimension, ModelSettings
from serve_app.errors import InvalidRequestError, quote
from serve_app.jobs import Job, Origin, Relation, Tier
from serve_app.prompts.tokens import CountTokens, check_tokens
from serve_app.requests.fields import validated
from serve_app.requests.schema import SIZE_PARTS, VideoRequest, derived_schema

# A drawn seed is below 2**53, so that a client whose numbers are doubles (JavaScript) can send it back.
DRAWN_SEEDS = 2**53


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A request that the model can be asked for.

    tier: None if none was asked for. fingerprint: 64 hexadecimal digits that are equal for two requests that ask for
    the same; a seed that was drawn is no part of it. prompt_field: what the prompt is called on the wire.
    """

    spec: VideoSpec
    tier: Tier | None
    fingerprint: str
    prompt_field: str = "prompt"
    webhook_url: str | None = None
    origin: Origin | None = None


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
        request = validated(self.schema, fields)
        self._check_model(request.model)
        width, height = _size(request)
        num_frames = _num_frames(request, self.model.num_frames)
        self._check_pixels(request, width, height, num_frames)
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
        self.check_tokens(spec)
        priority, url = request.priority, request.webhook_url
        fingerprint = _fingerprint(spec, priority, url, seed=request.seed, model=request.model)
        return CheckedRequest(spec, priority, fingerprint, self._prompt_field, url)

    @property
    def _prompt_field(self) -> str:
        return self.schema.model_fields["prompt"].alias or "prompt"

    def _check_model(self, name: str) -> None:
        if name != self.model.name:
            raise InvalidRequestError(
                f"The model {quote(name)} is not served here; use '{self.model.name}' or leave it out.",
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

    def check_tokens(self, spec: VideoSpec) -> None:
        """Raises InvalidRequestError if a prompt is longer than the text encoder reads."""
        for param, text in ((self._prompt_field, spec.prompt), ("negative_prompt", spec.negative_prompt)):
            check_tokens(param, text, self.count_tokens, self.model.max_sequence_length)


class RemixRequests:
    """Another prompt for a video that is there, with all else as it was."""

    def __init__(self, requests: VideoRequests) -> None:
        self._requests = requests
        self.schema = derived_schema(requests.schema, "RemixVideoRequest", "prompt", "priority", "webhook_url")

    def check(self, fields: Mapping[str, object], source: Job) -> CheckedRequest:
        """Raises InvalidRequestError as `VideoRequests.check` does."""
        request: Any = validated(self.schema, fields)
        spec = replace(source.spec, prompt=request.prompt)
        self._requests.check_tokens(spec)
        return _derived(spec, request, Origin(source.id, Relation.REMIX))


class EnhanceRequests:
    """The same video in more denoising steps."""

    def __init__(self, requests: VideoRequests) -> None:
        self._model = requests.model
        fields = ("num_inference_steps", "priority", "webhook_url")
        self.schema: type[BaseModel] = derived_schema(requests.schema, "EnhanceVideoRequest", *fields)

    def check(self, fields: Mapping[str, object], source: Job) -> CheckedRequest:
        """Raises InvalidRequestError as `VideoRequests.check` does, and if the steps are no more than the video has."""
        request: Any = validated(self.schema, fields)
        given = "num_inference_steps" in request.model_fields_set
        steps = request.num_inference_steps if given else self._steps(source.spec.num_inference_steps)
        if steps <= source.spec.num_inference_steps:
            raise self._no_more(source.spec.num_inference_steps)
        spec = replace(source.spec, num_inference_steps=steps)
        return _derived(spec, request, Origin(source.id, Relation.ENHANCE))

    def _steps(self, made_with: int) -> int:
        wanted = self._model.enhanced_steps or 0
        if wanted <= made_with:
            wanted = 2 * made_with
        return min(wanted, self._model.num_inference_steps.maximum)

    def _no_more(self, made_with: int) -> InvalidRequestError:
        most = self._model.num_inference_steps.maximum
        if made_with >= most:
            return InvalidRequestError(
                f"The video was made with {made_with} steps, the most there can be; there is nothing to enhance.",
                "video_id",
            )
        return InvalidRequestError(
            f"Invalid 'num_inference_steps': the video was made with {made_with} steps; to enhance it, ask for more, "
            f"at most {most}, or leave it out.",
            "num_inference_steps",
        )


def _derived(spec: VideoSpec, request: Any, origin: Origin) -> CheckedRequest:
    priority, url = request.priority, request.webhook_url
    fingerprint = _fingerprint(spec, priority, url, origin=origin.video_id, relation=origin.relation)
    return CheckedRequest(spec, priority, fingerprint, webhook_url=url, origin=origin)


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
    num_frames = max(bounds.minimum, nearest_length(float(request.seconds) * request.fps))
    if num_frames > bounds.maximum:
        raise InvalidRequestError(
            f"Invalid 'seconds': {float(request.seconds):g} seconds at {request.fps} fps are {num_frames} frames; "
            f"at most {bounds.maximum} frames ({bounds.maximum / request.fps:.3g} seconds at {request.fps} fps) "
            "are allowed.",
            "seconds",
        )
    return num_frames


def _fingerprint(spec: VideoSpec, priority: Tier | None, webhook_url: str | None, **more: object) -> str:
    """SHA-256 over the request as it was understood: however it was written, with its defaults filled in."""
    meant = asdict(spec) | {"priority": priority or Tier.STANDARD} | more
    if webhook_url is not None:
        meant["webhook_url"] = webhook_url
    return hashlib.sha256(json.dumps(meant, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def conflict(one: str, other: str) -> InvalidRequestError:
    """The refusal of two parameters that may not be given together."""
    return InvalidRequestError(
        f"'{one}' and '{other}' say the same thing; give only one of them.", one, "conflicting_parameters"
    )
