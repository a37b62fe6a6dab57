"""The diffusion transformer, and the text encoder on with it, trained by flow matching (Lipman et al., 2022).

x_s = s * video + (1 - s) * noise, and the transformer learns the velocity video - noise; s is Mochi's sigma, 0 for
noise and 1 for video. A share of the prompts is left out, which is what guidance needs (Ho and Salimans, 2022).
"""

import copy
import shutil
import sysconfig
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import MochiTransformer3DModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from models.shapes.training.attention import MaskedAttention
from models.shapes.training.latents import LatentClips
from models.shapes.training.optimise import Stage, average, group, python_random, say, set_rate, update
from models.shapes.training.positions import frequencies
from models.shapes.training.text_encoder import TEXT_WIDTH, Prompts
from models.shapes.training.tokenizer import MAX_TOKENS

DROPPED_PROMPTS = 0.12
# Mochi's schedule spends half its steps at sigma below 0.025, so some of the training does, too.
NEAR_NOISE_SHARE = 0.2
NEAR_NOISE = 0.05
SIGMA_MEAN = -0.6
SIGMA_DEVIATION = 1.2
# Near noise most of the loss cannot be learned: where in the picture a figure is, nobody can tell. Such a share of the
# loss, relative to what is left near video and falling with sigma, is weighed away: it would drown what shape is
# learned from (Karras et al., 2024, learn these weights).
CHANCE = 4.0
CHANCE_REACH = 0.065
# Of the constant part of a token: at pure noise, all that its place can be told by. Mochi's queries have no bias.
PATCH_BIAS = 0.5
# The text encoder can read already: it follows slowly.
TEXT_RATE = 0.1


@dataclass(frozen=True, slots=True)
class TransformerPlan:
    """How the transformer is trained, and the text encoder with it."""

    steps: int = 12500  # in all
    first_steps: int = 2200  # of these, on the first bucket alone, which is the cheapest
    shares: tuple[float, ...] = (0.04, 0.76, 0.05, 0.05, 0.06, 0.04)  # of the buckets in the other steps
    lr: float = 1.5e-3
    decay: float = 0.999  # of the average of the weights
    seed: int = 5
    compiled: bool = True  # the blocks, where that is possible: a third more steps in the same time, on two CPU cores


class TextToVideo(nn.Module):
    """The two networks that are trained together."""

    def __init__(self, transformer: MochiTransformer3DModel, text_encoder: T5EncoderModel) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder

    def forward(self, noisy: Tensor, sigmas: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """The velocity, [B, 12, T, h, w]. noisy: the same shape. sigmas: [B]. ids, mask: [B, L]."""
        text = self.text_encoder(ids, attention_mask=mask)[0]
        velocity: Tensor = self.transformer(noisy, text, sigmas * 1000, mask, return_dict=False)[0]
        return velocity


def new_transformer() -> MochiTransformer3DModel:
    """Random weights but for the positions; its first velocity is zero."""
    transformer = MochiTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        num_layers=6,
        pooled_projection_dim=TEXT_WIDTH,
        text_embed_dim=TEXT_WIDTH,
        time_embed_dim=64,
        max_sequence_length=MAX_TOKENS,
    )
    with torch.no_grad():
        transformer.pos_frequencies.copy_(frequencies())
        transformer.patch_embed.proj.bias.normal_().mul_(PATCH_BIAS)
        transformer.proj_out.weight.zero_()
        transformer.proj_out.bias.zero_()
    transformer.pos_frequencies.requires_grad_(False)
    return transformer


