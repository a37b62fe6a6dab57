"""Stages with settings of their own, on one folder that holds the published variants of all parts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load

from deployments.decoder.video_decoder import VideoDecoder
from deployments.keys import latents_key, prompt_embeds_key, video_key
from deployments.messages import VIDEO_STAGES, Finished, InputUnusable, Stage
from deployments.prompts.prompt_encoder import PromptEncoder
from deployments.sampler.mochi_sampler import MochiSampler
from deployments.storage.work_files import HEADER
from tests.support.workers.fakes import ReportLog, connections, spec, task, undecorated, worker_settings
from tests.support.workers.memory_store import MemoryStore
from tests.support.workers.published_model import published_model

VIDEO = spec(width=32, height=32, num_frames=7, num_inference_steps=2)
REPLICAS: dict[Stage, Any] = {
    Stage.ENCODING: PromptEncoder,
    Stage.SAMPLING: MochiSampler,
    Stage.DECODING: VideoDecoder,
}


async def run(stage: Stage, store: MemoryStore, model: Path, changes: Mapping[str, str]) -> object:
    """How a new replica of the stage, with these settings, ends its task."""
    log = ReportLog()
    settings = worker_settings(stage, model, changes).model_copy(update={"torch_threads": 1})
    replica = undecorated(REPLICAS[stage])(settings, connections=connections(log, store))
    try:
        await replica.run(task(stage, VIDEO))
    finally:
        replica.__del__()
    return log.ends[-1]


def label(store: MemoryStore, key: str, folder: Path) -> dict[str, str]:
    path = folder / "object"
    path.write_bytes(store.objects[key])
    with safe_open(path, "pt") as file:
        found: dict[str, str] = json.loads(file.metadata()[HEADER])
    return found


async def test_each_output_is_in_its_own_stages_dtype_and_is_read_by_the_next(tmp_path: Path) -> None:
    store, model = MemoryStore(), published_model(tmp_path / "model")
    for stage in VIDEO_STAGES:
        assert isinstance(await run(stage, store, model, {"sampler.dtype": "bfloat16"}), Finished)
    assert label(store, prompt_embeds_key("video_1"), tmp_path)["dtype"] == "float32"
    assert str(load(store.objects[prompt_embeds_key("video_1")])["prompt_embeds"].dtype) == "torch.float32"
    assert label(store, latents_key("video_1"), tmp_path)["dtype"] == "bfloat16"
    assert store.objects[video_key("video_1")]


@pytest.mark.parametrize(
    ("made_with", "refused"),
    [
        ({"encoder.dtype": "bfloat16"}, Stage.SAMPLING),
        ({"sampler.dtype": "bfloat16"}, Stage.DECODING),
        ({"model.zero_empty_prompt": "true"}, Stage.SAMPLING),
        ({"model.zero_empty_prompt": "true"}, Stage.DECODING),
    ],
    ids=["embeddings in bf16", "latents in bf16", "embeddings of no token", "latents with a prompt of no token"],
)
async def test_an_output_made_otherwise_is_refused(
    made_with: Mapping[str, str], refused: Stage, tmp_path: Path
) -> None:
    store, model = MemoryStore(), published_model(tmp_path / "model")
    for stage in VIDEO_STAGES[: VIDEO_STAGES.index(refused)]:
        await run(stage, store, model, made_with)
    assert isinstance(await run(refused, store, model, {}), InputUnusable)
    assert isinstance(await run(refused, store, model, made_with), Finished)
