import math
import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deployments.mochi.streaming_decode import to_uint8
from deployments.replica.host import one_thread
from models.shapes.evaluation.mp4 import through_mp4
from models.shapes.reading.blobs import Ints, Mask, connected, erode, find_blobs
from models.shapes.reading.matching import judge
from models.shapes.reading.reader import motion, nearest_range, read_clip
from models.shapes.reading.reading import Frames, Reading, psnr, redraw, redraw_psnr
from models.shapes.scenes.draw import draw_clip
from models.shapes.scenes.scene import REACH, SIZES, SPEEDS, Figure, Range, Scene, Track, draw_scene, draw_tracks

RED_STAR = Figure("red", "star", "right")
BLUE_SQUARE = Figure("blue", "square", "still", "small")
PAIR = Scene((RED_STAR, BLUE_SQUARE), "dark green")
TRACKS = (Track(0.135, (0.25, 0.3), (0.36 / 36, 0.0)), Track(0.104, (0.5, 0.75), (0.0, 0.0)))

Spoil = Callable[[Tensor, random.Random], Tensor]


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    with one_thread():
        yield


def clip_of(scene: Scene, tracks: tuple[Track, ...], height: int = 64, width: int = 64, num_frames: int = 25) -> Frames:
    return redraw(Reading(scene.background, scene.figures, tracks), height, width, num_frames)


def blurred(clip: Tensor, sigma: float) -> Tensor:
    taps = torch.exp(-(torch.arange(-6, 7.0) ** 2) / (2 * sigma**2))
    kernel = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
    frames = F.pad(clip.permute(1, 0, 2, 3), (6, 6, 6, 6), mode="replicate")
    return F.conv2d(frames.flatten(0, 1)[:, None], kernel).view(-1, 3, *clip.shape[2:]).permute(1, 0, 2, 3)


def noisy(clip: Tensor, rng: random.Random, amount: float) -> Tensor:
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    return clip + 2 * amount * torch.randn(clip.shape, generator=generator)


def clean(clip: Tensor, rng: random.Random) -> Tensor:
    return clip


def soft(clip: Tensor, rng: random.Random) -> Tensor:
    return blurred(clip, 1.5)


def grainy(clip: Tensor, rng: random.Random) -> Tensor:
    return noisy(clip, rng, 0.06)


def faded(clip: Tensor, rng: random.Random) -> Tensor:
    """Weak colours over a ground that is lighter to one side, soft and noisy as well."""
    slope = torch.linspace(0, 0.06, clip.shape[3])
    return noisy(blurred(clip, 1.0) * 0.9 + slope, rng, 0.03)


def misread(count: int, height: int, width: int, num_frames: int, spoil: Spoil = clean) -> list[str]:
    """What the reader gets wrong of drawn clips that went through an mp4."""
    rng = random.Random(f"{height} {width} {num_frames}")
    wrong = []
    for number in range(count):
        scene = draw_scene(rng, "held out" if number % 2 else "train", pair_share=0.3)
        drawn = draw_clip(scene, draw_tracks(rng, scene, width / height), height, width, num_frames)
        reading = read_clip(through_mp4(to_uint8(spoil(drawn, rng)).numpy()))
        if not judge(scene, reading).everything:
            wrong.append(f"{scene} was read as {reading}")
    return wrong


@pytest.mark.parametrize(
    ("count", "height", "width", "num_frames", "spoil"),
    [
        (10, 96, 96, 37, clean),
        (6, 64, 64, 25, clean),
        (4, 80, 128, 49, clean),
        (4, 112, 64, 19, clean),
        (4, 96, 96, 37, soft),
        (4, 64, 64, 37, grainy),
        (4, 96, 80, 37, faded),
    ],
)
def test_drawn_clips_are_read_as_they_were_drawn(
    count: int, height: int, width: int, num_frames: int, spoil: Spoil
) -> None:
    assert misread(count, height, width, num_frames, spoil) == []


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [clean, faded])
def test_at_most_one_of_a_hundred_is_misread(spoil: Spoil) -> None:
    wrong = misread(400, 96, 96, 37, spoil)
    assert len(wrong) <= 4, wrong


