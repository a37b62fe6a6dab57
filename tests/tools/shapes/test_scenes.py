"""What the included model is trained on: the scenes, the way they are drawn, and the English that names them."""

import random
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.shapes.scenes.draw import draw_clip, figure_mask
from models.shapes.scenes.prompt import STILL, direction_phrases, words, write_prompt
from models.shapes.scenes.scene import (
    BACKGROUNDS,
    CLIP_FRAMES,
    COLOURS,
    DIRECTIONS,
    REACH,
    SHAPES,
    SIZES,
    SPEEDS,
    Figure,
    Scene,
    Track,
    draw_scene,
    draw_tracks,
    figures,
)
from models.shapes.training.text_encoder import TRAINED_TOKENS
from models.shapes.training.tokenizer import new_tokenizer

randoms = st.integers(0, 1 << 32).map(random.Random)
CENTRED = Track(0.2, (0.5, 0.5), (0.0, 0.0))


def test_an_eighth_of_the_triples_is_held_out_and_no_pair_of_words_is() -> None:
    triples = {(figure.colour, figure.shape, figure.direction): figure.held_out for figure in figures()}
    assert len(triples) == len(COLOURS) * len(SHAPES) * len(DIRECTIONS) == 288
    assert sum(triples.values()) == 36
    seen = [triple for triple, held_out in triples.items() if not held_out]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        pairs = {(triple[first], triple[second]) for triple in triples}
        assert {(triple[first], triple[second]) for triple in seen} == pairs


@given(randoms, st.sampled_from(("train", "held out")))
def test_a_split_holds_only_its_own_scenes(rng: random.Random, split: str) -> None:
    scene = draw_scene(rng, "held out" if split == "held out" else "train", pair_share=0.5)
    assert any(figure.held_out for figure in scene.figures) == (split == "held out")
    assert len({figure.colour for figure in scene.figures}) == len(scene.figures)
    assert scene.background in BACKGROUNDS


@given(randoms, st.sampled_from((0.5, 1.0, 16 / 9)))
def test_figures_stay_inside_and_apart_for_a_whole_clip(rng: random.Random, aspect: float) -> None:
    scene = draw_scene(rng, "train", pair_share=0.5)
    tracks = draw_tracks(rng, scene, aspect)
    room = (max(aspect, 1.0), max(1 / aspect, 1.0))
    for frame in range(CLIP_FRAMES):
        centres = [track.at(frame) for track in tracks]
        for track, centre in zip(tracks, centres, strict=True):
            for place, side in zip(centre, room, strict=True):
                assert REACH * track.radius - 1e-9 <= place <= side - REACH * track.radius + 1e-9
        if len(tracks) == 2:
            apart = torch.dist(torch.tensor(centres[0]), torch.tensor(centres[1]))
            assert apart >= REACH * sum(track.radius for track in tracks) - 1e-5


@given(randoms)
def test_a_track_has_the_size_speed_and_direction_of_its_figure(rng: random.Random) -> None:
    scene = draw_scene(rng, "train", pair_share=0.0)
    (figure,), (track,) = scene.figures, draw_tracks(rng, scene)
    low, high = SIZES[figure.size]
    assert low <= track.radius <= high
    for moved, sign in zip(track.step, DIRECTIONS[figure.direction], strict=True):
        slowest, fastest = (speed * abs(sign) for speed in SPEEDS[figure.speed])
        assert slowest - 1e-9 <= moved * sign * (CLIP_FRAMES - 1) <= fastest + 1e-9 or (moved == 0 == sign)


def test_ranges_of_sizes_and_speeds_do_not_touch() -> None:
    for ranges in (list(SIZES.values()), list(SPEEDS.values())):
        for (_, end), (begin, _) in zip(ranges, ranges[1:], strict=False):
            assert end < begin


