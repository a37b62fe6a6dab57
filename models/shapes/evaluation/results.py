"""The file of an evaluation's results, and which weights each of them is of."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from deployments.messages import VideoSpec

FILE = "evaluation.json"
# What decides a clip, beside the settings.
WEIGHTS = (
    "tokenizer/tokenizer.json",
    "text_encoder/model.safetensors",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)

Json = dict[str, Any]


def read(path: Path) -> Json:
    """All results so far, by name."""
    found: Json = json.loads(path.read_text()) if path.exists() else {}
    return found


def keep(path: Path, name: str, found: Json) -> None:
    """Put results under their name into the file; what else is in it stays."""
    path.write_text(json.dumps(read(path) | {name: found}, indent=1) + "\n")


def provenance(model: Path, spec: VideoSpec) -> Json:
    """What the numbers hang on. spec: of which an experiment overrides what it varies."""
    settings = {key: value for key, value in spec.to_json().items() if key not in ("prompt", "seed", "exact")}
    return {**settings, "torch": torch.__version__, "threads": torch.get_num_threads(), "sha256": weight_sums(model)}


def weight_sums(model: Path) -> dict[str, str]:
    """The SHA-256 of each of the model's `WEIGHTS`."""
    return {name: hashlib.sha256((model / name).read_bytes()).hexdigest() for name in WEIGHTS}


def needed(path: Path, names: Sequence[str], model: Path) -> Json:
    """The results, of which those named are there and are of the model's weights as they are now.

    Raises:
        SystemExit: they are not; it says what to run.
    """
    found = read(path)
    missing = [name for name in names if name not in found]
    sums = weight_sums(model)
    stale = [name for name in names if name in found and found[name].get("made_with", {}).get("sha256") != sums]
    if not missing and not stale:
        return found
    wrong = [f"has no {', '.join(missing)}"] if missing else []
    wrong += [f"has {', '.join(stale)} of other weights than those in {model}"] if stale else []
    again = " ".join(name for name in names if name in missing or name in stale)
    raise SystemExit(
        f"{path} {' and '.join(wrong)}; first, with the same --model and --out: "
        f"python -m models.shapes.evaluate {again}"
    )
