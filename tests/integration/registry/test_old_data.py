"""Data folders of every schema version: they open, what waits in them ends, what was finished stays as it is."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import pytest
import torch
from safetensors.torch import save
from sqlalchemy import MetaData, create_engine

from deployments.clip import LatentShape
from deployments.keys import checkpoint_key, latents_key, prompt_embeds_key, video_key
from deployments.messages import VIDEO_STAGES, Stage
from serve_app.database import engine as database_engine
from serve_app.jobs import JobState, Submission
from tests.support.workers.fakes import spec
from tests.support.workers.memory_store import MemoryStore
from tests.support.workers.pipeline import Pipeline

MIGRATIONS = Path(database_engine.__file__).parent / "migrations"
REVISIONS = sorted(path.name[:4] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))
VIDEO = spec(width=32, height=32, num_frames=7, num_inference_steps=2, exact=True)
VIDEO_BYTES = b"the bytes of a finished mp4"
FINGERPRINT = "f" * 64
ENCODING, SAMPLING, DECODING = VIDEO_STAGES


def job_id(number: int) -> str:
    return f"video_{number:032x}"


DONE, NEW, ENCODED, SAMPLED, HELD = (job_id(number) for number in range(5))
WAITING: dict[str, tuple[JobState, Stage]] = {
    NEW: (JobState.QUEUED, ENCODING),
    ENCODED: (JobState.QUEUED, SAMPLING),
    SAMPLED: (JobState.QUEUED, DECODING),
    HELD: (JobState.SAMPLING, SAMPLING),  # by a replica when its server was killed
}


# As every version before there were qualities wrote it.
OLD_SPEC = {
    **{"prompt": VIDEO.prompt, "negative_prompt": "", "width": 32, "height": 32, "num_frames": 7, "fps": VIDEO.fps},
    **{"num_inference_steps": 2, "guidance_scale": VIDEO.guidance_scale, "seed": VIDEO.seed, "exact": True},
}


def row(number: int, state: JobState, stage: Stage) -> dict[str, Any]:
    """A job as each version wrote it; a version leaves out the columns that it has not."""
    now = time.time()
    held = state is JobState.SAMPLING
    return {
        "id": job_id(number),
        "model": "mochi-1",
        "spec": OLD_SPEC,
        "state": state,
        "stage": stage,
        "attempt": 1,
        "step": 2 if held or stage is DECODING else 0,
        "checkpoint_step": 1 if held else 0,
        "progress": 1.0 if state is JobState.COMPLETED else 0.1,
        "created_at": now - 60 + number,
        "started_at": now - 50,
        "completed_at": now - 40 if state is JobState.COMPLETED else None,
        "available_at": now - 60 + number,
        "lease": "lease" if held else None,
        "lease_owner": "a server that is gone" if held else None,
        "lease_expires_at": now - 30 if held else None,
        "seconds": {},
        "moves": 2,
    }


def write_database(url: str, revision: str) -> None:
    """The tables as they were, with a job in each of the places where one may be."""
    engine = create_engine(url)
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, revision)
    tables = MetaData()
    tables.reflect(engine)
    jobs, moves = tables.tables["jobs"], tables.tables["job_moves"]
    states = [(JobState.COMPLETED, DECODING), *WAITING.values()]
    with engine.begin() as connection:
        for number, (state, stage) in enumerate(states):
            values = row(number, state, stage)
            connection.execute(jobs.insert().values({n: v for n, v in values.items() if n in jobs.c}))
            move = {"job_id": values["id"], "at": values["created_at"], "stage": stage, "attempt": 1}
            if revision < "0003":  # since then it is in the job's row alone
                connection.execute(moves.insert().values(**move, state=JobState.QUEUED, note="accepted"))
            connection.execute(moves.insert().values(**move, state=state, note="moved"))
        if "idempotency_keys" in tables.tables:
            key = {"tenant": "default", "key": "k", "fingerprint": FINGERPRINT, "job_id": DONE}
            connection.execute(tables.tables["idempotency_keys"].insert().values(**key, created_at=time.time()))
    engine.dispose()


def write_objects(store: MemoryStore) -> None:
    """What stages left for each other before their objects said what made them."""
    shape: LatentShape = VIDEO.clip.latents
    embeds = {name: torch.zeros(64, 96) for name in ("prompt_embeds", "negative_embeds")}
    embeds |= {name: torch.arange(64) < 3 for name in ("prompt_mask", "negative_mask")}
    header = {"revision": "0123456789abcdef", "dtype": "float32", "spec": json.dumps(OLD_SPEC)}
    store.objects[video_key(DONE)] = VIDEO_BYTES
    for each in (ENCODED, HELD):
        store.objects[prompt_embeds_key(each)] = save(embeds)
    state = header | {"format": "mochi-serve-sample-1", "step": "1", "sha256": "00"}
    store.objects[checkpoint_key(HELD, 1)] = save({"latents": torch.zeros(shape)} | embeds, metadata=state)
    latents = header | {"format": "mochi-serve-latents-1", "model": "mochi-1"}
    store.objects[latents_key(SAMPLED)] = save({"latents": torch.zeros(shape)}, metadata=latents)


@pytest.mark.parametrize("revision", REVISIONS)
async def test_a_data_folder_of_each_version_opens_and_what_waits_in_it_ends(database_url: str, revision: str) -> None:
    write_database(database_url, revision)
    pipeline = Pipeline(database_url, max_attempts=2)
    write_objects(pipeline.store)
    pipeline.start(*VIDEO_STAGES)
    ended = await asyncio.gather(
        *(pipeline.until(each, lambda job: job.state is JobState.COMPLETED) for each in WAITING)
    )
    assert {job.id: job.spec for job in ended} == dict.fromkeys(WAITING, VIDEO)
    assert len({pipeline.store.objects[video_key(each)] for each in WAITING}) == 1, "the same request, the same video"
    assert pipeline.store.objects[video_key(DONE)] == VIDEO_BYTES
    done = await pipeline.registry.get(DONE)
    assert done is not None and (done.state, done.spec) == (JobState.COMPLETED, VIDEO)
    assert [move.note for move in await pipeline.registry.history(DONE) or []] == ["accepted", "moved"]
    if revision >= "0003":
        again = Submission("video_f", "mochi-1", VIDEO, idempotency_key="k", fingerprint=FINGERPRINT)
        assert (await pipeline.registry.submit(again)).job.id == DONE
    await pipeline.close()