def test_a_later_track_goes_on_where_the_other_was() -> None:
    track = Track(0.1, (0.25, 0.5), (0.125, -0.25))
    assert track.after(2).at(3) == track.at(5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_its_colour_inside_and_the_background_outside(shape: str) -> None:
    scene = Scene((Figure("orange", shape, "still"),), "dark blue")
    clip = draw_clip(scene, [CENTRED], 96, 96, 1)
    assert clip.shape == (3, 1, 96, 96) and clip.dtype == torch.float32
    pixels = (clip[:, 0] + 1) / 2
    assert torch.allclose(pixels[:, 48, 48], torch.tensor(COLOURS["orange"]), atol=1e-3)
    assert torch.allclose(pixels[:, 2, 2], torch.tensor(BACKGROUNDS["dark blue"]), atol=1e-3)


def test_shapes_differ_and_none_reaches_farther_than_it_may() -> None:
    y, x = torch.meshgrid(torch.arange(96) + 0.5 - 48, torch.arange(96) + 0.5 - 48, indexing="ij")
    soft = 8  # pixels by which a sharp tip may fade out
    far = torch.hypot(x, y) > REACH * 0.2 * 96 + soft
    masks = [figure_mask(shape, CENTRED, 96, 96, 1, 96)[0] for shape in SHAPES]
    assert all(float(mask[far].max()) < 0.01 for mask in masks)
    for one, other in product(range(4), range(4)):
        if one < other:
            shared = torch.minimum(masks[one], masks[other]).sum() / torch.maximum(masks[one], masks[other]).sum()
            assert shared < 0.85, (SHAPES[one], SHAPES[other])


def test_a_figure_moves_by_its_step_each_frame() -> None:
    mask = figure_mask("circle", Track(0.15, (0.3, 0.6), (0.01, -0.005)), 100, 100, 11, 100)
    weight = mask / mask.sum((1, 2), keepdim=True)
    place = torch.arange(100) + 0.5
    x, y = (weight.sum(1) * place).sum(1), (weight.sum(2) * place).sum(1)
    assert torch.allclose(x, 30 + torch.arange(11.0), atol=0.05)
    assert torch.allclose(y, 60 - 0.5 * torch.arange(11.0), atol=0.05)


def test_a_clip_is_as_wide_as_asked_and_its_lengths_scale_with_the_shorter_side() -> None:
    scene = Scene((Figure("red", "square", "still"),))
    assert draw_clip(scene, [CENTRED], 48, 80, 3).shape == (3, 3, 48, 80)
    small, large = (float(figure_mask("square", CENTRED, side, side + 32, 1, side).sum()) for side in (48, 96))
    assert large / small == pytest.approx(4, rel=0.05)


@given(randoms)
def test_a_prompt_is_made_of_known_words_but_for_a_stray_one(rng: random.Random) -> None:
    scene = draw_scene(rng, "train", pair_share=0.3)
    prompt = write_prompt(rng, scene)
    said = prompt.replace(",", " ").split()
    assert len([word for word in said if word not in set(words())]) <= len(scene.figures)
    assert prompt == prompt.strip() and "  " not in prompt
    # Whole words: a stray one may end in an a.
    assert ("a", "orange") not in set(pairwise(said))


def test_each_meaning_is_said_in_words_of_its_own() -> None:
    """No phrase for one direction is a phrase for another, and each differs from its opposite."""
    phrases = {direction: set(direction_phrases(direction)) for direction in DIRECTIONS}
    assert not phrases["still"]
    for one, other in product(DIRECTIONS, DIRECTIONS):
        assert one == other or not phrases[one] & phrases[other]


@given(randoms)
def test_a_still_figure_before_a_moving_one_is_called_still(rng: random.Random) -> None:
    """Else "a red star and a blue disc moving up" would be both a scene of one that moves and of two."""
    both = Scene((Figure("red", "star", "up", "small"), Figure("blue", "circle", "up", "small")))
    one = Scene((Figure("red", "star", "still", "small"), Figure("blue", "circle", "up", "small")))
    said, other = write_prompt(rng, one), write_prompt(rng, both)
    still_words = [way for way in STILL if way]
    assert any(way in said for way in still_words) and not any(way in other for way in still_words)


def test_every_word_of_the_tokenizer_is_said() -> None:
    rng = random.Random(2)
    said = {word for _ in range(6000) for word in write_prompt(rng, draw_scene(rng, "train")).replace(",", " ").split()}
    assert set(words()) <= said


def test_prompts_are_varied() -> None:
    rng = random.Random(0)
    scene = Scene((Figure("red", "circle", "left", "small", "slow"),), "dark blue")
    prompts = {write_prompt(rng, scene) for _ in range(500)}
    assert len(prompts) > 450


def test_the_tokenizer_knows_every_prompt_and_all_fit() -> None:
    rng, tokenizer = random.Random(1), new_tokenizer()
    for _ in range(2000):
        tokens = tokenizer(write_prompt(rng, draw_scene(rng, "train"))).input_ids
        assert tokenizer.unk_token_id not in tokens
        assert len(tokens) <= TRAINED_TOKENS


def test_the_tokenizer_looks_past_capitals_and_punctuation() -> None:
    tokenizer = new_tokenizer()
    plain = tokenizer("a small red circle moving left over a dark blue background").input_ids
    assert tokenizer(" A small RED circle, moving left... over a Dark-Blue background! ").input_ids == plain
    assert plain[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(plain, skip_special_tokens=True) == (
        "a small red circle moving left over a dark blue background"
    )
    assert tokenizer.unk_token_id not in tokenizer("A cat & a café, 3 dogs").input_ids
