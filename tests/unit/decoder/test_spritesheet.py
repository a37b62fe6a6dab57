"""The picture with small frames of a clip: which frames, where, how large, and the same every time."""

from io import BytesIO

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from deployments.decoder.spritesheet import GRIDS, LONG_SIDE, Spritesheet, cell_size, grid, shown_frames


def grey_clip(num_frames: int, height: int, width: int) -> Tensor:
    """Frame k is of the one colour k."""
    levels = torch.arange(num_frames, dtype=torch.uint8).view(-1, 1, 1, 1)
    return levels.expand(num_frames, height, width, 3).contiguous()


def sheet_of(frames: Tensor, piece: int = 6) -> bytes:
    num_frames, height, width, _ = frames.shape
    sheet = Spritesheet(num_frames, width, height)
    for first in range(0, num_frames, piece):
        sheet.add(frames[first : first + piece])
    return sheet.webp()


@pytest.mark.parametrize(
    ("num_frames", "columns_rows"),
    [(1, (1, 1)), (3, (2, 1)), (7, (3, 2)), (13, (4, 3)), (16, (4, 4)), (19, (4, 4)), (163, (4, 4))],
)
def test_the_grid_is_the_largest_that_the_clip_fills(num_frames: int, columns_rows: tuple[int, int]) -> None:
    assert grid(num_frames) == columns_rows


def test_a_clip_without_frames_has_no_grid() -> None:
    with pytest.raises(ValueError, match="at least one frame, not 0"):
        grid(0)


@given(st.integers(1, 2000))
def test_frames_are_evenly_spaced_and_each_is_of_its_own_stretch(num_frames: int) -> None:
    shown = shown_frames(num_frames)
    columns, rows = grid(num_frames)
    cells = columns * rows
    assert len(shown) == cells <= 16
    for cell, frame in enumerate(shown):
        # A player shows cell floor(p * cells) at the place p: the frame's own place is in its cell.
        assert frame * cells // num_frames <= cell <= (frame + 1) * cells // num_frames
    gaps = {after - before for before, after in zip(shown, shown[1:], strict=False)}
    assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)


@pytest.mark.parametrize("num_frames", [7, 13, 25, 163])
def test_each_cell_holds_its_frame(num_frames: int) -> None:
    picture = Image.open(BytesIO(sheet_of(grey_clip(num_frames, 32, 48)))).convert("RGB")
    columns, rows = grid(num_frames)
    width, height = picture.width // columns, picture.height // rows
    assert (width, height) == (48, 32)
    for cell, frame in enumerate(shown_frames(num_frames)):
        row, column = divmod(cell, columns)
        pixel = picture.getpixel((column * width + width // 2, row * height + height // 2))
        assert isinstance(pixel, tuple)
        assert all(abs(value - frame) <= 3 for value in pixel), (cell, frame, pixel)


def test_how_the_frames_come_does_not_matter() -> None:
    frames = torch.randint(0, 256, (25, 32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert sheet_of(frames, 1) == sheet_of(frames, 6) == sheet_of(frames, 25)


@pytest.mark.parametrize("added", [0, 12, 14])
def test_a_clip_of_another_length_is_refused(added: int) -> None:
    sheet = Spritesheet(13, 16, 16)
    sheet.add(grey_clip(added, 16, 16))
    with pytest.raises(ValueError, match=f"has 13 frames; {added} were added"):
        sheet.webp()


@pytest.mark.parametrize(
    ("frame", "cell"),
    [((848, 480), (320, 181)), ((480, 848), (181, 320)), ((64, 64), (64, 64)), ((2048, 16), (320, 2))],
)
def test_cells_keep_the_shape_and_are_never_enlarged(frame: tuple[int, int], cell: tuple[int, int]) -> None:
    assert cell_size(*frame) == cell


def test_the_sheet_of_the_largest_clip_is_below_a_megabyte_even_for_noise() -> None:
    noise = torch.randint(0, 256, (163, 480, 848, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    data = sheet_of(noise)
    picture = Image.open(BytesIO(data))
    assert picture.format == "WEBP" and picture.size == (4 * 320, 4 * 181)
    assert len(data) < 1_000_000
    assert max(picture.size) <= max(columns for columns, _ in GRIDS) * LONG_SIDE
