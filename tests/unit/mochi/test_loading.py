"""Loading, and the attention processor against diffusers' own."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MochiTransformer3DModel
from diffusers.models.attention_processor import MochiAttention, MochiAttnProcessor2_0

from deployments.errors import PermanentError
from deployments.mochi.loading import (
    HostLengthAttention,
    check_scheduler,
    load_text_encoder,
    load_transformer,
    load_vae,
)
from tests.support.worker_fakes import SHAPES

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last_block", [False, True])
@torch.no_grad()
def test_attention_is_bitwise_equal_to_diffusers(dtype: torch.dtype, last_block: bool) -> None:
    torch.manual_seed(0)
    attn: Any = MochiAttention(
        query_dim=64,
        added_kv_proj_dim=32,
        processor=MochiAttnProcessor2_0(),
        heads=4,
        dim_head=16,
        added_proj_bias=False,
        out_dim=64,
        out_context_dim=32,
        context_pre_only=last_block,
    ).to(dtype)
    video, text = torch.randn(4, 30, 64, dtype=dtype), torch.randn(4, 16, 32, dtype=dtype)
    angles = torch.randn(30, 4, 8)
    lengths = [1, 6, 0, 16]
    mask = torch.arange(16)[None] < torch.tensor(lengths)[:, None]
    rope = (angles.cos(), angles.sin())
    stock = attn(video, encoder_hidden_states=text, attention_mask=mask, image_rotary_emb=rope)
    attn.processor = HostLengthAttention()
    ours = attn(video, encoder_hidden_states=text, attention_mask=lengths, image_rotary_emb=rope)
    assert torch.equal(ours[0], stock[0])
    assert torch.equal(ours[1], stock[1])


@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")
@torch.no_grad()
def test_the_whole_transformer_is_bitwise_equal() -> None:
    stock = MochiTransformer3DModel.from_pretrained(SHAPES / "transformer", torch_dtype=torch.float32)
    ours = load_transformer(SHAPES, "float32", CPU)
    lengths = [3, 9]
    width = stock.config.text_embed_dim
    latents, text = torch.randn(2, 12, 3, 8, 8), torch.randn(2, 16, width)
    mask = torch.arange(16)[None] < torch.tensor(lengths)[:, None]
    timesteps = torch.tensor([37.0, 912.0])
    wanted = stock(latents, text, timesteps, mask, return_dict=False)[0]
    _, caption = ours.time_embed(timesteps, text, mask, hidden_dtype=torch.float32)
    assert caption.shape == (2, 16, width)
    ours.time_embed.pooler.register_forward_pre_hook(lambda module, args: (args[0], mask))
    assert torch.equal(ours(latents, text, timesteps, lengths, return_dict=False)[0], wanted)


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_parts_are_frozen_and_in_the_dtype(name: Any, dtype: torch.dtype) -> None:
    _, encoder = load_text_encoder(SHAPES, name, CPU)
    vae = load_vae(SHAPES, name, CPU)
    assert vae.encoder is None
    for part in (encoder, load_transformer(SHAPES, name, CPU), vae):
        assert not part.training
        assert {p.dtype for p in part.parameters()} == {dtype}
        assert not any(p.requires_grad for p in part.parameters())


def test_scheduler_of_the_included_model_is_supported() -> None:
    check_scheduler(SHAPES)


def test_other_schedulers_are_refused(tmp_path: Path) -> None:
    shutil.copytree(SHAPES / "scheduler", tmp_path / "scheduler")
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shift": 3.0}))
    with pytest.raises(PermanentError, match=r"shift is 3\.0; only 1\.0") as caught:
        check_scheduler(tmp_path)
    assert caught.value.code == "model_unsupported"
