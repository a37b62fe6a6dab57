"""The state of a sample as bytes, and the checkpoints of a job in a store in memory."""

import json
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from deployments.errors import InputUnusableError, PermanentError, StorageUnavailableError
from deployments.keys import checkpoint_key
from deployments.messages import VideoSpec
from deployments.mochi.denoise import initial_noise
from deployments.sampler.state import Checkpoints, SampleState, pack, unpack
from deployments.step_rules import StepRules
from deployments.storage.models.safetensors_file import safetensors_header
from deployments.storage.work_files import HEADER
from tests.support.workers.fakes import captured
from tests.support.workers.memory_store import MemoryStore

SPEC = VideoSpec("a red circle", "", 64, 48, 13, 24, 60, 3.0, 2**60, exact=True)
JOB = "video_1"
NAME = "jobs/x/sample-00007.safetensors"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with captured(caplog):
        yield caplog


def state(step: int = 7, dtype: torch.dtype = torch.bfloat16) -> SampleState:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(16) < 5
    embeds = {
        "prompt_embeds": torch.randn(16, 64, generator=generator).to(dtype),
        "prompt_mask": mask,
        "negative_embeds": torch.randn(16, 64, generator=generator).to(dtype),
        "negative_mask": ~mask.flip(0),
    }
    return SampleState(SPEC, "revision", "bfloat16", step, initial_noise(SPEC) * (1 + step), embeds)


DATA = pack(NAME, state())


def read(data: bytes, spec: VideoSpec = SPEC, revision: str = "revision", dtype: str = "bfloat16") -> SampleState:
    return unpack(NAME, data, spec, revision, dtype)


def test_a_state_of_another_quality_or_of_other_rules_is_refused() -> None:
    rules = StepRules(guidance_until=0.5)
    fast = replace(SPEC, quality="fast", rules=rules)
    data = pack(NAME, replace(state(), spec=fast))
    assert read(data, fast).spec == fast
    for other in (SPEC, replace(fast, quality="draft"), replace(fast, rules=StepRules(guidance_until=0.6))):
        with pytest.raises(InputUnusableError, match="made for another request"):
            read(data, other)
        with pytest.raises(InputUnusableError, match="made for another request"):
            read(pack(NAME, replace(state(), spec=other)), fast)


def test_a_state_whose_next_step_needs_more_than_it_holds_is_refused() -> None:
    cached = replace(SPEC, quality="fast", rules=StepRules(reuse_run=2))
    for step, resumable in ((6, True), (7, False), (8, False), (9, True)):
        data = pack(NAME, replace(state(step), spec=cached))
        if resumable:
            assert read(data, cached).step == step
        else:
            with pytest.raises(InputUnusableError, match="reuses what the one before it computed"):
                read(data, cached)


def test_a_state_of_before_there_were_qualities_is_one_of_today() -> None:
    """Its header has the request as it was written then, so one is read as the other."""
    header = json.loads(safetensors_header(BytesIO(DATA))["__metadata__"][HEADER])
    assert header["spec"] == (
        '{"exact": true, "fps": 24, "guidance_scale": 3.0, "height": 48, "negative_prompt": "", "num_frames": 13, '
        '"num_inference_steps": 60, "prompt": "a red circle", "seed": 1152921504606846976, "width": 64}'
    )


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
    with pytest.raises(InputUnusableError, match="sample-00007"):
        read(bytes(damaged))


@given(st.integers(0, len(DATA) - 1))
def test_a_cut_object_is_noticed(length: int) -> None:
    with pytest.raises(InputUnusableError):
        read(DATA[:length])


def test_a_foreign_state_is_refused_by_name() -> None:
    with pytest.raises(InputUnusableError, match="revision is 'revision', this model's is 'other'"):
        read(DATA, revision="other")
    with pytest.raises(InputUnusableError, match="dtype"):
        read(DATA, dtype="float32")
    with pytest.raises(InputUnusableError, match="it was written as jobs/y/sample-00007"):
        read(pack("jobs/y/sample-00007.safetensors", state()))
    with pytest.raises(InputUnusableError, match="another request"):
        read(DATA, spec=replace(SPEC, seed=1))
    with pytest.raises(InputUnusableError, match="format is None"):
        read(save({"latents": torch.zeros(1)}))
    with pytest.raises(InputUnusableError, match="do not fit the request"):
        read(pack(NAME, replace(state(), step=61)))
    with pytest.raises(InputUnusableError, match="not finite"):
        read(pack(NAME, replace(state(), latents=torch.full((12, 3, 6, 8), torch.nan))))


def key(step: int) -> str:
    return checkpoint_key(JOB, step)


def checkpoints(store: MemoryStore, revision: str = "revision", dtype: str = "bfloat16") -> Checkpoints:
    return Checkpoints(store, revision, dtype)


