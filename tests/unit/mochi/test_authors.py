"""From a prompt to frames as the model's authors make them, at small random sizes.

In fp32, against `tests/support/authors`, which is written from their code and computes in fp64: what is between the two
is fp32's rounding. diffusers makes another video of the same request: it encodes an empty prompt as the end token and
drops frames elsewhere.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from diffusers import MochiTransformer3DModel
from torch import Tensor

from deployments.messages import VideoSpec
from deployments.mochi.block import AttendedRow, Rope, run_block
from deployments.mochi.denoise import (
    Sample,
    TextConditioning,
    condition,
    denoise_step,
    final_norm,
    initial_noise,
    rope_tables,
    start_sample,
)
from deployments.mochi.streaming_decode import StreamingDecoder, denormalise
from deployments.mochi.weights.loading import load_text_encoder, load_vae
from deployments.prompts.prompt_encoder import TextEncoder
from deployments.sampler.denoiser import Denoiser
from deployments.sampler.state import SampleState, pack, unpack
from tests.support.authors.decoder import decode
from tests.support.authors.sampling import encode, for_the_vae, sample
from tests.support.authors.transformer import Text, Transformer
from tests.support.workers.fakes import SHAPES, spec

CPU = torch.device("cpu")
MAX_TOKENS = 16
LAYERS, HEADS = 3, 4
BOUND = 1e-5
EMPTY = spec("a red circle moving right", num_inference_steps=5, guidance_scale=6.0, width=64, height=48)
NEGATIVE = spec("a blue square", negative_prompt="red", num_inference_steps=4, guidance_scale=3.5, width=64, height=48)


@pytest.fixture(autouse=True)
def without_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def random_transformer(dtype: torch.dtype = torch.float32) -> Any:
    """Untrained, with Mochi 1's proportions; frequencies and norms that are neither zero nor one."""
    torch.manual_seed(0)
    model: Any = MochiTransformer3DModel(
        num_layers=LAYERS,
        num_attention_heads=HEADS,
        attention_head_dim=16,
        pooled_projection_dim=32,
        text_embed_dim=96,
        time_embed_dim=32,
    )
    torch.nn.init.normal_(model.pos_frequencies, std=0.5)
    for name, parameter in model.named_parameters():
        if "norm" in name and parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1, std=0.2)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def transformer() -> Any:
    return random_transformer()


@pytest.fixture(scope="module")
def text_encoder() -> TextEncoder:
    return TextEncoder(SHAPES, "float32", CPU, MAX_TOKENS, zero_empty=True)


@pytest.fixture(scope="module")
def authors_texts() -> dict[str, Text]:
    tokenizer, encoder = load_text_encoder(SHAPES, "float32", CPU)
    texts = {text for video in (EMPTY, NEGATIVE) for text in (video.prompt, video.negative_prompt)}
    with torch.no_grad():
        return {text: encode(tokenizer, encoder, text, MAX_TOKENS) for text in texts}


def authors_latents(transformer: Any, texts: dict[str, Text], video: VideoSpec) -> Tensor:
    return sample(
        Transformer(transformer.state_dict(), HEADS, LAYERS),
        initial_noise(video),
        video.num_inference_steps,
        video.guidance_scale,
        texts[video.prompt],
        texts[video.negative_prompt],
    )


def unmasked_block(
    block: Any,
    video: Tensor,
    text: Tensor,
    activated: Tensor,
    rows: Sequence[AttendedRow],
    mask: Tensor | None,
    rope: Rope,
) -> tuple[Tensor, Tensor]:
    """As on a GPU, where attention has no mask."""
    return run_block(block, video, text, activated, rows, None, rope)


BLOCKS = {"masked": run_block, "unmasked": unmasked_block}


def first_sample(transformer: Any, text_encoder: TextEncoder, video: VideoSpec) -> Sample:
    embeds = text_encoder.encode(video.prompt, video.negative_prompt)
    return start_sample(transformer, video, embeds, rope_tables(transformer, video.clip.latents))


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("video", [EMPTY, NEGATIVE], ids=["empty negative", "negative"])
def test_latents_are_the_authors(
    transformer: Any, text_encoder: TextEncoder, authors_texts: dict[str, Text], video: VideoSpec, block: str
) -> None:
    ours = first_sample(transformer, text_encoder, video)
    assert (ours.negative.length == 0) == (video.negative_prompt == "")
    while not ours.done:
        (ours,) = denoise_step(transformer, [ours], BLOCKS[block])
    assert relative_error(ours.latents, authors_latents(transformer, authors_texts, video)) <= BOUND


