"""Loading the parts of a Mochi model in the layout of diffusers."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from deployments.errors import PermanentError

if TYPE_CHECKING:
    from diffusers import AutoencoderKLMochi, MochiTransformer3DModel
    from transformers import PreTrainedTokenizerBase, T5EncoderModel

DtypeName = Literal["float32", "bfloat16"]
DTYPES: dict[DtypeName, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_SCHEDULER = {
    "invert_sigmas": True,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": None,
    "stochastic_sampling": False,
    "use_beta_sigmas": False,
    "use_dynamic_shifting": False,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}


def load_text_encoder(
    folder: Path, dtype: DtypeName, device: torch.device
) -> tuple["PreTrainedTokenizerBase", "T5EncoderModel"]:
    """The tokenizer and the T5 encoder, frozen, on `device`."""
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    encoder = T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=DTYPES[dtype])
    return tokenizer, _frozen(encoder, device)


def load_transformer(folder: Path, dtype: DtypeName, device: torch.device) -> "MochiTransformer3DModel":
    """The diffusion transformer, frozen, on `device`."""
    from diffusers import MochiTransformer3DModel

    transformer = MochiTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=DTYPES[dtype])
    return _frozen(transformer, device)


def load_vae(folder: Path, dtype: DtypeName, device: torch.device) -> "AutoencoderKLMochi":
    """The video autoencoder without its encoder half, frozen, on `device`."""
    from diffusers import AutoencoderKLMochi

    vae = AutoencoderKLMochi.from_pretrained(folder / "vae", torch_dtype=DTYPES[dtype])
    vae.encoder = None
    return _frozen(vae, device)


def check_scheduler(folder: Path) -> None:
    """Refuse a model that wants another sampler than the one in `deployments.mochi.denoise`.

    Raises:
        PermanentError: `model_unsupported`; names the setting.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    for key, wanted in _SCHEDULER.items():
        if config.get(key, wanted) != wanted:
            raise PermanentError(
                "model_unsupported", f"{path}: {key} is {config[key]!r}; only {wanted!r}, Mochi's own, is supported"
            )


def _frozen(module: Any, device: torch.device) -> Any:
    return module.to(device).eval().requires_grad_(False)
