"""Loading the parts of a Mochi model, and an attention processor that never waits for the device."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    """The diffusion transformer, frozen, on `device`, with host-length attention in every block."""
    from diffusers import MochiTransformer3DModel

    transformer = MochiTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=DTYPES[dtype])
    use_host_lengths(transformer)
    return _frozen(transformer, device)


def load_vae(folder: Path, dtype: DtypeName, device: torch.device) -> "AutoencoderKLMochi":
    """The video autoencoder without its encoder half, frozen, on `device`."""
    from diffusers import AutoencoderKLMochi

    vae = AutoencoderKLMochi.from_pretrained(folder / "vae", torch_dtype=DTYPES[dtype])
    vae.encoder = None
    return _frozen(vae, device)


def check_scheduler(folder: Path) -> None:
    """Refuse a model that wants another sampler than the one in `deployments.denoise`.

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


def use_host_lengths(transformer: "MochiTransformer3DModel") -> None:
    """Replace the attention processor of each block by `HostLengthAttention`."""
    processor = HostLengthAttention()
    for block in transformer.transformer_blocks:
        block.attn1.processor = processor


class HostLengthAttention:
    """Mochi's joint attention over [video tokens, the row's own text tokens], prompt lengths given by the host.

    diffusers' `MochiAttnProcessor2_0` finds the valid text tokens with `nonzero(mask)`: one device sync for each
    row and layer. Prompts are padded on the right, so the length says the same; the result is bitwise equal.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Sequence[int],
        image_rotary_emb: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            attn: diffusers' `MochiAttention`.
            hidden_states: [B, N, D] video tokens. encoder_hidden_states: [B, L, D'] text tokens.
            attention_mask: the B prompt lengths, ints on the host; under diffusers' name because its block
                hands the mask on by that name.
            image_rotary_emb: cos and sin, each [N, heads, head_dim / 2] fp32.

        Returns:
            [B, N, D] and [B, L, D'].
        """
        query, key, value = _video_qkv(attn, hidden_states, image_rotary_emb)
        text_query, text_key, text_value = _text_qkv(attn, encoder_hidden_states)
        query, key, value = (
            torch.cat(pair, dim=1).transpose(1, 2)
            for pair in ((query, text_query), (key, text_key), (value, text_value))
        )
        video_length, text_length = hidden_states.shape[1], encoder_hidden_states.shape[1]
        out = torch.cat(
            [
                _attend_row(query[i : i + 1], key[i : i + 1], value[i : i + 1], video_length + length)
                for i, length in enumerate(attention_mask)
            ]
        )
        video, text = out.transpose(1, 2).flatten(2, 3).split_with_sizes((video_length, text_length), dim=1)
        video = attn.to_out[1](attn.to_out[0](video))
        return video, attn.to_add_out(text) if hasattr(attn, "to_add_out") else text


def _attend_row(query: Tensor, key: Tensor, value: Tensor, length: int) -> Tensor:
    """Attention among the first `length` tokens of one row, zero for the padding behind. [1, heads, S, d]."""
    out = F.scaled_dot_product_attention(query[:, :, :length], key[:, :, :length], value[:, :, :length])
    return F.pad(out, (0, 0, 0, query.shape[2] - length))


def _video_qkv(attn: Any, tokens: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (_heads(attn, project, tokens) for project in (attn.to_q, attn.to_k, attn.to_v))
    return _rotate(attn.norm_q(query), *rope), _rotate(attn.norm_k(key), *rope), value


def _text_qkv(attn: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
    query, key, value = (_heads(attn, project, tokens) for project in projections)
    return attn.norm_added_q(query), attn.norm_added_k(key), value


def _heads(attn: Any, project: nn.Module, tokens: Tensor) -> Tensor:
    heads: Tensor = project(tokens).unflatten(2, (attn.heads, -1))
    return heads


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding on even/odd pairs, in fp32. x: [B, N, heads, d]."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    real, imaginary = even * cos - odd * sin, even * sin + odd * cos
    return torch.stack([real.to(x.dtype), imaginary.to(x.dtype)], dim=-1).flatten(-2)
