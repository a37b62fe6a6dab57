"""Embeddings against the pipeline's, and the encoder's replica."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MochiPipeline
from safetensors.torch import load
from torch.nn.modules.module import register_module_forward_hook
from transformers import T5EncoderModel

from deployments.dtypes import DtypeName
from deployments.errors import PermanentError
from deployments.keys import prompt_embeds_key
from deployments.messages import Failed, Finished, Stage, Started
from deployments.prompts.prompt_encoder import PromptEncoder, TextEncoder
from tests.support.workers.fakes import (
    SHAPES,
    ReportLog,
    connections,
    spec,
    task,
    undecorated,
    worker_settings,
)
from tests.support.workers.memory_store import MemoryStore

CPU = torch.device("cpu")
DTYPES: tuple[DtypeName, ...] = ("float32", "bfloat16")


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return MochiPipeline.from_pretrained(SHAPES, torch_dtype=torch.float32)


@pytest.fixture
def zeroing_model(tmp_path: Path) -> Path:
    """The included model with `force_zeros_for_empty_prompt`."""
    shutil.copytree(SHAPES, tmp_path / "model")
    index = tmp_path / "model" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"force_zeros_for_empty_prompt": True}))
    return tmp_path / "model"


@torch.no_grad()
def assert_equal_to_pipeline(pipe: Any, encoder: TextEncoder, prompt: str, negative: str) -> None:
    """A text without a token has no embeddings to compare: nobody reads them."""
    ours = encoder.encode(prompt, negative)
    embeds, mask, negative_embeds, negative_mask = pipe.encode_prompt(prompt, negative, max_sequence_length=64)
    assert torch.equal(ours["prompt_mask"], mask[0])
    assert torch.equal(ours["negative_mask"], negative_mask[0])
    if bool(mask.any()):
        torch.testing.assert_close(ours["prompt_embeds"], embeds[0], atol=1e-5, rtol=1e-5)
    if bool(negative_mask.any()):
        torch.testing.assert_close(ours["negative_embeds"], negative_embeds[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "negative"), [("a red circle moving right", ""), ("a blue square", "red circle"), ("", "")]
)
def test_embeddings_are_the_pipelines(pipeline: Any, prompt: str, negative: str) -> None:
    assert_equal_to_pipeline(pipeline, TextEncoder(SHAPES, "float32", CPU, 64), prompt, negative)


def test_each_empty_prompt_is_zeroed_by_itself(zeroing_model: Path) -> None:
    pipe = MochiPipeline.from_pretrained(zeroing_model, torch_dtype=torch.float32)
    assert pipe.config.force_zeros_for_empty_prompt
    encoder = TextEncoder(zeroing_model, "float32", CPU, 64)
    assert_equal_to_pipeline(pipe, encoder, "a red circle", "")
    assert_equal_to_pipeline(pipe, encoder, "a red circle", "blue")
    zeroed = encoder.encode("a red circle", "")
    assert int(zeroed["prompt_mask"].sum()) > 0
    assert not bool(zeroed["negative_mask"].any()) and not bool(zeroed["negative_embeds"].any())
    both = encoder.encode("", "")
    assert not any(bool(tensor.any()) for tensor in both.values())
    assert {name: (t.shape, t.dtype) for name, t in both.items()} == {n: (t.shape, t.dtype) for n, t in zeroed.items()}


@pytest.mark.parametrize(("said", "setting", "zeroed"), [(True, None, True), (True, False, False), (False, True, True)])
def test_the_setting_goes_before_what_the_model_says(
    zeroing_model: Path, said: bool, setting: bool | None, zeroed: bool
) -> None:
    encoder = TextEncoder(zeroing_model if said else SHAPES, "float32", CPU, 64, setting)
    assert bool(encoder.encode("a red circle", "")["negative_mask"].any()) != zeroed


@pytest.mark.parametrize(
    ("texts", "rows"),
    [
        (("a red circle", ""), [1]),
        (("", "blue"), [1]),
        (("a red circle", "blue"), [1, 1]),
        (("blue", "blue"), [1]),
        (("", ""), []),
        (("a", " "), [1, 1]),
    ],
)
def test_no_pass_for_a_text_without_a_token(texts: tuple[str, str], rows: list[int]) -> None:
    """A blank is a text, as with the authors; requests come without blanks around them."""
    encoder = TextEncoder(SHAPES, "float32", CPU, 64, zero_empty=True)
    assert passes(encoder, *texts) == rows


def passes(encoder: TextEncoder, prompt: str, negative_prompt: str) -> list[int]:
    """Rows of each pass of T5 that it takes to encode these."""
    seen = []

    def note(module: object, _: object, out: Any) -> None:
        if isinstance(module, T5EncoderModel):
            seen.append(len(out[0]))

    with register_module_forward_hook(note):
        encoder.encode(prompt, negative_prompt)
    return seen


def test_a_text_that_was_encoded_costs_no_pass_and_is_the_same_bits() -> None:
    encoder, forgetful = (TextEncoder(SHAPES, "float32", CPU, 64, kept_bytes=n) for n in (2**20, 0))
    assert passes(encoder, "a red circle", "blue") == [1, 1]
    assert encoder.kept("a red circle", "green") is None
    assert passes(encoder, "a blue square", "blue") == [1], "the negative prompt was kept"
    assert passes(encoder, "blue", "a red circle") == [], "in either role"
    again = encoder.encode("a blue square", "blue")
    assert passes(forgetful, "a blue square", "blue") == passes(forgetful, "a blue square", "blue") == [1, 1]
    fresh = forgetful.encode("a blue square", "blue")
    kept = encoder.kept("a blue square", "blue")
    assert kept is not None and again.keys() == fresh.keys() == kept.keys()
    assert all(torch.equal(again[name], fresh[name]) and kept[name] is again[name] for name in fresh)


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_a_long_prompt_is_refused_with_its_length(name: str) -> None:
    encoder = TextEncoder(SHAPES, "float32", CPU, 64)
    fits = " ".join(["red"] * 63)
    encoder.encode(fits, fits)
    texts = {"prompt": "red", "negative_prompt": "red"} | {name: f"{fits} red"}
    with pytest.raises(PermanentError, match=f"^{name} is 65 tokens; this model reads at most 64; shorten it") as e:
        encoder.encode(**texts)
    assert e.value.code == "prompt_too_long"


def test_on_a_cpu_bfloat16_is_near_float32() -> None:
    """As the profiles for smaller cards have it."""
    exact, near = (TextEncoder(SHAPES, dtype, CPU, 64).encode("a red circle", "blue") for dtype in DTYPES)
    assert near["prompt_embeds"].dtype == torch.bfloat16 and torch.equal(near["prompt_mask"], exact["prompt_mask"])
    for name in ("prompt_embeds", "negative_embeds"):
        valid = exact[name][exact[name.replace("embeds", "mask")]]
        rounded = near[name].float()[exact[name.replace("embeds", "mask")]]
        assert 0 < float((rounded - valid).norm() / valid.norm()) < 0.02


def test_threads_share_the_tokenizer() -> None:
    encoder = TextEncoder(SHAPES, "float32", CPU, 64)
    prompts = ["a red circle", "a blue square moving up", "green", "a yellow triangle moving left"] * 25
    alone = {prompt: encoder.encode(prompt, "") for prompt in prompts[:4]}
    with ThreadPoolExecutor(4) as pool:
        for prompt, got in zip(prompts, pool.map(lambda p: encoder.encode(p, ""), prompts), strict=True):
            assert torch.equal(got["prompt_mask"], alone[prompt]["prompt_mask"])
            torch.testing.assert_close(got["prompt_embeds"], alone[prompt]["prompt_embeds"])


@pytest.fixture
def replica() -> Callable[..., Any]:
    def make(log: ReportLog, store: MemoryStore) -> Any:
        settings = worker_settings(Stage.ENCODING)
        return undecorated(PromptEncoder)(settings, [], connections(log, store))

    return make


async def test_a_task_writes_its_object_then_finishes(replica: Callable[..., Any]) -> None:
    log, store = ReportLog(), MemoryStore()
    encoder = replica(log, store)
    await encoder.run(task(Stage.ENCODING, spec("a red circle", negative_prompt="blue")))
    await encoder.check_health()
    assert store.written == [prompt_embeds_key("video_1")]
    tensors = load(store.objects[prompt_embeds_key("video_1")])
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "prompt_embeds": (64, 96),
        "prompt_mask": (64,),
        "negative_embeds": (64, 96),
        "negative_mask": (64,),
    }
    started, finished = log.ends
    assert isinstance(started, Started) and started.replica == "replica-1" and started.device.startswith("cpu")
    assert isinstance(finished, Finished) and set(finished.seconds) == {"encode", "store"}
    assert 0 < finished.device_s <= finished.seconds["encode"] + 1e-4


async def test_a_prompt_may_be_its_negative_prompt_too(replica: Callable[..., Any]) -> None:
    log, store = ReportLog(), MemoryStore()
    await replica(log, store).run(task(Stage.ENCODING, spec("blue", negative_prompt="blue")))
    assert isinstance(log.ends[-1], Finished)
    tensors = load(store.objects[prompt_embeds_key("video_1")])
    assert torch.equal(tensors["prompt_embeds"], tensors["negative_embeds"])


async def test_the_same_prompt_again_takes_nothing_of_the_device(replica: Callable[..., Any]) -> None:
    log, store = ReportLog(), MemoryStore()
    encoder = replica(log, store)
    await encoder.run(task(Stage.ENCODING, spec("a red circle", negative_prompt="blue", seed=1)))
    await encoder.run(task(Stage.ENCODING, spec("a red circle", negative_prompt="blue", seed=2)))
    first, second = (event for event in log.ends if isinstance(event, Finished))
    assert first.device_s > 0 and second.device_s == 0
    assert second.seconds.keys() == {"encode", "store"}


async def test_a_long_prompt_fails_for_good(replica: Callable[..., Any]) -> None:
    log, store = ReportLog(), MemoryStore()
    await replica(log, store).run(task(Stage.ENCODING, spec("red " * 64)))
    failed = log.ends[-1]
    assert isinstance(failed, Failed)
    assert (failed.code, failed.transient) == ("prompt_too_long", False)
    assert store.objects == {}


async def test_a_task_done_twice_writes_the_same(replica: Callable[..., Any]) -> None:
    log, store = ReportLog(), MemoryStore()
    encoder = replica(log, store)
    await encoder.run(task(Stage.ENCODING))
    first = dict(store.objects)
    await encoder.run(task(Stage.ENCODING))
    assert store.objects == first


async def test_one_stopped_while_it_encodes_writes_nothing(replica: Callable[..., Any]) -> None:
    log, store = ReportLog(), MemoryStore()
    encoder = replica(log, store)

    def stop(*_: object) -> None:
        encoder.worker.tasks["lease_1"].stop()

    with register_module_forward_hook(stop):  # of every module, so of the encoder's too
        await encoder.run(task(Stage.ENCODING))
    assert store.changes == []
    assert [type(event) for event in log.ends] == [Started]