@pytest.mark.parametrize("block", BLOCKS)
def test_they_are_in_company_too(
    transformer: Any, text_encoder: TextEncoder, authors_texts: dict[str, Text], block: str
) -> None:
    samples = [first_sample(transformer, text_encoder, video) for video in (EMPTY, NEGATIVE)]
    while not any(each.done for each in samples):
        samples = denoise_step(transformer, samples, BLOCKS[block])
    (samples[0],) = denoise_step(transformer, samples[:1], BLOCKS[block])
    for ours, video in zip(samples, (EMPTY, NEGATIVE), strict=True):
        assert ours.done
        assert relative_error(ours.latents, authors_latents(transformer, authors_texts, video)) <= BOUND


def stepped(denoiser: Denoiser, sample: Sample) -> Sample:
    (new,) = denoiser.step([sample])
    assert isinstance(new, Sample)
    return new


def test_a_sample_without_a_negative_token_goes_on_from_its_checkpoint(
    transformer: Any, text_encoder: TextEncoder
) -> None:
    """Bit for bit, as one that was never stored."""
    embeds = text_encoder.encode(EMPTY.prompt, EMPTY.negative_prompt)
    denoiser = Denoiser(transformer, min_step_s=0)
    begun = SampleState(EMPTY, "revision", "float32", 0, initial_noise(EMPTY), embeds)
    whole = denoiser.prepare(begun, [])
    whole = stepped(denoiser, stepped(denoiser, whole))
    data = pack("key", SampleState(EMPTY, "revision", "float32", whole.step, whole.latents, embeds))
    resumed = denoiser.prepare(unpack("key", data, EMPTY, "revision", "float32"), [])
    assert resumed.negative.length == 0
    while not whole.done:
        whole, resumed = stepped(denoiser, whole), stepped(denoiser, resumed)
    assert torch.equal(resumed.latents, whole.latents)


def test_frames_are_the_authors(transformer: Any, text_encoder: TextEncoder, authors_texts: dict[str, Text]) -> None:
    """The whole way, with the included model's decoder."""
    ours = first_sample(transformer, text_encoder, EMPTY)
    while not ours.done:
        (ours,) = denoise_step(transformer, [ours])
    vae = load_vae(SHAPES, "float32", CPU)
    scaled = for_the_vae(
        authors_latents(transformer, authors_texts, EMPTY).float(), vae.config.latents_mean, vae.config.latents_std
    )
    wanted = decode(vae.decoder.state_dict(), scaled)
    frames = torch.cat(list(StreamingDecoder(vae, "each_upsample").decode(denormalise(vae, ours.latents))), dim=1)
    assert frames.shape == wanted.shape == (3, EMPTY.num_frames, EMPTY.height, EMPTY.width)
    assert relative_error(frames, wanted) <= BOUND


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_the_text_encoder_makes_of_no_token_is_never_read(
    dtype: torch.dtype, authors_texts: dict[str, Text]
) -> None:
    """The authors run it and never look; we do not run it, and give zeros."""
    transformer = random_transformer(dtype)
    authors = authors_texts[""]
    assert float(authors.features.abs().max()) > 0 and not bool(authors.mask.any())
    theirs, ours = (condition(transformer, features, authors.mask) for features in (authors.features, zeros(authors)))
    assert torch.equal(ours.pooled, theirs.pooled) and ours.length == theirs.length == 0
    samples = [one_sample(transformer, text) for text in (theirs, ours)]
    for block in BLOCKS.values():
        one, other = (denoise_step(transformer, [each], block)[0].latents for each in samples)
        assert torch.equal(one, other)
        assert bool(one.isfinite().all())


def zeros(text: Text) -> Tensor:
    return torch.zeros_like(text.features)


def one_sample(transformer: Any, text: TextConditioning) -> Sample:
    """With this text as its prompt and its negative prompt."""
    return Sample(
        latents=initial_noise(EMPTY),
        step=0,
        sigmas=torch.linspace(0, 1, 3),
        guidance_scale=6.0,
        prompt=text,
        negative=text,
        rope=rope_tables(transformer, EMPTY.clip.latents),
    )


def test_the_last_norm_is_bitwise_the_modules_in_fp32_and_nearer_to_it_in_bf16(transformer: Any) -> None:
    tokens, embedding = torch.randn(2, 30, 64) * 3, torch.randn(2, 64)
    wanted = transformer.norm_out(tokens, embedding)
    assert torch.equal(final_norm(transformer.norm_out, tokens, embedding), wanted)
    rounded, tokens, embedding = random_transformer(torch.bfloat16).norm_out, tokens.bfloat16(), embedding.bfloat16()
    exact = transformer.norm_out(tokens.float(), embedding.float())
    ours = final_norm(rounded, tokens, embedding)
    assert ours.dtype == torch.bfloat16
    assert relative_error(ours.float(), exact) < relative_error(rounded(tokens, embedding).float(), exact)
