"""The README's picture: clips of several prompts from a running server, side by side in one animated WebP.

python models/shapes/make_picture.py --url http://127.0.0.1:8000 --out docs/picture.webp
"""

import argparse
import tempfile
import time
from pathlib import Path

import httpx
import imageio_ffmpeg
from PIL import Image, ImageDraw

PROMPTS = (
    "a red circle moving right",
    "a blue square moving left",
    "a green circle moving up",
    "a yellow square moving down",
)
SCALE = 3
CAPTION = 22
GAP = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--out", type=Path, default=Path("docs/picture.webp"))
    parser.add_argument("--seed", type=int, default=4)
    arguments = parser.parse_args()
    with httpx.Client(base_url=arguments.url, timeout=60) as client:
        clips = [frames_of(make_clip(client, prompt, arguments.seed)) for prompt in PROMPTS]
    pictures = [side_by_side([clip[n] for clip in clips]) for n in range(len(clips[0]))]
    first, *rest = pictures
    first.save(arguments.out, save_all=True, append_images=rest, duration=60, loop=0, quality=80, method=6)


def make_clip(client: httpx.Client, prompt: str, seed: int) -> bytes:
    """The mp4 of one prompt. Raises SystemExit if the job did not complete."""
    video = client.post("/v1/videos", json={"prompt": prompt, "seed": seed}).raise_for_status().json()
    while video["status"] in ("queued", "in_progress"):
        time.sleep(0.1)
        video = client.get(f"/v1/videos/{video['id']}").raise_for_status().json()
    if video["status"] != "completed":
        raise SystemExit(f"{prompt!r} ended as {video['status']}: {video['error']}")
    return client.get(f"/v1/videos/{video['id']}/content").raise_for_status().content


def frames_of(mp4: bytes) -> list[Image.Image]:
    """The frames, as ffmpeg decodes them."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(mp4)
        file.flush()
        reader = imageio_ffmpeg.read_frames(file.name)
        size = next(reader)["size"]
        return [Image.frombytes("RGB", size, frame) for frame in reader]


def side_by_side(frames: list[Image.Image]) -> Image.Image:
    """The frames in one row, enlarged, each with its prompt below."""
    size = frames[0].width * SCALE
    sheet = Image.new("RGB", (len(frames) * (size + GAP) - GAP, size + CAPTION), "white")
    draw = ImageDraw.Draw(sheet)
    for n, (frame, prompt) in enumerate(zip(frames, PROMPTS, strict=True)):
        x = n * (size + GAP)
        sheet.paste(frame.resize((size, size), Image.Resampling.BICUBIC), (x, 0))
        draw.text((x + size // 2, size + CAPTION // 2), prompt, fill="black", anchor="mm")
    return sheet


if __name__ == "__main__":
    main()
