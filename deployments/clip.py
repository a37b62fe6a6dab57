"""The geometry of a clip: how many latents, tokens and rows its pixels and frames make. Pure.

Mochi's VAE halves each side three times and packs 6 frames into one latent frame, with a latent frame
of its own for the first frame; the transformer takes 2 x 2 latents as one token (Genmo's `AsymmVAE`
and `AsymmDiT`, in diffusers `AutoencoderKLMochi` and `MochiTransformer3DModel`). So a clip of
848 x 480 with 163 frames has latents of (12, 28, 60, 106) and 44,520 tokens.
"""

import math
from dataclasses import dataclass

LATENT_CHANNELS = 12
SPATIAL_COMPRESSION = 8  # pixels of a side for one latent
TEMPORAL_COMPRESSION = 6  # frames for one latent frame, after the first
PATCH = 2  # latents of a side for one token
PIXELS_PER_TOKEN = SPATIAL_COMPRESSION * PATCH

GUIDED_ROWS = 2  # of a guided sample in a pass: with and without its prompt

LatentShape = tuple[int, int, int, int]
"""(channels, latent frames, latent rows, latent columns): (12, T, H/8, W/8)."""


@dataclass(frozen=True, slots=True)
class ClipShape:
    """The size and length of a clip."""

    width: int  # pixels, a multiple of 16
    height: int  # pixels, a multiple of 16
    num_frames: int  # 6k + 1

    @property
    def latents(self) -> LatentShape:
        """(12, (num_frames - 1) / 6 + 1, height / 8, width / 8)."""
        frames = (self.num_frames - 1) // TEMPORAL_COMPRESSION + 1
        return LATENT_CHANNELS, frames, self.height // SPATIAL_COMPRESSION, self.width // SPATIAL_COMPRESSION

    @property
    def tokens(self) -> int:
        """Tokens of one row: guidance doubles the rows, not the tokens."""
        return latent_tokens(self.latents)

    def __str__(self) -> str:
        return f"{self.width}x{self.height} with {self.num_frames} frames"


def latent_tokens(shape: LatentShape) -> int:
    """Tokens of one row: T x H/16 x W/16 for latents (12, T, H/8, W/8)."""
    _, frames, height, width = shape
    return frames * (height // PATCH) * (width // PATCH)


def cfg_rows(guidance_scale: float) -> int:
    """Rows of a sample in a pass: 2 with guidance (with and without its prompt), 1 without."""
    return GUIDED_ROWS if guidance_scale > 1.0 else 1


def is_side(pixels: int) -> bool:
    """Whether a width or height is a whole number of tokens."""
    return pixels % PIXELS_PER_TOKEN == 0


def is_length(num_frames: int) -> bool:
    """Whether `num_frames` is 6k + 1: the first frame, then whole latent frames."""
    return num_frames % TEMPORAL_COMPRESSION == 1


def length_below(num_frames: int) -> int:
    """The longest length that is at most `num_frames`."""
    return num_frames - (num_frames - 1) % TEMPORAL_COMPRESSION


def nearest_length(frames: float) -> int:
    """The length nearest to `frames`; of two equally near, the longer one."""
    return TEMPORAL_COMPRESSION * math.floor((frames - 1) / TEMPORAL_COMPRESSION + 0.5) + 1
