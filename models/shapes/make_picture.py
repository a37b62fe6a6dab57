"""The README's picture: clips of several prompts from a running server, in one animated WebP.

python -m models.shapes.make_picture --url http://127.0.0.1:8000 --out docs/picture.webp
"""

import argparse
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from PIL import Image, ImageDraw, ImageFont

from models.shapes.evaluation.mp4 import read_mp4
from models.shapes.reading.reading import Frames

PROMPTS = (
    "a small red circle drifts slowly to the left over a dark blue background",
    "a big yellow star flying to the upper right",
    "a purple square sliding down in front of a grey wall",
    "an orange ball rolling fast from left to right on grey",
    "a white triangle rising up towards the top over dark green",
    "there is a tiny cyan disc gently floating up",
)
COLUMNS = 3
TILE = 240
GAP = 12
CAPTION = 46
CAPTION_SIZE = 14
CAPTION_LETTERS = 37
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Clip:
    """frames: [F, H, W, 3] uint8 RGB; fps: of the video."""

    frames: Frames
    fps: int


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--out", type=Path, default=Path("docs/picture.webp"))
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with httpx.Client(base_url=arguments.url, timeout=60) as client:
        clips = make_clips(client, arguments.seed)
    save(clips, arguments.out)


def make_clips(client: httpx.Client, seed: int) -> list[Clip]:
    """A clip of each prompt. Raises SystemExit: no server answers, or a job did not complete."""
    try:
        return [make_clip(client, prompt, seed) for prompt in PROMPTS]
    except (httpx.ConnectError, httpx.ConnectTimeout):
        raise SystemExit(f"no server at {client.base_url}; start it with make serve") from None


def make_clip(client: httpx.Client, prompt: str, seed: int) -> Clip:
    """The clip of one prompt. Raises SystemExit: the job did not complete."""
    video = client.post("/v1/videos", json={"prompt": prompt, "seed": seed}).raise_for_status().json()
    while video["status"] in ("queued", "in_progress"):
        time.sleep(POLL_S)
        video = client.get(f"/v1/videos/{video['id']}").raise_for_status().json()
    if video["status"] != "completed":
        raise SystemExit(f"{prompt!r} ended as {video['status']}: {video['error']}")
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(client.get(f"/v1/videos/{video['id']}/content").raise_for_status().content)
        file.flush()
        return Clip(read_mp4(Path(file.name)), video["fps"])


def save(clips: Sequence[Clip], path: Path) -> None:
    """All clips side by side, as an animation that plays as fast as they do and goes on for ever."""
    first, *rest = [grid(frames) for frames in zip(*(clip.frames for clip in clips), strict=True)]
    frame_ms = round(1000 / clips[0].fps)
    first.save(path, save_all=True, append_images=rest, duration=frame_ms, loop=0, quality=75, method=6)


def grid(frames: Sequence[Frames]) -> Image.Image:
    """One frame [H, W, 3] of each clip, enlarged, each with its prompt below."""
    rows = -(-len(frames) // COLUMNS)
    size = COLUMNS * (TILE + GAP) + GAP, rows * (TILE + CAPTION) + GAP
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=CAPTION_SIZE)
    for number, (frame, prompt) in enumerate(zip(frames, PROMPTS, strict=True)):
        left = GAP + number % COLUMNS * (TILE + GAP)
        top = GAP + number // COLUMNS * (TILE + CAPTION)
        picture.paste(Image.fromarray(frame).resize((TILE, TILE), Image.Resampling.BICUBIC), (left, top))
        caption = "\n".join(textwrap.wrap(prompt, CAPTION_LETTERS))
        draw.multiline_text(
            (left + TILE / 2, top + TILE + CAPTION / 2 - GAP / 2),
            caption,
            "#222222",
            font,
            "mm",
            spacing=3,
            align="center",
        )
    return picture


if __name__ == "__main__":
    main()
