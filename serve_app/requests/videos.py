"""From the fields of a request to the video that is asked for: conflicts, seconds and frames, remixes.

Types, bounds and defaults of single fields are in `schema`; here is what concerns several of them, or another video.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from deployments.clip import nearest_length
from deployments.messages import VideoSpec
from deployments.settings import Dimension, ModelSettings
from serve_app.errors import InvalidRequestError, quote
from serve_app.jobs import Job, Origin, Relation, Tier
from serve_app.prompts.tokens import CountTokens, check_tokens
from serve_app.requests.fields import check_fields
from serve_app.requests.schema import SIZE_PARTS, EnhanceRequest, RemixRequest, VideoRequest, derived_schema

# A drawn seed is below 2**53, so that a client whose numbers are doubles (JavaScript) can send it back.
DRAWN_SEEDS = 2**53


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A request that the model can serve."""

    spec: VideoSpec
    tier: Tier | None  # None if the request has no priority
    fingerprint: str
    """64 hexadecimal digits, equal for two requests that ask for the same; a seed that was drawn is no part of it."""
    prompt_field: str = "prompt"  # what the prompt is called on the wire
    webhook_url: str | None = None
    origin: Origin | None = None  # the video that this one is made from


@dataclass(frozen=True)
class VideoRequestChecker:
    """Checks requests for new videos of one model."""

    model: ModelSettings
    schema: type[VideoRequest]  # as `request_schema` makes it for the model
    count_tokens: CountTokens | None

    def check(self, fields: Mapping[str, object]) -> CheckedRequest:
        """Check the fields and fill in what was not given.

        Raises:
            InvalidRequestError: names the field, what was given and what is allowed.
        """
        request = check_fields(self.schema, fields)
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
        return CheckedRequest(
            spec=spec,
            tier=request.priority,
            fingerprint=_fingerprint(spec, request, seed=request.seed, model=request.model),
            prompt_field=self._prompt_field,
            webhook_url=request.webhook_url,
        )

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
            given = [n for n in ("size", "width", "height", "seconds", "num_frames") if n in request.model_fields_set]
            raise InvalidRequestError(
                f"{width}x{height} with {num_frames} frames is {pixels} pixels in all; at most "
                f"{self.model.max_pixels} are allowed: ask for a smaller size or fewer frames.",
                given[0] if given else "size",
            )

    def check_tokens(self, spec: VideoSpec) -> None:
        """Raises InvalidRequestError if a prompt is longer than the text encoder reads."""
        for param, text in ((self._prompt_field, spec.prompt), ("negative_prompt", spec.negative_prompt)):
            check_tokens(param, text, self.count_tokens, self.model.max_sequence_length)


class RemixRequestChecker:
    """Checks requests for another prompt in place of a video's own; all else stays."""

    def __init__(self, videos: VideoRequestChecker) -> None:
        self._videos = videos
        self.schema = derived_schema(RemixRequest, videos.schema, "RemixVideoRequest")

    def check(self, fields: Mapping[str, object], source: Job) -> CheckedRequest:
        """Raises InvalidRequestError as `VideoRequestChecker.check` does."""
        request = check_fields(self.schema, fields)
        spec = replace(source.spec, prompt=request.prompt)
        self._videos.check_tokens(spec)
        return _derived(spec, request, Origin(source.id, Relation.REMIX))


class EnhanceRequestChecker:
    """Checks requests for the same video in more denoising steps."""

    def __init__(self, videos: VideoRequestChecker) -> None:
        self._model = videos.model
        self.schema = derived_schema(EnhanceRequest, videos.schema, "EnhanceVideoRequest")

    def check(self, fields: Mapping[str, object], source: Job) -> CheckedRequest:
        """Raises InvalidRequestError as `VideoRequestChecker.check` does, and if the steps are too few."""
        request = check_fields(self.schema, fields)
        source_steps = source.spec.num_inference_steps
        if "num_inference_steps" in request.model_fields_set:
            steps = request.num_inference_steps
        else:
            steps = self._default_steps(source_steps)
        if steps <= source_steps:
            raise self._too_few_steps(source_steps)
        spec = replace(source.spec, num_inference_steps=steps)
        return _derived(spec, request, Origin(source.id, Relation.ENHANCE))

    def _default_steps(self, source_steps: int) -> int:
        steps = self._model.enhanced_steps or 0
        if steps <= source_steps:
            steps = 2 * source_steps
        return min(steps, self._model.num_inference_steps.maximum)

    def _too_few_steps(self, source_steps: int) -> InvalidRequestError:
        most = self._model.num_inference_steps.maximum
        if source_steps >= most:
            return InvalidRequestError(
                f"The video was made with {source_steps} steps, the most there can be; there is nothing to enhance.",
                "video_id",
            )
        return InvalidRequestError(
            f"Invalid 'num_inference_steps': the video was made with {source_steps} steps; to enhance it, "
            f"ask for more, at most {most}, or leave it out.",
            "num_inference_steps",
        )


def _derived(spec: VideoSpec, request: RemixRequest | EnhanceRequest, origin: Origin) -> CheckedRequest:
    return CheckedRequest(
        spec=spec,
        tier=request.priority,
        fingerprint=_fingerprint(spec, request, origin=origin.video_id, relation=origin.relation),
        webhook_url=request.webhook_url,
        origin=origin,
    )


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


def _fingerprint(spec: VideoSpec, request: VideoRequest | RemixRequest | EnhanceRequest, **more: object) -> str:
    """SHA-256 over the request as it was understood: however it was written, with its defaults filled in."""
    fields = asdict(spec) | {"priority": request.priority or Tier.STANDARD} | more
    if request.webhook_url is not None:
        fields["webhook_url"] = request.webhook_url
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def conflict(one: str, other: str) -> InvalidRequestError:
    """The refusal of two parameters that may not be given together."""
    return InvalidRequestError(
        f"'{one}' and '{other}' say the same thing; give only one of them.", one, "conflicting_parameters"
    )
