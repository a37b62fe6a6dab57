"""The map that previews of the included model are made with, fitted over clips that it makes itself.

python models/shapes/fit_preview.py
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from deployments.denoise import denoise_step, latent_shape, rope_tables, start_row
from deployments.messages import VideoSpec
from deployments.mochi_model import load_transformer, load_vae
from deployments.preview import FILE, PreviewFit, to_json
from deployments.prompt_encoder import TextEncoder
from deployments.streaming_decode import StreamingDecoder, denormalise, to_uint8

FOLDER = Path(__file__).parent
CPU = torch.device("cpu")
COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = ("right", "left", "up", "down")
CLIPS = 8
HELD_OUT = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER / FILE)
    arguments = parser.parse_args()
    vae = load_vae(FOLDER, "float32", CPU)
    decoder = StreamingDecoder(vae)
    fit, unseen = PreviewFit(), PreviewFit()
    for number, latents in enumerate(sample([prompt(n) for n in range(CLIPS + HELD_OUT)])):
        target = fit if number < CLIPS else unseen
        for index, piece in enumerate(decoder.decode(denormalise(vae, latents))):
            target.add(latents[:, index], to_uint8(piece))
    preview = fit.solve()
    arguments.out.write_text(to_json(preview))
    sys.stdout.write(
        f"R2 {fit.r_squared(preview):.3f} over {CLIPS} clips, {unseen.r_squared(preview):.3f} over {HELD_OUT} unseen; "
        f"written to {arguments.out}\n"
    )


def prompt(number: int) -> str:
    """Every colour, shape and direction comes up among the first four."""
    colour, direction = COLOURS[number % 4], DIRECTIONS[(number + number // 4) % 4]
    return f"a {colour} {SHAPES[number % 3]} moving {direction}"


@torch.no_grad()
def sample(prompts: list[str]) -> list[Tensor]:
    """Latents of one clip of each prompt, [12, 5, 8, 8], all in one batch; the seed is the prompt's number."""
    encoder = TextEncoder(FOLDER, "float32", CPU, max_tokens=16)
    transformer = load_transformer(FOLDER, "float32", CPU)
    specs = [VideoSpec(text, "", 64, 64, 25, 24, 20, 3.0, seed) for seed, text in enumerate(prompts)]
    rope = rope_tables(transformer, latent_shape(specs[0]))
    rows = [start_row(transformer, spec, encoder.encode(spec.prompt, ""), rope) for spec in specs]
    while not rows[0].done:
        rows = denoise_step(transformer, rows)
    return [row.latents for row in rows]


if __name__ == "__main__":
    main()
