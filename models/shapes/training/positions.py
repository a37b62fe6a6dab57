"""The frequencies of Mochi's positions, laid out for what moves.

Mochi turns each pair of a head's channels by the angle f_t t + f_y y + f_x x before queries meet keys. t counts latent
frames; y and x are scaled so that a square picture reaches from -96 to 96 at every size. The frequencies are weights,
and can mix time and place (diffusers, `MochiRoPE`, pos_frequencies [3, heads, head_dim / 2]).

Random ones leave direction to be found last: at pure noise, where it is decided, a token knows nothing but its
position. Here half of each head's pairs are waves that travel with the figures, one for each direction: their angle
stands still for what moves along. A text token that says "left" has only to listen for the wave that goes left.
"""

import math
from statistics import mean

import torch
from torch import Tensor

from models.shapes.scenes.scene import CLIP_FRAMES, DIRECTIONS, SPEEDS

SIDE = 192.0
FRAMES_OF_A_LATENT = 6
# Of each head: angle per unit of place, and the speed at which its waves travel.
WAVES = ((0.02, "normal"), (0.03, "normal"), (0.042, "fast"), (0.03, "slow"))
# The other pairs see time or place alone; one stays zero, and sees only content.
OF_TIME = (0.3, 0.9, 2.0)
OF_PLACE = (0.025, 0.08)
HEAD_STRETCH = 0.15


def frequencies() -> Tensor:
    """[3, heads, 16] for (t, y, x); the heads differ, so that together they see more than one could."""
    return torch.stack([_of_head(head) for head in range(len(WAVES))], dim=1)


def _of_head(head: int) -> Tensor:
    """[3, 16]."""
    per_place, speed = WAVES[head]
    waves = [_wave(dx, dy, per_place, speed) for dx, dy in DIRECTIONS.values() if dx or dy]
    stretch = 1 + HEAD_STRETCH * head
    alone = [(each * stretch, 0.0, 0.0) for each in OF_TIME]
    alone += [(0.0, each * stretch, 0.0) for each in OF_PLACE]
    alone += [(0.0, 0.0, each * stretch) for each in OF_PLACE]
    return torch.tensor([*waves, *alone, (0.0, 0.0, 0.0)]).T


def _wave(dx: int, dy: int, per_place: float, speed: str) -> tuple[float, float, float]:
    """One that stands still for a figure that moves by (dx, dy) at this speed."""
    way = mean(SPEEDS[speed]) * SIDE / (CLIP_FRAMES - 1) * FRAMES_OF_A_LATENT
    length = math.hypot(dx, dy)
    return per_place * way * length, -per_place * dy / length, -per_place * dx / length
