"""The text encoder, T5's class: learns to read before there is a video to say anything about.

From the mean of its tokens, plain linear maps tell what the prompt says of every attribute of the scene. So the
transformer starts from text that already separates left from right, as Mochi's starts from a T5 that has read much.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, T5Config, T5EncoderModel

from models.shapes.scenes.prompt import write_prompt
from models.shapes.scenes.scene import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    SHAPES,
    SIZES,
    SPEEDS,
    Figure,
    Scene,
    draw_scene,
)
from models.shapes.training.optimise import Stage, group, python_random, set_rate, update

TEXT_WIDTH = 96
# The longest prompt of the grammar has 36 tokens.
TRAINED_TOKENS = 40
MAX_FIGURES = 2
# What nothing is said about.
UNSAID = -100
_TABLES = tuple(map(tuple, (COLOURS, SHAPES, DIRECTIONS, SIZES, SPEEDS)))
# How many values each attribute has: the background, how many figures, and those of each figure.
CHOICES = [len(BACKGROUNDS), MAX_FIGURES, *map(len, _TABLES * MAX_FIGURES)]


@dataclass(frozen=True, slots=True)
class TextPlan:
    """How the text encoder is trained."""

    steps: int = 1200
    batch: int = 128  # prompts in each step
    lr: float = 2e-3
    seed: int = 3


class Reader(nn.Module):
    """The text encoder, and a linear map from the mean of its tokens to every attribute."""

    def __init__(self, encoder: T5EncoderModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.attributes = nn.Linear(TEXT_WIDTH, sum(CHOICES))

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Logits of each attribute, [B, choices]. ids int64 and mask bool: [B, L]."""
        weights = mask.unsqueeze(-1) / mask.sum(1).view(-1, 1, 1)
        mean = (self.encoder(ids, attention_mask=mask)[0] * weights).sum(1)
        return torch.split(self.attributes(mean), CHOICES, dim=1)


class Prompts:
    """Prompts to token ids, each text once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """ids int64 and mask bool, each [len(texts), TRAINED_TOKENS]."""
        rows = [self._row(text) for text in texts]
        return torch.stack([ids for ids, _ in rows]), torch.stack([mask for _, mask in rows])

    def _row(self, text: str) -> tuple[Tensor, Tensor]:
        if text not in self._known:
            row = self._tokenizer(
                text, padding="max_length", max_length=TRAINED_TOKENS, truncation=True, return_tensors="pt"
            )
            self._known[text] = row.input_ids[0], row.attention_mask[0].bool()
        return self._known[text]


def new_text_encoder(vocabulary: int) -> T5EncoderModel:
    """Random weights."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=TEXT_WIDTH,
            d_kv=24,
            d_ff=192,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )


def train_text_encoder(
    plan: TextPlan, tokenizer: PreTrainedTokenizerBase, folder: Path, device: torch.device
) -> tuple[T5EncoderModel, Stage]:
    """Train, or go on where a stopped run was. Returns the encoder, and the stage for its log."""
    torch.manual_seed(plan.seed)
    reader = Reader(new_text_encoder(len(tokenizer))).to(device)
    optimiser = torch.optim.AdamW([group(reader.parameters(), plan.lr, 0.01)], betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(plan.seed)
    stage = Stage("text_encoder", folder, plan, generator, reader=reader, optimiser=optimiser)
    for step in stage:
        set_rate(optimiser, step, plan.steps)
        scenes, texts = _draw(plan.batch, generator)
        ids, mask = Prompts(tokenizer).tokens(texts)
        loss = reading_loss(reader(ids.to(device), mask.to(device)), scenes)
        update(optimiser, loss, reader.parameters())
        stage.note(loss)
    return reader.encoder, stage


def reading_loss(logits: Sequence[Tensor], scenes: Sequence[Scene]) -> Tensor:
    """Cross entropy, the mean of all attributes and prompts; 0 for what is not said."""
    said = torch.tensor([_said(scene) for scene in scenes], device=logits[0].device)
    pairs = zip(logits, said.unbind(1), strict=True)
    losses = [F.cross_entropy(each, right, ignore_index=UNSAID, reduction="sum") for each, right in pairs]
    return torch.stack(losses).mean() / len(scenes)


def _draw(count: int, generator: torch.Generator) -> tuple[list[Scene], list[str]]:
    rng = python_random(generator)
    scenes = [draw_scene(rng, "train") for _ in range(count)]
    return scenes, [write_prompt(rng, scene) for scene in scenes]


def _said(scene: Scene) -> list[int]:
    """The value of each attribute, in the order of `CHOICES`; UNSAID for a figure that is not there."""
    figures = [value for figure in scene.figures for value in _values(figure)]
    lacking = (MAX_FIGURES - len(scene.figures)) * len(_TABLES)
    return [list(BACKGROUNDS).index(scene.background), len(scene.figures) - 1, *figures, *[UNSAID] * lacking]


def _values(figure: Figure) -> list[int]:
    names = (figure.colour, figure.shape, figure.direction, figure.size, figure.speed)
    values = [table.index(name) for table, name in zip(_TABLES, names, strict=True)]
    # A still figure has no speed.
    return [*values[:-1], UNSAID] if figure.direction == "still" else values
