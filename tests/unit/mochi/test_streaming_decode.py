"""Streaming decoding against the VAE's own decoding of the whole."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLMochi
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d
from diffusers.video_processor import VideoProcessor

from deployments.mochi.decoder_layers import CausalConvolution, decoder_layers, norm_silu, wanted_frames
from deployments.mochi.streaming_decode import StreamingDecoder, denormalise, to_uint8
from deployments.mochi.weights.loading import load_vae
from deployments.settings import FrameDrop
from tests.support.authors.decoder import decode as decode_as_authors
from tests.support.authors.decoder import frames_as_bytes
from tests.support.workers.fakes import SHAPES

CPU = torch.device("cpu")
DROPS: tuple[FrameDrop, ...] = ("end", "each_upsample")
FORMATS = [torch.channels_last_3d, torch.contiguous_format]


def random_vae(depths: tuple[int, ...] = (1, 1, 2, 2, 1)) -> Any:
    """Untrained, of uneven widths and depths; weights scaled so that the signal neither dies nor explodes."""
    torch.manual_seed(0)
    vae: Any = AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 64, 96),
        layers_per_block=depths,
    ).eval()
    for parameter in vae.parameters():
        parameter.requires_grad = False
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=(1.2 / parameter[0].numel()) ** 0.5)
    return vae


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", [(12, 1, 3, 5), (12, 5, 4, 3)])
@torch.no_grad()
def test_random_vae_streams_exactly(shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    vae = random_vae()
    latents = torch.randn(shape)
    whole = vae.decode(latents[None]).sample[0]
    decoder = StreamingDecoder(vae, memory_format=memory_format)
    pieces = list(decoder.decode(latents))
    assert [piece.shape[1] for piece in pieces] == [1, *[6] * (shape[1] - 1)]
    streamed = torch.cat(pieces, dim=1)
    assert streamed.shape == whole.shape == (3, 6 * shape[1] - 5, 8 * shape[2], 8 * shape[3])
    assert float(whole.std()) > 0.05
    torch.testing.assert_close(streamed, whole, atol=1e-4, rtol=1e-4)
    assert float((streamed - whole).abs().max()) < 2e-6 * float(whole.abs().max())


@pytest.mark.parametrize("depths", [(0, 0, 0, 0, 0), (2, 0, 1, 0, 1), (0, 3, 0, 1, 0), (3, 1, 0, 0, 2)])
@torch.no_grad()
def test_any_depth_streams_exactly(depths: tuple[int, ...]) -> None:
    """How much of the first piece can be left out depends on how many convolutions follow."""
    vae = random_vae(depths)
    latents = torch.randn(12, 3, 3, 4)
    whole = vae.decode(latents[None]).sample[0]
    streamed = torch.cat(list(StreamingDecoder(vae).decode(latents)), dim=1)
    torch.testing.assert_close(streamed, whole, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_weights_that_can_still_be_trained_stream_exactly() -> None:
    """They are convolved by torch's own operator."""
    vae = random_vae().requires_grad_(True)
    latents = torch.randn(12, 3, 3, 4)
    streamed = torch.cat(list(StreamingDecoder(vae).decode(latents)), dim=1)
    torch.testing.assert_close(streamed, vae.decode(latents[None]).sample[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_half_precision_differs_by_its_rounding_alone() -> None:
    latents = torch.randn(12, 2, 1, 2)
    exact = random_vae((0, 0, 0, 1, 0)).decode(latents[None]).sample[0]
    vae = random_vae((0, 0, 0, 1, 0)).bfloat16()
    theirs = vae.decode(latents[None].bfloat16()).sample[0]
    ours = torch.cat(list(StreamingDecoder(vae).decode(latents.bfloat16())), dim=1)
    assert ours.dtype == torch.bfloat16
    assert float((ours - exact).norm()) < 1.2 * float((theirs - exact).norm())


def test_what_nobody_needs_of_the_first_piece_is_not_made() -> None:
    """Of the included model: one frame of six, through two convolutions of three frames each at the last rate."""
    layers = decoder_layers(load_vae(SHAPES, "float32", CPU).decoder, torch.channels_last_3d, norm_silu)
    # Two blocks at the rate of the latents, to 3 frames, a block, to 6 frames, a block, the output.
    assert wanted_frames(layers, [0] * 7) == [1, 1, 3, 3, 6, 6, 6]
    assert wanted_frames(layers, [0, 0, 0, 0, 0, 0, 5]) == [1, 1, 3, 3, 5, 1, 1]
    assert wanted_frames(layers, [0, 0, 2, 0, 1, 0, 0]) == [1, 1, 1, 1, 1, 1, 1]


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
def test_included_vae_streams_exactly_and_twice() -> None:
    latents = torch.randn(12, 4, 8, 8)
    whole = load_vae(SHAPES, "float32", CPU).decode(latents[None]).sample[0]
    decoder = StreamingDecoder(load_vae(SHAPES, "float32", CPU))
    pieces = list(decoder.decode(latents))
    assert [piece.shape[1] for piece in pieces] == [1, 6, 6, 6]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-4, rtol=1e-4)
    assert torch.equal(torch.cat(list(decoder.decode(latents)), dim=1), torch.cat(pieces, dim=1))


@pytest.mark.parametrize("frame_drop", DROPS)
@torch.no_grad()
def test_a_decoding_left_halfway_leaves_nothing_behind(frame_drop: FrameDrop) -> None:
    decoder = StreamingDecoder(load_vae(SHAPES, "float32", CPU), frame_drop)
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


@torch.no_grad()
def test_the_vae_still_decodes() -> None:
    vae, latents = random_vae(), torch.randn(1, 12, 2, 4, 4)
    before = vae.decode(latents).sample
    StreamingDecoder(vae)
    assert torch.equal(vae.decode(latents).sample, before)


@torch.no_grad()
def test_two_videos_of_other_sizes_in_turn() -> None:
    decoder = StreamingDecoder(load_vae(SHAPES, "float32", CPU))
    videos = [torch.randn(12, 2, 4, 4), torch.randn(12, 1, 2, 6)]
    first, second = (torch.cat(list(decoder.decode(video)), dim=1) for video in videos)
    again = torch.cat(list(decoder.decode(videos[0])), dim=1)
    assert first.shape == (3, 7, 32, 32) and second.shape == (3, 1, 16, 48)
    assert torch.equal(again, first)


def test_other_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="only 'replicate'"):
        CausalConvolution(CogVideoXCausalConv3d(4, 4, 3, pad_mode="constant"), torch.channels_last_3d)


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
