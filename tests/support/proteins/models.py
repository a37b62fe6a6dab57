"""Small ESM2 models of the true architecture, with weights drawn at random: none can be downloaded in a test."""

from pathlib import Path
from typing import Any

import torch
from transformers import EsmConfig, EsmForMaskedLM, EsmModel, EsmTokenizer

VOCABULARY = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
"""As facebook/esm2_t6_8M_UR50D has it in its vocab.txt; those of the other sizes are the same."""


def make_esm(
    folder: Path,
    *,
    layers: int = 3,
    hidden: int = 32,
    heads: int = 4,
    token_dropout: bool = True,
    lm_head: bool = True,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write a model and the vocabulary of its tokenizer into a folder, the same for the same arguments.

    Args:
        hidden: divisible by twice the heads.
        lm_head: written as EsmForMaskedLM, else as EsmModel.
        config: other fields of EsmConfig.

    Returns:
        The folder.
    """
    fields = {
        "vocab_size": 33,
        "mask_token_id": 32,
        "pad_token_id": 1,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": 1026,
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "token_dropout": token_dropout,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        **config,
    }
    made = EsmConfig(**fields)
    model = EsmForMaskedLM(made) if lm_head else EsmModel(made, add_pooling_layer=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Large enough that heads differ and attend to some tokens more than to others.
            drawn = torch.randn(weight.shape, generator=generator) * 0.3
            weight.copy_(1 + drawn if "norm.weight" in name.lower() else drawn)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    EsmTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def load_transformers(folder: Path, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
    """The same folder by transformers alone: EsmForMaskedLM."""
    return EsmForMaskedLM.from_pretrained(folder, attn_implementation=attention, dtype=dtype).eval()
