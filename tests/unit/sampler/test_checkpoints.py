"""Checkpoints in a store in memory."""

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from deployments.errors import PermanentError, StorageUnavailableError
from deployments.keys import checkpoint_key
from deployments.messages import VideoSpec
from deployments.mochi.denoise import initial_noise
from deployments.sampler.state import Checkpoints, SampleState
from tests.support.memory_store import MemoryStore
from tests.support.worker_fakes import spec

SPEC = spec(width=32, height=32, num_frames=7, num_inference_steps=60)
JOB = "video_1"


def state(step: int) -> SampleState:
    mask = torch.arange(16) < 5
    embeds = {"prompt_embeds": torch.ones(16, 64), "prompt_mask": mask}
    embeds |= {"negative_embeds": torch.zeros(16, 64), "negative_mask": mask.clone()}
    return SampleState(SPEC, "revision", "float32", step, initial_noise(SPEC) * (1 + step), embeds)


def key(step: int) -> str:
    return checkpoint_key(JOB, step)


def checkpoints(store: MemoryStore, revision: str = "revision", dtype: str = "float32") -> Checkpoints:
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


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Ray's logger hands nothing on, so the capture is hung on it."""
    logger = logging.getLogger("ray.serve")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


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
        ({"dtype": "bfloat16"}, SPEC, "its dtype is 'float32', this model's is 'bfloat16'"),
        ({}, replace(SPEC, seed=2), "it was made for another request"),
    ],
)
async def test_a_foreign_one_is_refused_by_name(
    reader: dict[str, str], video: VideoSpec, why: str, log: pytest.LogCaptureFixture
) -> None:
    made = checkpoints(await store_with(7), **reader)
    assert await made.newest(JOB, video) is None
    assert key(7) in log.messages[0] and why in log.messages[0]


async def test_one_that_is_gone_before_it_is_read_is_passed_over(log: pytest.LogCaptureFixture) -> None:
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
