"""The geometry of a clip: pixels, latents, tokens and rows, for everything that must agree on them."""

from dataclasses import dataclass

from deployments.messages import VideoSpec

PIXELS_PER_TOKEN = 16


FRAMES_PER_LATENT = 6


@dataclass(frozen=True, slots=True)
class ClipShape:
    """width, height: pixels, multiples of 16. num_frames: 6k + 1."""

    width: int
    height: int
    num_frames: int

    @property
    def tokens(self) -> int:
        latent_frames = (self.num_frames - 1) // FRAMES_PER_LATENT + 1
        return latent_frames * (self.height // PIXELS_PER_TOKEN) * (self.width // PIXELS_PER_TOKEN)

    def __str__(self) -> str:
        return f"{self.width}x{self.height} with {self.num_frames} frames"


def sample_tokens(spec: VideoSpec) -> int:
    """Tokens of the sample, of one row: guidance doubles the rows, not the tokens."""
    return ClipShape(spec.width, spec.height, spec.num_frames).tokens


LATENT_CHANNELS = 12


SPATIAL_COMPRESSION = 8


TEMPORAL_COMPRESSION = 6


Shape = tuple[int, int, int, int]


def rows_of(guidance_scale: float) -> int:
    """How many rows of a pass a sample is: 2 with guidance (with and without its prompt), 1 without."""
    return 2 if guidance_scale > 1.0 else 1


def latent_shape(spec: VideoSpec) -> Shape:
    """(12, (num_frames - 1) / 6 + 1, height / 8, width / 8)."""
    frames = (spec.num_frames - 1) // TEMPORAL_COMPRESSION + 1
    return LATENT_CHANNELS, frames, spec.height // SPATIAL_COMPRESSION, spec.width // SPATIAL_COMPRESSION


PATCH = 2


def tokens_of(shape: Shape) -> int:
    """Tokens of one row: T x H/16 x W/16 for latents (12, T, H/8, W/8)."""
    _, frames, height, width = shape
    return frames * (height // PATCH) * (width // PATCH)
