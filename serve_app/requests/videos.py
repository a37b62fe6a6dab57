"""From the fields of a request to the video that is asked for: conflicts, seconds and frames, remixes.

Types, bounds and defaults of single fields are in `schema`; here is what concerns several of them, or another video.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

from pydantic import BaseModel

from deployments.clip import length_below, nearest_length
from deployments.messages import VideoSpec
from deployments.settings import ModelSettings
from serve_app.errors import InvalidRequestError, conflict, quote
from serve_app.jobs import AS_MADE, Job, Origin, Relation, Requested, Tier
from serve_app.prompts.tokens import CountTokens, check_tokens
from serve_app.requests.client_fields import Understood, understand
from serve_app.requests.fields import check_fields
from serve_app.requests.fingerprints import fingerprint_of_asked, fingerprint_of_sent
from serve_app.requests.loras import understand_lora, with_lora
from serve_app.requests.qualities import AUTO as AUTO_QUALITY
from serve_app.requests.qualities import DRAFT, understand_quality
from serve_app.requests.schema import (
    SIZE_PARTS,
    AnyQuality,
    EnhanceRequest,
    RemixRequest,
    VideoRequest,
    allowed_values,
    derived_schema,
)
from serve_app.requests.sizes import (
    AUTO,
    BUILT_IN_SIZES,
    Size,
    default_size,
    nearest_size,
    parse_aspect_ratio,
    parse_resolution,
    parse_size,
    shaped_sides,
    wrong_side,
)

# A drawn seed is below 2**53, so that a client whose numbers are doubles (JavaScript) can send it back.
DRAWN_SEEDS = 2**53


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A request that the model can serve."""

    spec: VideoSpec
    tier: Tier | None  # None if the request has no priority
    fingerprint: str  # of what is asked for, see `fingerprints`
    sent_fingerprint: str  # of what was sent, see `fingerprints`
    prompt_field: str = "prompt"  # what the prompt is called on the wire
    webhook_url: str | None = None
    origin: Origin | None = None  # the video that this one is made from
    requested: Requested = AS_MADE
    cancel_after_s: float | None = None  # not completed by then, it is cancelled
    draft: VideoSpec | None = None  # may be made in place of `spec` where that would wait for long