async def store_with(*steps: int) -> MemoryStore:
    store = MemoryStore()
    for step in steps:
        await checkpoints(store).save(JOB, state(step))
    return store


def damage(store: MemoryStore, step: int) -> None:
    data = bytearray(store.objects[key(step)])
    data[-1] ^= 1
    store.objects[key(step)] = bytes(data)


async def step_of(made: Checkpoints) -> int | None:
    newest = await made.newest(JOB, SPEC)
    return None if newest is None else newest.step


async def test_a_job_without_checkpoints_has_none() -> None:
    store = await store_with()
    await checkpoints(store).save("video_10", state(3))
    assert await checkpoints(store).newest(JOB, SPEC) is None


async def test_the_newest_comes_back_bit_for_bit() -> None:
    newest = await checkpoints(await store_with(9, 10, 11)).newest(JOB, SPEC)
    assert newest is not None and newest.step == 11
    assert torch.equal(newest.latents, state(11).latents)
    assert all(torch.equal(newest.embeds[name], tensor) for name, tensor in state(11).embeds.items())


async def test_a_damaged_one_falls_back_to_the_one_before(log: pytest.LogCaptureFixture) -> None:
    store = await store_with(5, 10)
    damage(store, 10)
    assert await step_of(checkpoints(store)) == 5
    (message,) = log.messages
    assert key(10) in message and "damaged" in message


async def test_with_both_damaged_the_job_starts_from_step_0(log: pytest.LogCaptureFixture) -> None:
    store = await store_with(5, 10)
    damage(store, 5)
    store.objects[key(10)] = store.objects[key(10)][:100]
    assert await step_of(checkpoints(store)) is None
    assert [key(10) in log.messages[0], key(5) in log.messages[1]] == [True, True]


@pytest.mark.parametrize(
    ("reader", "video", "why"),
    [
        ({"revision": "other"}, SPEC, "its revision is 'revision', this model's is 'other'"),
        ({"dtype": "float32"}, SPEC, "its dtype is 'bfloat16', this model's is 'float32'"),
        ({}, replace(SPEC, seed=2), "it was made for another request"),
    ],
)
async def test_a_foreign_one_is_refused_by_name(
    reader: dict[str, str], video: VideoSpec, why: str, log: pytest.LogCaptureFixture
) -> None:
    made = checkpoints(await store_with(7), **reader)
    assert await made.newest(JOB, video) is None
    assert key(7) in log.messages[0] and why in log.messages[0]


async def test_one_that_is_deleted_before_it_is_read_is_passed_over(log: pytest.LogCaptureFixture) -> None:
    """A replica that lost its lease may still be at work on the same job, and deletes what is older than its own."""

    class Vanishing(MemoryStore):
        async def get(self, key: str) -> bytes:
            if key == checkpoint_key(JOB, 10):
                raise PermanentError("object_missing", f"no object {key}")
            return await super().get(key)

    store = Vanishing()
    store.objects = (await store_with(5, 10)).objects
    assert await step_of(checkpoints(store)) == 5
    assert key(10) in log.messages[0]


async def test_a_store_that_is_away_is_no_damage() -> None:
    """The job must wait for the store, not begin again."""

    class Away(MemoryStore):
        async def get(self, key: str) -> bytes:
            raise StorageUnavailableError(f"no answer for {key}")

    store = Away()
    store.objects = (await store_with(5, 10)).objects
    with pytest.raises(StorageUnavailableError):
        await checkpoints(store).newest(JOB, SPEC)


async def test_two_are_kept_and_the_oldest_goes_only_when_the_new_one_is_whole() -> None:
    store = await store_with(5, 10, 15, 100)
    assert await store.list_keys("jobs/") == [key(15), key(100)]
    assert store.changes == [
        ("put", key(5)),
        ("put", key(10)),
        ("put", key(15)),
        ("delete", key(5)),
        ("put", key(100)),
        ("delete", key(10)),
    ]


async def test_a_write_that_fails_loses_nothing() -> None:
    store = await store_with(5, 10)
    before = dict(store.objects)
    store.down = lambda key: True
    with pytest.raises(StorageUnavailableError):
        await checkpoints(store).save(JOB, state(15))
    assert store.objects == before
    assert await step_of(checkpoints(store)) == 10


async def test_a_job_that_began_again_is_not_robbed_of_its_new_one_by_those_that_were_refused() -> None:
    store = await store_with(40, 47)
    damage(store, 40)
    damage(store, 47)
    made = checkpoints(store)
    assert await step_of(made) is None
    for step in (5, 6):
        await made.save(JOB, state(step))
        assert await step_of(made) == step
    assert await store.list_keys("jobs/") == [key(5), key(6)]


async def test_one_written_twice_is_kept_beside_the_one_before() -> None:
    store = await store_with(5, 10, 10)
    assert await store.list_keys("jobs/") == [key(5), key(10)]
