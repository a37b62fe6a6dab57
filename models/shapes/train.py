"""Trains the included model from nothing: draws clips, trains autoencoder, text encoder, and the transformer on both.

python -m models.shapes.train

A stopped run goes on where it was when it is started again. Seeds are fixed.
"""

import argparse
import hashlib
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from models.shapes.training.autoencoder import AutoencoderPlan, train_autoencoder
from models.shapes.training.export import export, model_files, write_log, write_preview, write_sums
from models.shapes.training.latents import Bucket, encode_bucket, measure_latents
from models.shapes.training.optimise import claim, say
from models.shapes.training.text_encoder import TextPlan, train_text_encoder
from models.shapes.training.tokenizer import new_tokenizer
from models.shapes.training.transformer import TransformerPlan, train_transformer

FOLDER = Path(__file__).parent
WORK = Path("data/train-shapes")


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides what comes out."""

    autoencoder: AutoencoderPlan = field(default_factory=AutoencoderPlan)
    text_encoder: TextPlan = field(default_factory=TextPlan)
    transformer: TransformerPlan = field(default_factory=TransformerPlan)
    # The first is trained on first, alone.
    buckets: tuple[Bucket, ...] = (
        Bucket(4000, 64, 64, 37, batch=32),
        Bucket(5000, 96, 96, 37, batch=20),
        Bucket(500, 64, 112, 31, batch=24),
        Bucket(500, 112, 64, 31, batch=24),
        Bucket(800, 96, 96, 25, batch=24),
        Bucket(800, 64, 64, 25, batch=32),
    )
    measured: int = 64  # clips, over which the latents' mean and standard deviation are taken
    seed: int = 11

    def shortened(self, fraction: float) -> "Recipe":
        """The same with a part of the steps and clips, to see that it runs."""
        long = self.transformer
        return replace(
            self,
            autoencoder=replace(self.autoencoder, steps=_part(self.autoencoder.steps, fraction)),
            text_encoder=replace(self.text_encoder, steps=_part(self.text_encoder.steps, fraction)),
            transformer=replace(long, steps=_part(long.steps, fraction), first_steps=_part(long.first_steps, fraction)),
            buckets=tuple(replace(bucket, clips=_part(bucket.clips, fraction)) for bucket in self.buckets),
        )


def _part(count: int, fraction: float) -> int:
    return max(4, int(count * fraction))


def main(argv: Sequence[str] | None = None) -> None:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not 0 < arguments.fraction <= 1:
        parser.error("--fraction is a part: above 0 and at most 1")
    if arguments.fraction < 1 and arguments.out is None:
        parser.error("--fraction needs --out: a short run must not replace the included model")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here; leave it out, or install a CUDA build of torch")
    # diffusers asks for fp32 where it turns positions into angles, and gets it; on a CPU torch warns of that each time.
    warnings.filterwarnings("ignore", "In CPU autocast")
    recipe = Recipe() if arguments.fraction == 1 else Recipe().shortened(arguments.fraction)
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        train(recipe, arguments.work, arguments.out or FOLDER, device)
    except KeyboardInterrupt:
        sys.exit(f"stopped; the same command goes on from {arguments.work}, at most some minutes back")


def train(recipe: Recipe, work: Path, out: Path, device: torch.device) -> None:
    """All stages, one after the other. `work` keeps what a stopped run needs; `out` gets the model's folder."""
    claim(work, f"{recipe} of scenes {_digest()}")
    out.mkdir(parents=True, exist_ok=True)
    vae, autoencoder = train_autoencoder(recipe.autoencoder, work, device)
    measure_latents(vae, recipe.seed, recipe.measured, device)
    clips = [encode_bucket(vae, bucket, recipe.seed, work, device) for bucket in recipe.buckets]
    encoding = {
        "plan": f"{recipe.buckets}, seed {recipe.seed}",
        "seconds": round(sum(each.seconds for each in clips), 1),
    }
    tokenizer = new_tokenizer()
    encoder, text_encoder = train_text_encoder(recipe.text_encoder, tokenizer, work, device)
    model, transformer = train_transformer(recipe.transformer, clips, encoder, tokenizer, work, device)
    export(out, model, vae)
    explained = write_preview(out, vae, clips[0])
    stages = {"autoencoder": autoencoder.log(), "latents": encoding, "text_encoder": text_encoder.log()}
    write_log(out, device, stages | {"transformer": transformer.log()})
    write_sums(out, model_files(out))
    say(f"the model is in {out}; the preview map explains {explained:.2f} of the variance")


def _digest() -> str:
    """Of the code that draws and names the scenes: clips of another version are not to be mixed with these."""
    sources = sorted((FOLDER / "scenes").glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="A stopped run goes on where it was. How long each part took is in training.json of the model's folder.",
    )
    parser.add_argument(
        "--work", type=Path, default=WORK, help=f"folder for a stopped run to go on from ({WORK}), 1 GB"
    )
    parser.add_argument("--out", type=Path, help="folder for the model; default: the included one")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    parser.add_argument("--fraction", type=float, default=1.0, help="part of the steps and clips, to see that it runs")
    return parser


if __name__ == "__main__":
    main()
