"""The authors' way from a prompt to latents (pipelines.py: conditioning, schedule, Euler steps with guidance)."""

from typing import Any

import torch
from torch import Tensor

from tests.support.authors.transformer import Text, Transformer

THRESHOLD_NOISE = 0.025


def encode(tokenizer: Any, encoder: Any, text: str, max_tokens: int) -> Text:
    """The text encoder's features; an empty prompt has token 0 everywhere and none of it counts."""
    tokens = tokenizer(text, padding="max_length", truncation=True, max_length=max_tokens, return_tensors="pt")
    ids, mask = tokens.input_ids, tokens.attention_mask.bool()
    if text == "":
        ids, mask = torch.zeros_like(ids), torch.zeros_like(mask)
    return Text(encoder(ids, attention_mask=mask).last_hidden_state[0], mask[0])


def schedule(num_steps: int) -> list[float]:
    """Noise from 1 to 0, num_steps + 1 values: half of the steps go evenly down to 1 - 0.025, the others along the
    parabola that goes on with the same slope and ends at 0."""
    linear = num_steps // 2
    slope, quadratic_steps = THRESHOLD_NOISE / linear, num_steps - linear
    bend = (1 - THRESHOLD_NOISE - slope * quadratic_steps) / quadratic_steps**2
    clean = [i * slope for i in range(linear)]
    clean += [THRESHOLD_NOISE + slope * i + bend * i**2 for i in range(quadratic_steps + 1)]
    return [1 - value for value in clean]


def sample(
    transformer: Transformer, noise: Tensor, num_steps: int, guidance_scale: float, prompt: Text, negative: Text
) -> Tensor:
    """Final latents [12, T, h, w], as the transformer scales them."""
    sigmas = schedule(num_steps)
    latents = noise.double()
    for now, then in zip(sigmas, sigmas[1:], strict=False):
        unguided = transformer.velocity(latents, now, negative)
        guided = transformer.velocity(latents, now, prompt)
        latents = latents + (now - then) * (unguided + guidance_scale * (guided - unguided))
    return latents


def for_the_vae(latents: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """From the transformer's scale to the VAE's."""
    return latents * torch.tensor(std).view(-1, 1, 1, 1) + torch.tensor(mean).view(-1, 1, 1, 1)
