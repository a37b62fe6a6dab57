"""ESM2 models of the published shapes with weights from a seed, as folders that `Esm2` and transformers load.

Time and memory do not depend on what the weights are. They are drawn as transformers draws those of a new model; the
larger ones of the tests' models, made so that errors show, would have attention look at single tokens.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import EsmConfig, EsmForMaskedLM

from deployments.proteins.alphabet import MASK, VOCABULARY


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a model."""

    layers: int
    hidden: int  # size of a state
    heads: int


SIZES = {
    "8M": Shape(6, 320, 20),
    "35M": Shape(12, 480, 20),
    "150M": Shape(30, 640, 20),
    "650M": Shape(33, 1280, 20),
}
"""By how many weights they have."""


def write_model(folder: Path, shape: Shape, seed: int = 0) -> Path:
    """Write a model in float32, with its vocabulary; the same for the same seed. Returns the folder."""
    config = EsmConfig(
        vocab_size=len(VOCABULARY),
        mask_token_id=MASK,
        pad_token_id=VOCABULARY.index("<pad>"),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden,
        max_position_embeddings=1026,
        position_embedding_type="rotary",
        emb_layer_norm_before=False,
        token_dropout=True,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(seed)
    EsmForMaskedLM(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    return folder
