"""A scene: one or two flat shapes over a plain ground, each still or moving straight on. Pure data, no pictures.

Lengths are fractions of the picture's shorter side, so that a scene looks the same at every size.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

Rgb = tuple[float, float, float]
Range = tuple[float, float]

COLOURS: dict[str, Rgb] = {
    "red": (0.90, 0.10, 0.12),
    "orange": (1.00, 0.52, 0.05),
    "yellow": (0.98, 0.92, 0.18),
    "green": (0.16, 0.76, 0.22),
    "cyan": (0.12, 0.86, 0.92),
    "blue": (0.16, 0.28, 0.98),
    "purple": (0.66, 0.18, 0.86),
    "white": (0.96, 0.96, 0.96),
}
SHAPES = ("circle", "square", "triangle", "star")
DIRECTIONS: dict[str, tuple[int, int]] = {
    "still": (0, 0),
    "right": (1, 0),
    "left": (-1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up right": (1, -1),
    "up left": (-1, -1),
    "down right": (1, 1),
    "down left": (-1, 1),
}
BACKGROUNDS: dict[str, Rgb] = {
    "black": (0.04, 0.04, 0.05),
    "dark blue": (0.04, 0.06, 0.42),
    "dark green": (0.02, 0.32, 0.14),
    "grey": (0.45, 0.45, 0.46),
}
# Radius of the circle of the same visual weight.
SIZES: dict[str, Range] = {"small": (0.100, 0.108), "medium": (0.130, 0.140), "big": (0.165, 0.178)}
# The way in CLIP_FRAMES frames, along each axis that the shape moves on.
SPEEDS: dict[str, Range] = {"slow": (0.23, 0.26), "normal": (0.34, 0.38), "fast": (0.46, 0.49)}
CLIP_FRAMES = 37
# Farthest that a shape reaches from its centre, in radii.
REACH = 1.4
PAIR_SHARE = 0.15
# How far from the centre of the picture the middle of the way of a single figure may lie, along each axis.
OFF_CENTRE = 0.14

Split = Literal["train", "held out"]
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Figure:
    """One shape of a scene. Every field is a name of the tables above; `speed` says nothing of a still one."""

    colour: str
    shape: str
    direction: str
    size: str = "medium"
    speed: str = "normal"

    @property
    def held_out(self) -> bool:
        """Whether this colour, shape and direction never meet in training.

        An eighth of the 288 triples, so spread that each shape and direction lacks exactly one colour: every pair
        of words is seen, the three together are not.
        """
        colour, shape = list(COLOURS).index(self.colour), SHAPES.index(self.shape)
        return (colour + 2 * shape + 3 * list(DIRECTIONS).index(self.direction)) % len(COLOURS) == 0


@dataclass(frozen=True, slots=True)
class Scene:
    """One or two figures over a background."""

    figures: tuple[Figure, ...]
    background: str = "black"

    @property
    def held_out(self) -> bool:
        return any(figure.held_out for figure in self.figures)


@dataclass(frozen=True, slots=True)
class Track:
    """Where a figure is: `radius`, the centre `start` at frame 0, and `step` for each frame."""

    radius: float
    start: Point
    step: Point

    def at(self, frame: int) -> Point:
        return self.start[0] + frame * self.step[0], self.start[1] + frame * self.step[1]

    def after(self, frames: int) -> "Track":
        """The same way, begun `frames` later."""
        return replace(self, start=self.at(frames))


def figures() -> Iterator[Figure]:
    """Every figure there is."""
    for colour, shape, direction, size, speed in product(COLOURS, SHAPES, DIRECTIONS, SIZES, SPEEDS):
        yield Figure(colour, shape, direction, size, speed)


def draw_scene(rng: random.Random, split: Split, pair_share: float = PAIR_SHARE) -> Scene:
    """A random scene of the split. A scene is held out if one of its figures is."""
    count = 2 if rng.random() < pair_share else 1
    while True:
        drawn = tuple(_draw_figure(rng, alone=count == 1) for _ in range(count))
        scene = Scene(drawn, rng.choice(list(BACKGROUNDS)))
        distinct = len({figure.colour for figure in drawn}) == count
        if distinct and scene.held_out == (split == "held out"):
            return scene


def _draw_figure(rng: random.Random, alone: bool) -> Figure:
    """Two figures share the picture as small ones at the normal speed, so that both have room."""
    colour, shape, direction = rng.choice(list(COLOURS)), rng.choice(SHAPES), rng.choice(list(DIRECTIONS))
    if not alone:
        return Figure(colour, shape, direction, "small", "normal")
    return Figure(colour, shape, direction, rng.choice(list(SIZES)), rng.choice(list(SPEEDS)))


def draw_tracks(rng: random.Random, scene: Scene, aspect: float = 1.0) -> tuple[Track, ...]:
    """Where the figures are: inside the picture for all of `CLIP_FRAMES` frames, and never one over the other.

    Args:
        aspect: width / height.
    """
    room = (max(aspect, 1.0), max(1 / aspect, 1.0))
    spread = OFF_CENTRE if len(scene.figures) == 1 else max(room)
    while True:
        tracks = tuple(_draw_track(rng, figure, room, spread) for figure in scene.figures)
        if _apart(tracks):
            return tracks


def _draw_track(rng: random.Random, figure: Figure, room: Point, spread: float) -> Track:
    radius, way = rng.uniform(*SIZES[figure.size]), rng.uniform(*SPEEDS[figure.speed])
    travel = [way * sign for sign in DIRECTIONS[figure.direction]]
    middle = [_draw_middle(rng, radius * REACH, side, moved, spread) for side, moved in zip(room, travel, strict=True)]
    start = [place - moved / 2 for place, moved in zip(middle, travel, strict=True)]
    return Track(radius, (start[0], start[1]), (travel[0] / (CLIP_FRAMES - 1), travel[1] / (CLIP_FRAMES - 1)))


def _draw_middle(rng: random.Random, reach: float, side: float, travel: float, spread: float) -> float:
    """Uniform within `spread` of the centre, where both ends of the way lie inside."""
    most = min(side / 2 - reach - abs(travel) / 2, spread)
    return side / 2 + rng.uniform(-most, most)


def _apart(tracks: tuple[Track, ...]) -> bool:
    """Whether two figures keep clear of one another in every frame."""
    if len(tracks) < 2:
        return True
    first, second = tracks
    clear = (first.radius + second.radius) * REACH
    ways = (zip(first.at(frame), second.at(frame), strict=True) for frame in range(CLIP_FRAMES))
    return all(sum((a - b) ** 2 for a, b in way) >= clear**2 for way in ways)
