import pytest

from models.shapes.reading.matching import Verdict, judge
from models.shapes.reading.reading import Flicker, Reading
from models.shapes.scenes.scene import Figure, Scene

RIGHT = Verdict(True, True, True, True, True, True, True)
RED_STAR = Figure("red", "star", "right")
BLUE_SQUARE = Figure("blue", "square", "still", "small")
PAIR = Scene((RED_STAR, BLUE_SQUARE), "dark green")


def test_either_order_of_a_pair_is_right() -> None:
    assert judge(PAIR, Reading("dark green", (BLUE_SQUARE, RED_STAR))) == RIGHT
    assert RIGHT.everything


def test_a_pair_with_its_colours_swapped_is_wrong() -> None:
    swapped = (Figure("blue", "star", "right"), Figure("red", "square", "still", "small"))
    verdict = judge(PAIR, Reading("dark green", swapped))
    assert not verdict.colour and verdict.shape and verdict.direction and not verdict.all_three


@pytest.mark.parametrize(
    ("read", "wrong"),
    [
        (Figure("red", "star", "left"), {"direction"}),
        (Figure("red", "circle", "right", "big"), {"shape", "size"}),
        (Figure("red", "star", "right", speed="fast"), {"speed"}),
        (Figure("red", "star", "still"), {"direction", "speed"}),
    ],
)
def test_what_is_wrong_is_named(read: Figure, wrong: set[str]) -> None:
    verdict = judge(Scene((RED_STAR,)), Reading("black", (read,)))
    names = ("number", "colour", "direction", "shape", "size", "speed", "background")
    assert {name for name in names if not getattr(verdict, name)} == wrong
    assert not verdict.everything


def test_the_speed_of_a_still_figure_does_not_count() -> None:
    verdict = judge(Scene((BLUE_SQUARE,)), Reading("black", (BLUE_SQUARE,)))
    assert verdict.speed is None and verdict.everything


def test_a_figure_too_many_is_wrong() -> None:
    verdict = judge(Scene((RED_STAR,)), Reading("black", (BLUE_SQUARE, RED_STAR)))
    assert verdict.colour and not verdict.number and not verdict.all_three and not verdict.everything


def test_something_seen_for_a_part_of_the_clip_is_wrong() -> None:
    verdict = judge(Scene((RED_STAR,)), Reading("black", (RED_STAR,), flickers=(Flicker(30.0, 10, 25),)))
    assert verdict.colour and not verdict.number and not verdict.all_three and not verdict.everything


def test_nothing_read_is_all_wrong_but_the_background() -> None:
    assert judge(PAIR, Reading("dark green")) == Verdict(False, False, False, False, False, False, True)