def test_the_track_is_found() -> None:
    reading = read_clip(clip_of(PAIR, TRACKS))
    assert reading.scene == Scene((RED_STAR, BLUE_SQUARE), "dark green")
    assert reading.remarks == ()
    for found, drawn in zip(reading.tracks, TRACKS, strict=True):
        assert found.radius == pytest.approx(drawn.radius, abs=0.003)
        assert found.start == pytest.approx(drawn.start, abs=0.005)
        assert found.step == pytest.approx(drawn.step, abs=0.0003)


def test_a_figure_that_leaves_the_picture_is_followed_out_of_it() -> None:
    track = Track(0.135, (0.55, 0.5), (0.36 / 36, 0.0))
    reading = read_clip(clip_of(Scene((RED_STAR,)), (track,), num_frames=61))
    assert reading.figures == (RED_STAR,)
    assert reading.tracks[0].step == pytest.approx(track.step, abs=0.0005)


def test_two_as_near_as_they_come_with_blurred_edges_are_two() -> None:
    scene = Scene((Figure("white", "square", "still", "small"), Figure("yellow", "square", "still", "small")))
    apart = 0.1 * REACH / math.sqrt(2)
    tracks = [Track(0.1, (0.5 + side * apart, 0.5 + side * apart), (0.0, 0.0)) for side in (-1, 1)]
    clip = to_uint8(blurred(draw_clip(scene, tracks, 64, 64, 7), 1.3)).numpy()
    assert judge(scene, read_clip(clip)).everything


def test_an_empty_clip() -> None:
    reading = read_clip(clip_of(Scene((), "grey"), ()))
    assert reading == Reading("grey")
    assert reading.remarks == ("nothing stands out from the ground",)


def test_a_figure_is_missing() -> None:
    reading = read_clip(clip_of(Scene((RED_STAR,)), TRACKS[:1]))
    verdict = judge(Scene(PAIR.figures), reading)
    assert reading.figures == (RED_STAR,)
    assert not verdict.number and not verdict.colour and verdict.background


def test_a_flicker_is_no_figure_but_is_told() -> None:
    clip = clip_of(PAIR, TRACKS)
    clip[:15] = clip_of(Scene((RED_STAR,), "dark green"), TRACKS[:1])[:15]
    reading = read_clip(clip)
    assert reading.figures == (RED_STAR,)
    assert len(reading.remarks) == 1 and reading.remarks[0].endswith("it is in 10 of 25 frames")
    verdict = judge(Scene((RED_STAR,), "dark green"), reading)
    assert verdict.colour and not verdict.number and not verdict.all_three and not verdict.everything


def test_a_speck_is_no_figure() -> None:
    clip = clip_of(Scene((RED_STAR,)), TRACKS[:1])
    clip[:, 50:54, 50:54] = 255
    assert read_clip(clip).figures == (RED_STAR,)


@pytest.mark.parametrize("num_frames", [1, 2, 7])
def test_short_clips(num_frames: int) -> None:
    (figure,) = read_clip(clip_of(Scene((BLUE_SQUARE,)), TRACKS[1:], num_frames=num_frames)).figures
    assert (figure.colour, figure.shape, figure.direction) == ("blue", "square", "still")


def test_noise_all_over_is_one_big_thing_at_rest() -> None:
    reading = read_clip(np.random.default_rng(0).integers(0, 256, (13, 48, 64, 3), np.uint8))
    assert [(figure.size, figure.direction) for figure in reading.figures] == [("big", "still")]
    assert reading.background == "grey"


