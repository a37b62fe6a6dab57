"""The sampler's replica against the stock pipeline."""

import json
import struct
from dataclasses import asdict
from typing import Any

import pytest
import torch
from diffusers import MochiPipeline
from safetensors.torch import load

from deployments.errors import TransientError
from deployments.messages import (
    Event,
    Failed,
    Finished,
    Progress,
    Stage,
    Started,
    VideoSpec,
    latents_key,
    prompt_embeds_key,
)
from deployments.mochi_sampler import LATENTS_FORMAT, MochiSampler, check_finite
from deployments.prompt_encoder import PromptEncoder
from tests.worker_fakes import SHAPES, MemoryLink, MemoryStore, connections, spec, task, undecorated, worker_settings


async def encoded(video: VideoSpec) -> MemoryStore:
    """A store with the embeddings in it, written by a real encoder."""
    store = MemoryStore()
    encoder = undecorated(PromptEncoder)(worker_settings(Stage.ENCODING), connections=connections(MemoryLink(), store))
    await encoder.run(task(Stage.ENCODING, video))
    return store


def replica(link: MemoryLink, store: MemoryStore) -> Any:
    return undecorated(MochiSampler)(worker_settings(Stage.SAMPLING), connections=connections(link, store))


@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")
@pytest.mark.parametrize("guidance_scale", [3.0, 1.0])
async def test_latents_equal_the_pipelines(guidance_scale: float) -> None:
    video = spec(guidance_scale=guidance_scale, num_frames=25, negative_prompt="blue")
    link, store = MemoryLink(), await encoded(video)
    await replica(link, store).run(task(Stage.SAMPLING, video))
    latents = load(store.objects[latents_key("video_1")])["latents"]

    pipe = MochiPipeline.from_pretrained(SHAPES, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    wanted = pipe(
        video.prompt,
        "blue",
        height=64,
        width=64,
        num_frames=25,
        num_inference_steps=video.num_inference_steps,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(video.seed),
        output_type="latent",
        max_sequence_length=16,
    ).frames[0]
    assert latents.dtype == torch.float32 and latents.shape == (12, 5, 8, 8)
    assert float((latents - wanted).norm() / wanted.norm()) <= 1e-4


async def test_reports_and_stores_in_order() -> None:
    link, store = MemoryLink(), await encoded(spec())
    await replica(link, store).run(task(Stage.SAMPLING))
    assert store.written == [prompt_embeds_key("video_1"), latents_key("video_1")]
    started, finished = link.ends
    assert isinstance(started, Started)
    assert isinstance(finished, Finished) and set(finished.seconds) == {"load", "denoise", "store"}
    assert all(event.total == 6 for event in link.events if isinstance(event, Progress))


async def test_the_header_tells_what_the_latents_are() -> None:
    link, store = MemoryLink(), await encoded(spec())
    await replica(link, store).run(task(Stage.SAMPLING))
    data = store.objects[latents_key("video_1")]
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])["__metadata__"]
    assert header["format"] == LATENTS_FORMAT and header["model"] == "mochi-1"
    assert VideoSpec(**json.loads(header["spec"])) == spec() == VideoSpec(**asdict(spec()))


async def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    store = await encoded(spec())
    sampler = replica(MemoryLink(), store)
    outputs = []
    for seed in (7, 7, 8):
        await sampler.run(task(Stage.SAMPLING, spec(seed=seed)))
        outputs.append(load(store.objects[latents_key("video_1")])["latents"])
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


async def test_a_stop_leaves_no_latents_and_the_replica_goes_on() -> None:
    def at_progress(event: Event) -> bool:
        return isinstance(event, Progress)

    link, store = MemoryLink(stop_at=at_progress), await encoded(spec())
    sampler = replica(link, store)
    await sampler.run(task(Stage.SAMPLING, spec(num_inference_steps=200, num_frames=61)))
    assert latents_key("video_1") not in store.objects
    assert [type(event) for event in link.ends] == [Started]
    assert max(event.done for event in link.events if isinstance(event, Progress)) < 200
    await sampler.check_health()


async def test_missing_embeddings_fail_with_their_code() -> None:
    link = MemoryLink()
    await replica(link, MemoryStore()).run(task(Stage.SAMPLING))
    failed = link.ends[-1]
    assert isinstance(failed, Failed) and failed.code == "object_missing"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_latents_that_are_no_numbers_are_refused(bad: float) -> None:
    good = torch.zeros(12, 2, 4, 4)
    assert check_finite(good) is good
    good[3, 1, 2, 2] = bad
    with pytest.raises(TransientError) as caught:
        check_finite(good)
    assert caught.value.code == "non_finite_latents"
