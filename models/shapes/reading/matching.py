"""Whether a clip shows the scene that it was asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from models.shapes.reading.reading import Reading
from models.shapes.scenes.scene import Figure, Scene


@dataclass(frozen=True, slots=True)
class Verdict:
    """What of a scene is right; of two figures, of both."""

    number: bool  # as many figures as asked for, and nothing else, not even for a part of the clip
    colour: bool
    direction: bool
    shape: bool
    size: bool
    speed: bool | None  # None if nothing was to move
    background: bool

    @property
    def all_three(self) -> bool:
        """Colour, direction and shape, and nothing too many."""
        return self.number and self.colour and self.direction and self.shape

    @property
    def everything(self) -> bool:
        return self.all_three and self.size and self.speed is not False and self.background


def judge(scene: Scene, reading: Reading) -> Verdict:
    """Compare, each figure of the scene with the one read that is most like it; a missing one is wrong in all."""
    matched = match(scene.figures, reading.figures)

    def right(name: str) -> bool:
        return all(read is not None and getattr(read, name) == getattr(asked, name) for asked, read in matched)

    speeds = [_same_speed(asked, read) for asked, read in matched if asked.direction != "still"]
    return Verdict(
        number=len(reading.figures) == len(scene.figures) and not reading.flickers,
        colour=right("colour"),
        direction=right("direction"),
        shape=right("shape"),
        size=right("size"),
        speed=all(speeds) if speeds else None,
        background=reading.background == scene.background,
    )


def match(asked: Sequence[Figure], read: Sequence[Figure]) -> list[tuple[Figure, Figure | None]]:
    """Each figure that was asked for beside a read one, so that the most agrees; each read one at most once."""
    candidates = [*read, *[None] * max(0, len(asked) - len(read))]
    best = max(permutations(candidates, len(asked)), key=lambda order: sum(map(_likeness, asked, order)))
    return list(zip(asked, best, strict=True))


def _likeness(asked: Figure, read: Figure | None) -> int:
    if read is None:
        return 0
    return sum(getattr(asked, name) == getattr(read, name) for name in ("colour", "shape", "direction", "size"))


def _same_speed(asked: Figure, read: Figure | None) -> bool:
    """The speed that is read of a still figure is none."""
    return read is not None and read.direction != "still" and read.speed == asked.speed