@pytest.mark.parametrize("levels", [(250, 250), (0, 255)], ids=["plain", "black and white specks"])
def test_a_square_larger_than_any_is_a_big_one(levels: tuple[int, int]) -> None:
    clip = np.full((13, 48, 64, 3), 128, np.uint8)
    clip[:, 10:30, 10:30] = np.random.default_rng(0).choice(np.array(levels, np.uint8), (13, 20, 20, 1))
    reading = read_clip(clip)
    assert [(figure.shape, figure.size, figure.direction) for figure in reading.figures] == [("square", "big", "still")]
    assert reading.tracks[0].start == pytest.approx((20 / 48, 20 / 48), abs=0.01)


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ((0.0, 0.11), ("still", "normal")),
        ((0.0, 0.12), ("down", "slow")),
        ((0.36, 0.12), ("right", "normal")),
        ((0.34, 0.20), ("down right", "slow")),
        ((-0.49, -0.46), ("up left", "fast")),
        ((0.0, -0.43), ("up", "fast")),
    ],
)
def test_motion_has_the_nearest_name(way: tuple[float, float], expected: tuple[str, str]) -> None:
    assert motion(Track(0.1, (0.5, 0.5), (way[0] / 36, way[1] / 36))) == expected


@pytest.mark.parametrize(
    ("value", "table", "expected"),
    [
        (0.02, SIZES, "small"),
        (0.118, SIZES, "small"),
        (0.120, SIZES, "medium"),
        (0.152, SIZES, "medium"),
        (0.153, SIZES, "big"),
        (0.4, SIZES, "big"),
        (0.415, SPEEDS, "normal"),
        (0.425, SPEEDS, "fast"),
    ],
)
def test_a_value_outside_of_all_ranges_has_the_nearest_name(
    value: float, table: dict[str, Range], expected: str
) -> None:
    assert nearest_range(value, table) == expected


def test_redraw_psnr_falls_with_blur_noise_and_an_uneven_way() -> None:
    scene = Scene((RED_STAR,))
    sharp = draw_clip(scene, TRACKS[:1], 64, 64, 25)
    rng = random.Random(0)
    uneven = sharp[:, [min(24, frame + 2 * (frame // 5 % 2)) for frame in range(25)]]
    values = {
        name: redraw_psnr(frames, read_clip(frames))
        for name, clip in [
            ("sharp", sharp),
            ("soft", blurred(sharp, 0.7)),
            ("softer", blurred(sharp, 1.5)),
            ("noisy", noisy(sharp, rng, 0.05)),
            ("uneven", uneven),
        ]
        for frames in [to_uint8(clip).numpy()]
    }
    assert values["sharp"] > values["soft"] > values["softer"] + 3 > 23
    assert values["noisy"] == pytest.approx(26, abs=1.5)
    assert values["uneven"] < values["sharp"] - 10


def test_psnr() -> None:
    black, dark = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 51, np.uint8)
    assert psnr(dark, black) == pytest.approx(13.979, abs=0.001)
    assert psnr(black, black) == pytest.approx(58.92, abs=0.01)


def flood(mask: Mask) -> Ints:
    """Components by walking: slow, and plainly right."""
    labels = np.zeros(mask.shape, np.intp)
    for number, start in enumerate(np.argwhere(mask), 1):
        border = [tuple(start)] if labels[tuple(start)] == 0 else []
        while border:
            at = border.pop()
            labels[at] = number
            for step in [*np.eye(3, dtype=int), *-np.eye(3, dtype=int)]:
                to = tuple(np.add(at, step))
                if all(0 <= n < size for n, size in zip(to, mask.shape, strict=True)) and mask[to] and labels[to] == 0:
                    border.append(to)
    return labels[mask]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.35, 0.6, 1.0])
def test_components_are_those_of_a_flood(share: float) -> None:
    mask = np.random.default_rng(1).random((5, 9, 7)) < share
    found, expected = connected(mask), flood(mask)
    assert len(set(zip(found, expected, strict=True))) == len(set(found)) == len(set(expected))


def test_two_that_touch_at_a_corner_are_two() -> None:
    mask = np.zeros((3, 20, 20), np.bool_)
    mask[:, 2:10, 2:10] = mask[:, 9:16, 9:16] = True
    assert [blob.area for blob in find_blobs(mask, 1, 4)] == [36, 25]


def test_the_border_of_the_picture_takes_nothing_off() -> None:
    mask = np.zeros((1, 6, 6), np.bool_)
    mask[0, :3, :4] = True
    assert erode(mask).sum() == 2 * 3
