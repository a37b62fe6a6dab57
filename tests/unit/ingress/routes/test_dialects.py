"""The routes of other servers over the same jobs, and requests that wait for their video."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from serve_app.errors import QueueFullError
from serve_app.ingress.routes.videos import MAX_WAIT_S, preferred_wait
from serve_app.jobs import JobError, JobState
from tests.support.http.fakes import FakeServices, shapes_settings
from tests.support.http.memory_http import fed_client
from tests.support.waiting import until

BODY = {"prompt": "a red circle", "seed": 7}
MAKERS = pytest.mark.parametrize(
    ("path", "body"), [("/v1/videos", BODY), ("/v1/videos/generations", BODY), ("/generate", {"text": "a red circle"})]
)


@pytest.fixture
async def hasty() -> AsyncIterator[tuple[FakeServices, httpx.AsyncClient]]:
    """A server that waits for a video no longer than it must."""
    settings = shapes_settings()
    ingress = settings.ingress.model_copy(update={"sync_timeout_s": 0.05})
    services = FakeServices(settings.model_copy(update={"ingress": ingress}))
    async with fed_client(services) as client:
        yield services, client


async def one_job(services: FakeServices) -> str:
    """The id of the only job, once somebody waits for it."""
    await until(lambda: services.feed.watched_jobs)
    (video_id,) = services.memory.jobs
    return video_id


async def test_the_mp4_is_the_answer(client: httpx.AsyncClient, services: FakeServices) -> None:
    asking = asyncio.create_task(client.post("/v1/videos/sync", json=BODY | {"user": "u", "size": "1280x720"}))
    video_id = await one_job(services)
    services.add_file(video_id, "video", b"the mp4")
    services.memory.move(video_id, JobState.DECODING)
    used = {"device_s": 1.25, "seconds": {"sampling.denoise": 1.5}}
    services.memory.move(video_id, JobState.COMPLETED, completed_at=2.0, **used)
    answer = await asking
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"the mp4", "video/mp4")
    assert answer.headers["x-video-id"] == video_id
    assert answer.headers["x-model"] == "mochi-1"
    assert answer.headers["x-inference-time-s"] == "1.250"
    assert json.loads(answer.headers["x-stage-durations"]) == {"sampling.denoise": 1.5}
    assert answer.headers["x-ignored-parameters"] == "user"


async def test_a_form_as_vllm_omni_takes_it(client: httpx.AsyncClient, services: FakeServices) -> None:
    fields = {"prompt": "a red circle", "seconds": "1", "num_inference_steps": "9", "flow_shift": "5.0", "lora": ""}
    parts = {name: (None, value) for name, value in fields.items()}
    asking = asyncio.create_task(client.post("/v1/videos/sync", files=parts))
    video_id = await one_job(services)
    services.add_file(video_id, "video", b"the mp4")
    services.memory.complete(video_id)
    assert (await asking).content == b"the mp4"
    assert services.memory.jobs[video_id].video.num_inference_steps == 9
    assert services.memory.jobs[video_id].requested.ignored == ("flow_shift",)


async def test_the_end_of_the_time_leaves_the_job(hasty: tuple[FakeServices, httpx.AsyncClient]) -> None:
    services, client = hasty
    answer = await client.post("/v1/videos/sync", json=BODY)
    (video_id,) = services.memory.jobs
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (504, "video_unfinished")
    assert video_id in error["message"]
    assert (answer.headers["x-video-id"], answer.headers["x-should-retry"]) == (video_id, "false")
    assert services.memory.jobs[video_id].state is JobState.QUEUED
    services.memory.complete(video_id)
    assert (await client.get(answer.headers["location"])).json()["status"] == "completed"


async def test_a_client_that_goes_away_leaves_the_job(client: httpx.AsyncClient, services: FakeServices) -> None:
    asking = asyncio.create_task(client.post("/v1/videos/sync", json=BODY))
    video_id = await one_job(services)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert services.memory.jobs[video_id].state is JobState.QUEUED


async def test_a_failed_video_is_an_error_with_its_code(client: httpx.AsyncClient, services: FakeServices) -> None:
    asking = asyncio.create_task(client.post("/v1/videos/sync", json=BODY))
    video_id = await one_job(services)
    services.memory.move(video_id, JobState.FAILED, completed_at=1.0, error=JobError("not_finite", "it met a NaN"))
    answer = await asking
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (500, "not_finite")
    assert "it met a NaN" in error["message"] and video_id in error["message"]
    assert (answer.headers["x-video-id"], answer.headers["x-should-retry"]) == (video_id, "false")


async def test_a_cancelled_video_is_an_error(client: httpx.AsyncClient, services: FakeServices) -> None:
    asking = asyncio.create_task(client.post("/v1/videos/sync", json=BODY))
    await services.memory.cancel(await one_job(services))
    answer = await asking
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "cancelled")


async def test_a_deleted_video_is_an_error(client: httpx.AsyncClient, services: FakeServices) -> None:
    asking = asyncio.create_task(client.post("/v1/videos/sync", json=BODY))
    await client.delete(f"/v1/videos/{await one_job(services)}")
    answer = await asking
    assert (answer.status_code, answer.json()["error"]["code"]) in ((404, "video_not_found"), (409, "cancelled"))


async def test_the_same_key_waits_for_the_same_video(client: httpx.AsyncClient, services: FakeServices) -> None:
    headers = {"Idempotency-Key": "k"}
    video_id = (await client.post("/v1/videos", json=BODY, headers=headers)).json()["id"]
    services.add_file(video_id, "video", b"the mp4")
    services.memory.complete(video_id)
    answer = await client.post("/v1/videos/sync", json=BODY, headers=headers)
    assert (answer.content, answer.headers["idempotent-replayed"]) == (b"the mp4", "true")
    assert len(services.memory.jobs) == 1


async def test_a_refusal_makes_no_video(client: httpx.AsyncClient, services: FakeServices) -> None:
    assert (await client.post("/v1/videos/sync", json={"prompt": ""})).status_code == 400
    services.memory.refusals.append(QueueFullError(1, None, 4))
    assert (await client.post("/v1/videos/sync", json=BODY)).status_code == 429
    assert not services.memory.jobs


async def test_generations(client: httpx.AsyncClient, services: FakeServices) -> None:
    body = BODY | {"duration": 1, "aspect_ratio": "16:9", "mode": "std"}
    accepted = await client.post("/v1/videos/generations", json=body)
    video = accepted.json()
    assert (accepted.status_code, video["requested_size"], video["ignored_parameters"]) == (202, "16:9", ["mode"])
    where = accepted.headers["location"]
    assert where == f"/v1/videos/generations/{video['id']}"
    assert (await client.get(where)).json()["status"] == "queued"
    assert (await client.get(f"{where}/download")).status_code == 409
    services.add_file(video["id"], "video", b"the mp4")
    services.memory.complete(video["id"])
    assert (await client.get(f"{where}/download")).content == b"the mp4"
    assert (await client.head(f"{where}/download")).headers["content-length"] == "7"
    assert (await client.post(f"{where}/cancel")).status_code == 409


async def test_a_generation_is_cancelled(client: httpx.AsyncClient) -> None:
    where = (await client.post("/v1/videos/generations", json=BODY)).headers["location"]
    assert (await client.post(f"{where}/cancel")).json()["state"] == "cancelled"


async def test_the_models_and_what_they_take(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/videos/models")
    assert answer.json() == (await client.get("/v1/models")).json()
    assert answer.json()["data"][0]["limits"]["width"]["maximum"] == 128


@MAKERS
async def test_a_request_may_wait_for_its_video(
    client: httpx.AsyncClient, services: FakeServices, path: str, body: dict[str, object]
) -> None:
    asking = asyncio.create_task(client.post(path, json=body, headers={"Prefer": "respond-async, wait=30"}))
    services.memory.complete(await one_job(services))
    answer = await asking
    assert (answer.json()["status"], answer.headers["preference-applied"]) == ("completed", "wait=30")


async def test_derived_videos_may_be_waited_for(client: httpx.AsyncClient, services: FakeServices) -> None:
    source = (await client.post("/v1/videos", json=BODY)).json()["id"]
    for kind, body in (("remix", {"prompt": "a blue circle"}), ("enhance", {})):
        asking = asyncio.create_task(
            client.post(f"/v1/videos/{source}/{kind}", json=body, headers={"Prefer": "wait=30"})
        )
        await until(lambda: services.feed.watched_jobs)
        (watched,) = services.feed.watched_jobs
        services.memory.complete(watched)
        assert (await asking).json()["status"] == "completed"


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("wait=5", 5),
        ("Wait = 5", 5),
        ('respond-async; wait="7"', 7),
        ("handling=lenient, wait=9, x=1", 9),
        ("wait=100000", MAX_WAIT_S),
        ("wait=-1", 0),
        ("wait=x", 0),
        ("wait=1.5", 0),
        ("await=5", 0),
        ("wait", 0),
    ],
)
def test_what_a_preference_says(prefer: str | None, seconds: int) -> None:
    assert preferred_wait(prefer) == seconds


async def test_without_a_preference_the_answer_comes_at_once(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/videos", json=BODY | {"style": "vivid", "user": "u"})
    assert answer.json()["status"] == "queued"
    assert answer.headers["x-ignored-parameters"] == "style, user"
    assert "preference-applied" not in answer.headers
