"""The English of a scene: every scene can be said in many ways, and is said in a random one of them.

What a prompt leaves out has one meaning: a medium size (small ones of two), a normal speed, a black background, no
motion.
"""

import random
import string
from collections.abc import Iterator, Mapping

from models.shapes.scenes.scene import Figure, Scene

# Names of `scene` to the ways to say them; a likelier way stands there twice.
Words = Mapping[str, tuple[str, ...]]

COLOUR_WORDS: Words = {
    "red": ("red", "red", "crimson"),
    "orange": ("orange",),
    "yellow": ("yellow", "yellow", "golden"),
    "green": ("green", "green", "lime"),
    "cyan": ("cyan", "cyan", "turquoise"),
    "blue": ("blue",),
    "purple": ("purple", "purple", "violet"),
    "white": ("white",),
}
SHAPE_WORDS: Words = {
    "circle": ("circle", "circle", "circle", "ball", "disc", "dot"),
    "square": ("square", "square", "square", "box", "cube"),
    "triangle": ("triangle", "triangle", "triangle", "pyramid"),
    "star": ("star",),
}
SIZE_WORDS: Words = {
    "small": ("small", "little", "tiny"),
    "medium": ("", "", "medium"),
    "big": ("big", "large", "huge"),
}
SPEED_WORDS: Words = {"slow": ("slowly", "gently"), "normal": ("",), "fast": ("fast", "quickly", "rapidly")}
BACKGROUND_WORDS: Words = {
    "black": ("black",),
    "dark blue": ("dark blue", "navy"),
    "dark green": ("dark green", "forest green"),
    "grey": ("grey", "gray"),
}
VERBS = (
    ("moving", "moves"),
    ("moving", "moves"),
    ("drifting", "drifts"),
    ("sliding", "slides"),
    ("gliding", "glides"),
    ("going", "goes"),
    ("travelling", "travels"),
    ("floating", "floats"),
    ("flying", "flies"),
    ("rolling", "rolls"),
)
STILL = (
    "",
    "standing still",
    "stands still",
    "resting",
    "at rest",
    "not moving",
    "that does not move",
)
_SIDES: Words = {
    "right": ("right", "left"),
    "left": ("left", "right"),
    "up": ("top", "bottom"),
    "down": ("bottom", "top"),
}
_ALONG: Words = {
    "right": ("right", "right", "to the right", "to the right", "rightwards", "towards the right"),
    "left": ("left", "left", "to the left", "to the left", "leftwards", "towards the left"),
    "up": ("up", "up", "upwards", "upward", "to the top", "towards the top"),
    "down": ("down", "down", "downwards", "downward", "to the bottom", "towards the bottom"),
}
_CORNERS: Words = {"up": ("upper", "top"), "down": ("lower", "bottom")}
_GROUNDS = (
    "over a {} background",
    "on a {} background",
    "against a {} background",
    "on {}",
    "over {}",
    "in front of a {} wall",
)
OPENINGS = ("", "", "", "", "a video of", "a clip of", "an animation of", "there is")
ADJECTIVES = ("soft", "bright", "shiny", "lonely", "happy", "cute", "simple", "glowing", "beautiful", "flat")
ARTICLES = ("a", "a", "a", "a", "the", "one", "")
STRAY_SHARE = 0.1


def write_prompt(rng: random.Random, scene: Scene) -> str:
    """One of the ways to say a scene."""
    ground = _ground(rng, scene.background)
    said = _single(rng, scene.figures[0]) if len(scene.figures) == 1 else _pair(rng, scene.figures)
    if ground and rng.random() < 0.2:
        return _tidy(f"{ground}, {said}")
    return _tidy(f"{rng.choice(OPENINGS)} {said} {ground}")