@dataclass(frozen=True)
class VideoRequestChecker:
    """Checks requests for new videos of one model."""

    model: ModelSettings
    schema: type[VideoRequest]  # as `request_schema` makes it for the model
    count_tokens: CountTokens | None
    drafts: bool = False  # whether a request for `auto` may become a draft

    def check(self, fields: Mapping[str, object]) -> CheckedRequest:
        """Check the fields and fill in what was not given.

        Raises:
            InvalidRequestError: names the field, what was given and what is allowed.
        """
        understood = self._understand(fields)
        request = check_fields(self.schema, understood.fields)
        self._check_model(request.model)
        num_frames = self._num_frames(request)
        size, requested_size = self._size(request, num_frames)
        num_frames = self._fitting_frames(request, size, num_frames)
        self._check_pixels(request, size, num_frames)
        quality = self.model.quality if request.quality in (None, AUTO_QUALITY) else request.quality
        given = request.model_fields_set
        spec = VideoSpec(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            width=size.width,
            height=size.height,
            num_frames=num_frames,
            fps=request.fps,
            num_inference_steps=(
                request.num_inference_steps if "num_inference_steps" in given else self.model.steps_of(quality)
            ),
            guidance_scale=request.guidance_scale if "guidance_scale" in given else self.model.guidance_of(quality),
            seed=secrets.randbelow(DRAWN_SEEDS) if request.seed is None else request.seed,
            exact=request.exact,
            quality=quality,
            rules=self.model.rules_of(quality),
        )
        spec = with_lora(spec, request.lora, request.lora_scale, self.model)
        self.check_tokens(spec)
        draft = None
        if request.quality == AUTO_QUALITY and "num_inference_steps" not in given:
            draft = self.draft_of(spec, keep_guidance="guidance_scale" in given)
        return CheckedRequest(
            spec=spec,
            tier=request.priority,
            fingerprint=fingerprint_of_asked(
                spec, request, seed=request.seed, model=self.model.name, **_may_be_draft(draft)
            ),
            sent_fingerprint=fingerprint_of_sent(request),
            prompt_field=self._prompt_field,
            webhook_url=request.webhook_url,
            requested=Requested(
                seconds=None if request.seconds is None else f"{float(request.seconds):.12g}",
                size=requested_size,
                ignored=understood.ignored,
                quality=None if draft is None else AUTO_QUALITY,
            ),
            cancel_after_s=_cancel_after_s(request),
            draft=draft,
        )

    def draft_of(self, spec: VideoSpec, keep_guidance: bool) -> VideoSpec | None:
        """The draft that may be made in place of a video; None where none may, or it is one.

        Args:
            keep_guidance: the guidance scale was asked for.
        """
        if not self.drafts or spec.exact or spec.quality == DRAFT or DRAFT not in self.model.offered:
            return None
        draft = _of_quality(spec, DRAFT, self.model)
        return replace(draft, guidance_scale=spec.guidance_scale) if keep_guidance else draft

    @property
    def _prompt_field(self) -> str:
        return self.schema.model_fields["prompt"].alias or "prompt"

    def _check_model(self, name: str) -> None:
        if name not in (self.model.name, *self.model.aliases):
            raise InvalidRequestError(
                f"The model {quote(name)} is not served here; use '{self.model.name}' or leave it out.",
                "model",
                "model_not_found",
            )

    def _understand(self, fields: Mapping[str, object]) -> Understood:
        """The fields in this API's own words, and a width and height that clients have built in as a size."""
        understood = _own_words(fields, self.schema, self.model)
        width, height = (understood.fields.get(side) for side in SIZE_PARTS)
        both = f"{width}x{height}"
        if "size" in understood.fields or both not in BUILT_IN_SIZES or not self.model.fit_sizes:
            return understood
        for side in SIZE_PARTS:
            del understood.fields[side]
        understood.fields["size"] = both
        return understood

    def _num_frames(self, request: VideoRequest) -> int:
        """The length that is asked for, or the longest where lengths are fitted."""
        if request.seconds is None:
            return request.num_frames
        if "num_frames" in request.model_fields_set:
            raise conflict("seconds", "num_frames")
        bounds = self.model.num_frames
        num_frames = max(bounds.minimum, nearest_length(float(request.seconds) * request.fps))
        if num_frames > bounds.maximum and not self.model.fit_seconds:
            raise InvalidRequestError(
                f"Invalid 'seconds': {float(request.seconds):g} seconds at {request.fps} fps are {num_frames} frames; "
                f"at most {bounds.maximum} frames ({bounds.maximum / request.fps:.3g} seconds at {request.fps} fps) "
                "are allowed.",
                "seconds",
            )
        return min(num_frames, bounds.maximum)

    def _fitting_frames(self, request: VideoRequest, size: Size, num_frames: int) -> int:
        """A length in seconds that is too much for the size becomes the longest, where lengths are fitted."""
        if request.seconds is None or not self.model.fit_seconds:
            return num_frames
        longest = length_below(max(1, self.model.max_pixels // size.pixels))
        return min(num_frames, max(longest, self.model.num_frames.minimum))

    def _size(self, request: VideoRequest, num_frames: int) -> tuple[Size, str | None]:
        """The size to make, and what was asked for if that is another."""
        for field, side in product(("size", "aspect_ratio", "resolution"), SIZE_PARTS):
            if getattr(request, field) is not None and side in request.model_fields_set:
                raise conflict(field, side)
        size = None if request.size is None else parse_size(request.size)
        ratio = None if request.aspect_ratio is None else parse_aspect_ratio(request.aspect_ratio)
        shorter = None if request.resolution is None else parse_resolution(request.resolution)
        if size is not None:
            _check_one_shape(size, ratio, shorter)
            fits = self.model.fits_clip(size.pixels, num_frames) or request.size not in BUILT_IN_SIZES
            if fits and wrong_side(size, self.model) is None:
                return size, None
            sides: tuple[float, float] = size.width, size.height
        elif request.size in (None, AUTO) and ratio is None and shorter is None:
            return (
                (Size(request.width, request.height), None)
                if request.size is None
                else (default_size(self.model), AUTO)
            )
        else:
            # Some clients say "720P" where a size belongs.
            named = None if request.size in (None, AUTO) else parse_resolution(str(request.size))
            if named is not None and shorter not in (None, named):
                raise conflict("size", "resolution")
            sides = shaped_sides(ratio, shorter or named, self.model)
        nearest = nearest_size(*sides, self.model, num_frames) or default_size(self.model)
        if not self.model.fit_sizes:
            field = "aspect_ratio" if request.aspect_ratio is not None else "resolution"
            raise InvalidRequestError(
                f"Unsupported parameter: '{field}'. This server makes sizes as they are asked for; the nearest one is "
                f"'size': '{nearest}'.",
                field,
                "unsupported_parameter",
            )
        return nearest, " ".join(filter(None, (request.size, request.resolution, request.aspect_ratio)))

    def _check_pixels(self, request: VideoRequest, size: Size, num_frames: int) -> None:
        if not self.model.fits_picture(size.pixels):
            raise InvalidRequestError(
                f"{size} is {size.pixels} pixels a frame; at most {self.model.max_picture_pixels} are allowed: ask for "
                "a smaller size.",
                _first_given(request, "size", "width", "height"),
            )
        if not self.model.fits_clip(size.pixels, num_frames):
            raise InvalidRequestError(
                f"{size} with {num_frames} frames is {size.pixels * num_frames} pixels in all; at most "
                f"{self.model.max_pixels} are allowed: ask for a smaller size or fewer frames.",
                _first_given(request, "size", "width", "height", "seconds", "num_frames"),
            )

    def check_tokens(self, spec: VideoSpec) -> None:
        """Raises InvalidRequestError if a prompt is longer than the text encoder reads."""
        for param, text in ((self._prompt_field, spec.prompt), ("negative_prompt", spec.negative_prompt)):
            check_tokens(param, text, self.count_tokens, self.model.max_sequence_length)


class RemixRequestChecker:
    """Checks requests for another prompt in place of a video's own; all else stays."""

    def __init__(self, videos: VideoRequestChecker) -> None:
        self._videos = videos
        self._model = videos.model
        self.schema = derived_schema(RemixRequest, videos.schema, "RemixVideoRequest")

    def check(self, fields: Mapping[str, object], source: Job) -> CheckedRequest:
        """Raises InvalidRequestError as `VideoRequestChecker.check` does."""
        understood = _own_words(fields, self.schema, self._model)
        request = check_fields(self.schema, understood.fields)
        auto = request.quality == AUTO_QUALITY
        changed = _changed(_as_asked(source, self._model) if auto else source.video, request, self._model)
        spec = replace(changed, prompt=request.prompt)
        self._videos.check_tokens(spec)
        # Steps that are not the quality's own were asked for.
        steps_are_own = spec.num_inference_steps == self._model.steps_of(spec.quality)
        draft = self._videos.draft_of(spec, self._has_own_guidance(spec)) if auto and steps_are_own else None
        return _derived(source, Relation.REMIX, spec, request, understood.ignored, draft)

    def _has_own_guidance(self, spec: VideoSpec) -> bool:
        return spec.guidance_scale != self._model.guidance_of(spec.quality)


class EnhanceRequestChecker:
    """Checks requests for the same video in more denoising steps."""

    def __init__(self, videos: VideoRequestChecker) -> None:
        self._model = videos.model
        self.schema = derived_schema(EnhanceRequest, videos.schema, "EnhanceVideoRequest")

    def check(self, fields: Mapping[str, object], source: Job) -> CheckedRequest:
        """Raises InvalidRequestError as `VideoRequestChecker.check` does, and if the steps are too few."""
        understood = _own_words(fields, self.schema, self._model)
        request = check_fields(self.schema, understood.fields)
        source_steps = source.video.num_inference_steps
        is_asked_for = source.requested.draft is not None and request.quality in (None, AUTO_QUALITY)
        base = _as_asked(source, self._model) if is_asked_for else source.video
        if "num_inference_steps" in request.model_fields_set:
            steps = request.num_inference_steps
        elif is_asked_for:
            steps = base.num_inference_steps
        else:
            steps = self._default_steps(source_steps)
        # What was made as a draft under load becomes what was asked for, which may differ in more than steps.
        if steps < source_steps or (steps == source_steps and not is_asked_for):
            raise self._too_few_steps(source_steps)
        spec = replace(_changed(base, request, self._model), num_inference_steps=steps)
        return _derived(source, Relation.ENHANCE, spec, request, understood.ignored)

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


def _own_words(fields: Mapping[str, object], schema: type[BaseModel], model: ModelSettings) -> Understood:
    return understand_lora(understand_quality(understand(fields, allowed_values(schema)), model))


def _changed(spec: VideoSpec, request: RemixRequest | EnhanceRequest, model: ModelSettings) -> VideoSpec:
    """The same video in another quality or with another LoRA, where the request asks for one."""
    return with_lora(_of_quality(spec, request.quality, model), request.lora, request.lora_scale, model)


def _as_asked(source: Job, model: ModelSettings) -> VideoSpec:
    """The video as it was asked for; another one than was made if it was made as a draft under load."""
    draft = source.requested.draft
    if draft is None:
        return source.video
    quality = draft.quality if draft.quality in model.offered else model.quality
    return replace(
        source.video,
        quality=quality,
        rules=model.rules_of(quality),
        num_inference_steps=draft.num_inference_steps,
        guidance_scale=draft.guidance_scale,
    )


def _may_be_draft(draft: VideoSpec | None) -> dict[str, object]:
    """What a fingerprint has of it. Whether it became one is no part of the request."""
    return {} if draft is None else {"may_be_draft": True}


def _of_quality(spec: VideoSpec, quality: AnyQuality | None, model: ModelSettings) -> VideoSpec:
    """The same video in another quality, with that one's steps and guidance; as it is if none is asked for, or its own,
    also where the quality has come to mean something else."""
    if quality is None or quality == AUTO_QUALITY or quality == spec.quality:
        return spec
    return replace(
        spec,
        quality=quality,
        rules=model.rules_of(quality),
        num_inference_steps=model.steps_of(quality),
        guidance_scale=model.guidance_of(quality),
    )


def _derived(
    source: Job,
    relation: Relation,
    spec: VideoSpec,
    request: RemixRequest | EnhanceRequest,
    ignored: tuple[str, ...],
    draft: VideoSpec | None = None,
) -> CheckedRequest:
    """Size and length are the source's, as they were asked for."""
    requested = replace(source.requested, ignored=ignored, quality=None if draft is None else AUTO_QUALITY, draft=None)
    return CheckedRequest(
        spec=spec,
        tier=request.priority,
        fingerprint=fingerprint_of_asked(spec, request, origin=source.id, relation=relation, **_may_be_draft(draft)),
        sent_fingerprint=fingerprint_of_sent(request, origin=source.id, relation=relation),
        webhook_url=request.webhook_url,
        origin=Origin(source.id, relation),
        requested=requested,
        cancel_after_s=_cancel_after_s(request),
        draft=draft,
    )


def _first_given(request: VideoRequest, *names: str) -> str:
    """The first of these fields that the request has; the first of all if it has none."""
    return next((name for name in names if name in request.model_fields_set), names[0])


def _check_one_shape(size: Size, aspect_ratio: float | None, shorter: int | None) -> None:
    """Raises InvalidRequestError if a size and the shape that is named beside it are not the same."""
    if aspect_ratio is not None and not 0.95 < size.width / max(1, size.height) / aspect_ratio < 1.05:
        raise conflict("size", "aspect_ratio")
    if shorter is not None and shorter != min(size.width, size.height):
        raise conflict("size", "resolution")


def _cancel_after_s(request: VideoRequest | RemixRequest | EnhanceRequest) -> float | None:
    """The schema made seconds of whatever was written."""
    return None if request.cancel_after is None else float(request.cancel_after)
