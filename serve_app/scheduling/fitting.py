"""Whether a video fits the memory of the samplers, and which one near it would. Pure.

Memory is counted in tokens: latent frames x height/16 x width/16.
"""

from collections.abc import Iterable

from deployments.clip import PIXELS_PER_TOKEN, TEMPORAL_COMPRESSION, ClipShape
from deployments.messages import ReplicaInfo, VideoSpec
from deployments.settings import ModelSettings


def memory_limit(samplers: Iterable[ReplicaInfo]) -> int | None:
    """Tokens of the largest sample that a replica holds; None if there is none or one does not say."""
    limits = [info.max_tokens for info in samplers]
    announced = [tokens for tokens in limits if tokens is not None]
    return max(announced) if announced and len(announced) == len(limits) else None


def largest_fitting(model: ModelSettings, max_tokens: int, width: int, height: int, num_frames: int) -> list[ClipShape]:
    """What to ask for instead of a video of more than max_tokens tokens.

    Args:
        model: its bounds hold for what is suggested; width, height and num_frames are within them.

    Returns:
        The same size with the most frames, and the same frames in the largest size near the same
        aspect ratio; each only if the model allows one. If it allows neither, the one with most
        tokens that is both smaller and shorter; nothing if that does not fit either. The video
        itself if it fits.
    """
    asked = ClipShape(width, height, num_frames)
    if asked.tokens <= max_tokens:
        return [asked]
    shorter = _longest(model, max_tokens, asked)
    smaller_sizes = [ClipShape(w, h, num_frames) for w, h in _smaller_sizes(model, width, height)]
    smaller = next((shape for shape in smaller_sizes if shape.tokens <= max_tokens), None)
    found = [shape for shape in (shorter, smaller) if shape is not None]
    if found:
        return found
    both = [shape for size in smaller_sizes if (shape := _longest(model, max_tokens, size)) is not None]
    return [max(both, key=lambda shape: shape.tokens)] if both else []


def advice(model: ModelSettings, max_tokens: int, spec: VideoSpec) -> str:
    """A sentence for people: what to ask for instead of `spec`."""
    asked = ClipShape(spec.width, spec.height, spec.num_frames)
    fitting = largest_fitting(model, max_tokens, spec.width, spec.height, spec.num_frames)
    if not fitting:
        return f"Neither {asked} nor any smaller video of this shape fits: the samplers need more memory."
    return f"Instead of {asked} ask for {' or '.join(map(str, fitting))}."


def _longest(model: ModelSettings, max_tokens: int, shape: ClipShape) -> ClipShape | None:
    """The shape with as many of its frames as fit; None if that is fewer than the model makes."""
    frame_tokens = (shape.width // PIXELS_PER_TOKEN) * (shape.height // PIXELS_PER_TOKEN)
    fitting = TEMPORAL_COMPRESSION * (max_tokens // frame_tokens - 1) + 1
    num_frames = min(fitting, shape.num_frames)
    if num_frames < model.num_frames.minimum:
        return None
    return ClipShape(shape.width, shape.height, num_frames)


def _smaller_sizes(model: ModelSettings, width: int, height: int) -> list[tuple[int, int]]:
    """Smaller sizes within half a multiple of 16 of the aspect ratio, the largest area first."""
    columns, rows = width // PIXELS_PER_TOKEN, height // PIXELS_PER_TOKEN
    grids = {(c, round(c * rows / columns)) for c in range(1, columns)}
    grids |= {(round(r * columns / rows), r) for r in range(1, rows)}
    nearest = sorted(grids, key=lambda grid: (-grid[0] * grid[1], abs(grid[0] * rows - grid[1] * columns), grid))
    sizes = [(c * PIXELS_PER_TOKEN, r * PIXELS_PER_TOKEN) for c, r in nearest]
    return [(w, h) for w, h in sizes if w >= model.width.minimum and h >= model.height.minimum]
