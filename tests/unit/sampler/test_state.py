from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from deployments.messages import VideoSpec
from deployments.mochi.denoise import initial_noise
from deployments.sampler.state import CheckpointRefusedError, SampleState, pack, unpack

SPEC = VideoSpec("a red circle", "", 64, 48, 13, 24, 20, 3.0, 2**60, exact=True)


def state(step: int = 7, dtype: torch.dtype = torch.bfloat16) -> SampleState:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(16) < 5
    embeds = {
        "prompt_embeds": torch.randn(16, 64, generator=generator).to(dtype),
        "prompt_mask": mask,
        "negative_embeds": torch.randn(16, 64, generator=generator).to(dtype),
        "negative_mask": ~mask.flip(0),
    }
    return SampleState(SPEC, "revision", "bfloat16", step, initial_noise(SPEC), embeds)


DATA = pack(state())


def read(data: bytes, spec: VideoSpec = SPEC, revision: str = "revision", dtype: str = "bfloat16") -> SampleState:
    return unpack("jobs/x/sample-00007.safetensors", data, spec, revision, dtype)


def test_a_state_comes_back_bit_for_bit() -> None:
    before, after = state(), read(DATA)
    assert (after.spec, after.step, after.revision) == (SPEC, 7, "revision")
    assert torch.equal(after.latents, before.latents)
    assert after.embeds.keys() == before.embeds.keys()
    assert all(torch.equal(after.embeds[name], tensor) for name, tensor in before.embeds.items())


@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_any_changed_byte_is_noticed(position: int, change: int) -> None:
    damaged = bytearray(DATA)
    damaged[position] ^= change
    with pytest.raises(CheckpointRefusedError, match="sample-00007"):
        read(bytes(damaged))


@given(st.integers(0, len(DATA) - 1))
def test_a_cut_object_is_noticed(length: int) -> None:
    with pytest.raises(CheckpointRefusedError):
        read(DATA[:length])


def test_a_foreign_state_is_refused_by_name() -> None:
    with pytest.raises(CheckpointRefusedError, match="revision is 'revision', this model's is 'other'"):
        read(DATA, revision="other")
    with pytest.raises(CheckpointRefusedError, match="dtype"):
        read(DATA, dtype="float32")
    with pytest.raises(CheckpointRefusedError, match="another request"):
        read(DATA, spec=replace(SPEC, seed=1))
    with pytest.raises(CheckpointRefusedError, match="format is None"):
        read(save({"latents": torch.zeros(1)}))
    with pytest.raises(CheckpointRefusedError, match="do not fit the request"):
        read(pack(replace(state(), step=21)))
    with pytest.raises(CheckpointRefusedError, match="not finite"):
        read(pack(replace(state(), latents=torch.full((12, 3, 6, 8), torch.nan))))