def train_transformer(
    plan: TransformerPlan,
    buckets: Sequence[LatentClips],
    text_encoder: T5EncoderModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    device: torch.device,
) -> tuple[TextToVideo, Stage]:
    """Train, or go on where a stopped run was. Returns the averaged weights, and the stage for its log."""
    torch.manual_seed(plan.seed)
    model = TextToVideo(new_transformer(), text_encoder).to(device)
    mean = copy.deepcopy(model).requires_grad_(False)
    _prepare(model.transformer, plan.compiled and _can_compile(device))
    optimiser = torch.optim.AdamW(_groups(model, plan.lr), betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(plan.seed)
    stage = Stage("transformer", folder, plan, generator, model=model, mean=mean, optimiser=optimiser)
    prompts = Prompts(tokenizer)
    for step in stage:
        set_rate(optimiser, step, plan.steps)
        bucket = buckets[_choose(plan, step, generator)]
        loss = _loss(model, bucket, prompts, generator, device)
        update(optimiser, loss, model.parameters())
        average(mean, model, step, plan.decay)
        stage.note(loss)
    return mean.eval(), stage


def _groups(model: TextToVideo, lr: float) -> list[dict[str, object]]:
    learned = [parameter for parameter in model.transformer.parameters() if parameter.requires_grad]
    return [group(learned, lr, 0.01), group(model.text_encoder.parameters(), lr * TEXT_RATE, 0.01)]


def _can_compile(device: torch.device) -> bool:
    """Whether torch's compiler will find what it needs: Python's headers and a C++ compiler; on a GPU, a C compiler."""
    compilers = ("cc", "gcc", "clang") if device.type == "cuda" else ("g++", "clang++")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    possible = any(map(shutil.which, compilers)) and headers.exists()
    if not possible:
        say(f"not compiled, so slower: that needs {' or '.join(compilers)} and {headers}")
    return possible


def _prepare(transformer: MochiTransformer3DModel, compiled: bool) -> None:
    """Attention for whole batches; compiled, one code for each size, and for the last block, which differs."""
    torch._dynamo.config.recompile_limit = 64
    for block in transformer.transformer_blocks:
        block.attn1.processor = MaskedAttention()
        if compiled:
            block.compile(dynamic=False)


def _choose(plan: TransformerPlan, step: int, generator: torch.Generator) -> int:
    if step < plan.first_steps:
        return 0
    return int(torch.multinomial(torch.tensor(plan.shares), 1, generator=generator))


def _loss(
    model: TextToVideo, clips: LatentClips, prompts: Prompts, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Mean squared error of the velocity over one random batch, weighed by sigma."""
    count = clips.bucket.batch
    chosen = torch.randint(len(clips.prompts), (count,), generator=generator)
    video = clips.latents[chosen].float()
    noise = torch.randn(video.shape, generator=generator)
    sigmas = _sigmas(count, generator)
    weight = sigmas.view(-1, 1, 1, 1, 1)
    ids, mask = prompts.tokens(_say(clips, chosen.tolist(), generator))
    noisy = weight * video + (1 - weight) * noise
    with _low_precision(device):
        predicted: Tensor = model(noisy.to(device), sigmas.to(device), ids.to(device), mask.to(device))
    errors = (predicted.float() - (video - noise).to(device)).pow(2).mean((1, 2, 3, 4))
    return (errors * _weights(sigmas).to(device)).mean()


def _say(clips: LatentClips, chosen: list[int], generator: torch.Generator) -> list[str]:
    rng = python_random(generator)
    return ["" if rng.random() < DROPPED_PROMPTS else rng.choice(clips.prompts[index]) for index in chosen]


def _sigmas(count: int, generator: torch.Generator) -> Tensor:
    """[count] in 0 to 1: logit-normal (Esser et al., 2024), with some more close to noise."""
    drawn = torch.sigmoid(torch.randn(count, generator=generator) * SIGMA_DEVIATION + SIGMA_MEAN)
    near = torch.rand(count, generator=generator) < NEAR_NOISE_SHARE
    return torch.where(near, torch.rand(count, generator=generator) * NEAR_NOISE, drawn)


def _weights(sigmas: Tensor) -> Tensor:
    """[count]: from 1 / (1 + CHANCE) at noise to 1."""
    return 1 / (1 + CHANCE * torch.exp(-sigmas / CHANCE_REACH))


def _low_precision(device: torch.device) -> AbstractContextManager[None]:
    """bfloat16 for the large products, where the processor has instructions for it."""
    fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)