def words() -> list[str]:
    """Every word that a prompt can hold, stray ones apart."""
    tables = [
        COLOUR_WORDS,
        SHAPE_WORDS,
        SIZE_WORDS,
        SPEED_WORDS,
        BACKGROUND_WORDS,
        _ALONG,
        _SIDES,
        _CORNERS,
    ]
    phrases = [phrase for table in tables for choice in table.values() for phrase in choice]
    phrases += [verb for pair in VERBS for verb in pair]
    phrases += [*STILL, *OPENINGS, *ADJECTIVES, *ARTICLES, *(ground.format("") for ground in _GROUNDS)]
    phrases += ["an and while both from diagonally corner"]
    return sorted({word for phrase in phrases for word in phrase.split()})


def direction_phrases(direction: str) -> Iterator[str]:
    """The ways to say where to; none for a still one."""
    names = direction.split()
    if direction == "still":
        return
    if len(names) == 1:
        yield from _ALONG[direction]
        yield "from the {1} to the {0}".format(*_SIDES[direction])
        yield "from {1} to {0}".format(*_SIDES[direction])
        return
    vertical, side = names
    yield from (f"{vertical} and {side}", f"{vertical} and to the {side}", f"{vertical} {side}")
    yield from (f"diagonally {vertical} and {side}", f"diagonally {vertical} {side}")
    for corner in _CORNERS[vertical]:
        yield from (f"to the {corner} {side}", f"towards the {corner} {side}", f"to the {corner} {side} corner")


def _single(rng: random.Random, figure: Figure) -> str:
    return f"{_subject(rng, figure, rng.choice(SIZE_WORDS[figure.size]))} {_motion(rng, figure)}"


def _pair(rng: random.Random, figures: tuple[Figure, ...]) -> str:
    """Two figures, small ones as all pairs are, whether it is said or not."""
    first, second = (_subject(rng, figure, rng.choice(("", "", "small"))) for figure in figures)
    one, other = figures
    if one.direction == other.direction and rng.random() < 0.5:
        motion = _motion(rng, one)
        return f"{first} and {second} {rng.choice(('', 'both')) if motion else ''} {motion}"
    joint = rng.choice(("and", "and", ", and", "while"))
    # "a red star and a blue disc moving up" is said of two that move: a still one before a moving one is called still.
    unsaid = other.direction == "still"
    return f"{first} {_motion(rng, one, unsaid)} {joint} {second} {_motion(rng, other)}"


def _subject(rng: random.Random, figure: Figure, size: str) -> str:
    colour, shape = rng.choice(COLOUR_WORDS[figure.colour]), rng.choice(SHAPE_WORDS[figure.shape])
    noun = f"{size} {_stray(rng)} {colour} {shape}".split()
    article = rng.choice(ARTICLES)
    if article == "a" and noun[0][0] in "aeiou":
        article = "an"
    return " ".join([article, *noun])


def _stray(rng: random.Random) -> str:
    """Now and then a word that says nothing, so that the model learns to look past those it does not know."""
    if rng.random() >= STRAY_SHARE:
        return ""
    if rng.random() < 0.5:
        return rng.choice(ADJECTIVES)
    return "".join(rng.choices(string.ascii_lowercase + string.digits, k=rng.randint(2, 6)))


def _motion(rng: random.Random, figure: Figure, unsaid: bool = True) -> str:
    """unsaid: whether a still figure may go without a word for it."""
    if figure.direction == "still":
        return rng.choice([way for way in STILL if way or unsaid])
    verb, where = rng.choice(rng.choice(VERBS)), rng.choice(list(direction_phrases(figure.direction)))
    how = rng.choice(SPEED_WORDS[figure.speed])
    return rng.choice((f"{how} {verb} {where}", f"{verb} {how} {where}", f"{verb} {where} {how}"))


def _ground(rng: random.Random, background: str) -> str:
    if background == "black" and rng.random() < 0.6:
        return ""
    return rng.choice(_GROUNDS).format(rng.choice(BACKGROUND_WORDS[background]))


def _tidy(text: str) -> str:
    return " ".join(text.split()).replace(" ,", ",")
