"""Streaming decoding against the VAE's own decoding of the whole."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLMochi
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d
from diffusers.video_processor import VideoProcessor

from deployments.mochi.loading import load_vae
from deployments.mochi.streaming_decode import StreamingConv3d, StreamingDecoder, denormalise, to_uint8
from deployments.settings import FrameDrop
from tests.support.authors.decoder import decode as decode_as_authors
from tests.support.authors.decoder import frames_as_bytes
from tests.support.workers.fakes import SHAPES

CPU = torch.device("cpu")
DROPS: tuple[FrameDrop, ...] = ("end", "each_upsample")


def random_vae() -> Any:
    """Untrained, of uneven widths and depths; weights scaled so that the signal neither dies nor explodes."""
    torch.manual_seed(0)
    vae: Any = AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 64, 96),
        layers_per_block=(1, 1, 2, 2, 1),
    ).eval()
    for parameter in vae.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=(1.2 / parameter[0].numel()) ** 0.5)
    return vae


@pytest.mark.parametrize("shape", [(12, 1, 3, 5), (12, 2, 7, 3), (12, 5, 4, 6)])
@torch.no_grad()
def test_random_vae_streams_exactly(shape: tuple[int, ...]) -> None:
    vae = random_vae()
    latents = torch.randn(shape)
    whole = vae.decode(latents[None]).sample[0]
    streamed = torch.cat(list(StreamingDecoder(vae).decode(latents)), dim=1)
    assert streamed.shape == whole.shape == (3, 6 * shape[1] - 5, 8 * shape[2], 8 * shape[3])
    assert float(whole.std()) > 0.05
    torch.testing.assert_close(streamed, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(12, 1, 3, 5), (12, 2, 7, 3), (12, 5, 4, 6)])
@torch.no_grad()
def test_frames_dropped_at_each_upsampling_are_the_authors(shape: tuple[int, ...]) -> None:
    vae = random_vae()
    latents = torch.randn(shape)
    wanted = decode_as_authors(vae.decoder.state_dict(), latents)
    decoder = StreamingDecoder(vae, "each_upsample")
    for _ in range(2):
        pieces = list(decoder.decode(latents))
        assert [piece.shape[1] for piece in pieces] == [1] + [6] * (shape[1] - 1)
        streamed = torch.cat(pieces, dim=1)
        assert streamed.shape == wanted.shape == (3, 6 * shape[1] - 5, 8 * shape[2], 8 * shape[3])
        assert float((streamed - wanted).norm() / wanted.norm()) <= 1e-5


@torch.no_grad()
def test_where_frames_are_dropped_shows_at_the_beginning_alone() -> None:
    latents = torch.randn(12, 5, 8, 8)
    ends, authors = (
        torch.cat(list(StreamingDecoder(load_vae(SHAPES, "float32", CPU), drop).decode(latents)), dim=1)
        for drop in DROPS
    )
    change = (authors - ends).abs().amax((0, 2, 3))
    assert bool((change[:4] > 0.05).all())
    assert float(change[12:].max()) <= 1e-4


@torch.no_grad()
def test_a_decoding_left_halfway_begins_anew_with_either_drop() -> None:
    decoder = StreamingDecoder(random_vae(), "each_upsample")
    latents = torch.randn(12, 3, 4, 4)
    fresh = torch.cat(list(decoder.decode(latents)), dim=1)
    abandoned = decoder.decode(torch.randn(12, 3, 8, 8))
    next(abandoned)
    abandoned.close()  # type: ignore[attr-defined]
    assert torch.equal(torch.cat(list(decoder.decode(latents)), dim=1), fresh)


@torch.no_grad()
def test_included_vae_streams_exactly_and_twice() -> None:
    latents = torch.randn(12, 4, 8, 8)
    whole = load_vae(SHAPES, "float32", CPU).decode(latents[None]).sample[0]
    decoder = StreamingDecoder(load_vae(SHAPES, "float32", CPU))
    pieces = list(decoder.decode(latents))
    assert [piece.shape[1] for piece in pieces] == [1, 6, 6, 6]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-4, rtol=1e-4)
    assert torch.equal(torch.cat(list(decoder.decode(latents)), dim=1), torch.cat(pieces, dim=1))


@torch.no_grad()
def test_a_decoding_left_halfway_leaves_nothing_behind() -> None:
    decoder = StreamingDecoder(load_vae(SHAPES, "float32", CPU))
    latents = torch.randn(12, 3, 4, 4)
    fresh = torch.cat(list(decoder.decode(latents)), dim=1)
    abandoned = decoder.decode(torch.randn(12, 3, 8, 8))
    next(abandoned)
    abandoned.close()  # type: ignore[attr-defined]
    assert torch.equal(torch.cat(list(decoder.decode(latents)), dim=1), fresh)


@torch.no_grad()
def test_a_vae_that_drops_no_frames_keeps_all() -> None:
    vae = load_vae(SHAPES, "float32", CPU)
    vae.drop_last_temporal_frames = False
    assert [p.shape[1] for p in StreamingDecoder(vae).decode(torch.randn(12, 2, 4, 4))] == [6, 6]


def test_other_instances_are_untouched() -> None:
    before, after = load_vae(SHAPES, "float32", CPU), load_vae(SHAPES, "float32", CPU)
    StreamingDecoder(after)
    assert any(isinstance(module, CogVideoXCausalConv3d) for module in before.decoder.modules())
    assert not any(isinstance(module, CogVideoXCausalConv3d) for module in after.decoder.modules())


def test_other_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="only 'replicate'"):
        StreamingConv3d(CogVideoXCausalConv3d(4, 4, 3, pad_mode="constant"))


def test_denormalise_is_the_pipelines_formula() -> None:
    vae = load_vae(SHAPES, "float32", CPU)
    latents = torch.randn(12, 2, 4, 4)
    mean, std = (torch.tensor(vae.config[k]).view(12, 1, 1, 1) for k in ("latents_mean", "latents_std"))
    assert torch.equal(denormalise(vae, latents), latents * std / vae.config.scaling_factor + mean)
    vae.register_to_config(latents_mean=None, scaling_factor=2.0)
    assert torch.equal(denormalise(vae, latents), latents / 2)


def test_bytes_are_the_pipelines() -> None:
    video = torch.randn(3, 4, 16, 8)
    images = VideoProcessor(vae_scale_factor=8).postprocess_video(video[None], output_type="pil")[0]
    ours = to_uint8(video)
    assert ours.shape == (4, 16, 8, 3)
    for frame, image in zip(ours, images, strict=True):
        assert frame.numpy().tobytes() == image.tobytes()


def test_bytes_are_rounded_where_the_authors_cut_off() -> None:
    """So a colour is half a level brighter than theirs on average, and never more than one level away."""
    video = torch.rand(3, 4, 16, 8) * 2.4 - 1.2
    change = to_uint8(video).int() - frames_as_bytes(video).int()
    assert set(change.flatten().tolist()) == {0, 1}
