"""What a stage left for the next is gone, damaged, or another model's: it is made again, and no attempt is counted."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from deployments.keys import latents_key, prompt_embeds_key, video_key
from deployments.messages import VIDEO_STAGES, Stage
from serve_app.jobs import JobState
from tests.support.workers.fakes import SHAPES, spec
from tests.support.workers.memory_store import MemoryStore
from tests.support.workers.pipeline import Pipeline, with_other_weights

VIDEO = spec(width=32, height=32, num_frames=7, num_inference_steps=2, exact=True)
JOB = "video_1"
ENCODING, SAMPLING, DECODING = VIDEO_STAGES


@pytest.fixture
async def pipeline(database_url: str) -> AsyncIterator[Pipeline]:
    pipeline = Pipeline(database_url)
    yield pipeline
    await pipeline.close()


async def made_by(folder: Path, model: Path) -> bytes:
    """The video that the model makes when nothing happens."""
    alone = Pipeline(f"sqlite:///{folder / 'alone.db'}")
    alone.start(*VIDEO_STAGES, model=model)
    await alone.submit(JOB, VIDEO)
    await alone.until(JOB, lambda job: job.state is JobState.COMPLETED)
    await alone.close()
    return alone.store.objects[video_key(JOB)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return asyncio.run(made_by(tmp_path_factory.mktemp("alone"), SHAPES))


def lose(key: str) -> Callable[[MemoryStore], None]:
    def forget(store: MemoryStore) -> None:
        del store.objects[key]

    return forget


def damage(key: str) -> Callable[[MemoryStore], None]:
    def change_a_byte(store: MemoryStore) -> None:
        data = bytearray(store.objects[key])
        data[len(data) // 2] ^= 1
        store.objects[key] = bytes(data)

    return change_a_byte


@pytest.mark.parametrize(
    ("spoil", "until", "again"),
    [
        (lose(prompt_embeds_key(JOB)), SAMPLING, ENCODING),
        (damage(prompt_embeds_key(JOB)), SAMPLING, ENCODING),
        (lose(latents_key(JOB)), DECODING, SAMPLING),
        (damage(latents_key(JOB)), DECODING, SAMPLING),
    ],
    ids=["lost embeddings", "damaged embeddings", "lost latents", "damaged latents"],
)
async def test_what_is_lost_or_damaged_is_made_again(
    pipeline: Pipeline, undisturbed: bytes, spoil: Callable[[MemoryStore], None], until: Stage, again: Stage
) -> None:
    pipeline.start(*VIDEO_STAGES[: VIDEO_STAGES.index(until)])
    await pipeline.submit(JOB, VIDEO)
    await pipeline.reaches(JOB, JobState.QUEUED, until)
    spoil(pipeline.store)
    pipeline.start(until, DECODING)
    job = await pipeline.until(JOB, lambda job: job.state is JobState.COMPLETED)
    assert (job.attempt, job.remakes) == (1, 1)
    moves = await pipeline.registry.history(JOB)
    assert moves is not None
    (back,) = [move for move in moves if f"{again} again: " in move.note]
    assert (back.state, back.stage, back.attempt) == (JobState.QUEUED, again, 1)
    assert pipeline.store.objects[video_key(JOB)] == undisturbed


@pytest.mark.parametrize(
    ("parts", "remakes"),
    [(("text_encoder",), 2), (("transformer",), 1), (("vae",), 0)],
    ids=["other text encoder", "other transformer", "other decoder"],
)
async def test_jobs_that_wait_through_an_upgrade_are_made_by_the_new_model(
    pipeline: Pipeline, tmp_path: Path, undisturbed: bytes, parts: tuple[str, ...], remakes: int
) -> None:
    new = with_other_weights(tmp_path, *parts)
    pipeline.start(ENCODING, SAMPLING)
    await pipeline.submit(JOB, VIDEO)
    await pipeline.reaches(JOB, JobState.QUEUED, DECODING)
    pipeline.start(*VIDEO_STAGES, model=new)
    job = await pipeline.until(JOB, lambda job: job.state is JobState.COMPLETED)
    assert (job.attempt, job.remakes) == (1, remakes)
    assert pipeline.store.objects[video_key(JOB)] == await made_by(tmp_path, new) != undisturbed


async def test_two_revisions_side_by_side_work_ever_more_seldom_until_the_upgrade_is_done(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    new = with_other_weights(tmp_path, "text_encoder")
    pipeline.start(ENCODING)
    pipeline.start(SAMPLING, DECODING, model=new)
    await pipeline.submit(JOB, VIDEO)
    await pipeline.until(JOB, lambda job: job.remakes >= 4)
    pipeline.start(ENCODING, model=new)
    job = await pipeline.until(JOB, lambda job: job.state is JobState.COMPLETED)
    assert job.attempt == 1
    moves = await pipeline.registry.history(JOB) or []
    claims = [move.at for move in moves if move.state is JobState.ENCODING]
    refusals = [move.at for move in moves if "encoding again: " in move.note]
    assert len(refusals) == job.remakes
    pauses = [claimed - refused for refused, claimed in zip(refusals, claims[1:], strict=True)]
    assert all(pause >= 0.01 * 2**number for number, pause in enumerate(pauses))
    assert pipeline.store.objects[video_key(JOB)] == await made_by(tmp_path, new)
