"""The routes under /v1, asked by the `openai` package over a real connection."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import httpx
import openai
import pytest
from openai.types import Video
from standardwebhooks import Webhook

from serve_app.errors import QueueFullError
from serve_app.jobs import JobError, JobState, Tier
from tests.support.http.fakes import FakeServices
from tests.support.http.keyed_services import keyed_services
from tests.support.http.memory_http import serving

UNKNOWN = "video_" + "0" * 32


@pytest.fixture
async def url(services: FakeServices) -> AsyncIterator[str]:
    async with serving(services, services.memory) as url:
        yield url


@pytest.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_create_sends_multipart_with_own_fields(client: openai.AsyncOpenAI, services: FakeServices) -> None:
    own: dict[str, object] = {
        "num_inference_steps": 8,
        "guidance_scale": 2.5,
        "seed": 5,
        "negative_prompt": "blue",
        "fps": 12,
    }
    own |= {"exact": True, "priority": "interactive"}
    video = await client.videos.create(
        prompt="a red circle",
        model="mochi-1",
        seconds="2",  # type: ignore[arg-type]
        size="96x64",  # type: ignore[arg-type]
        extra_body=own,
    )
    assert (video.object, video.status, video.progress, video.size) == ("video", "queued", 0, "96x64")
    job = services.memory.jobs[video.id]
    assert (job.tier, job.tenant) == (Tier.INTERACTIVE, "default")
    spec = job.video
    assert (spec.width, spec.height, spec.num_frames, spec.fps) == (96, 64, 25, 12)
    assert (spec.num_inference_steps, spec.guidance_scale, spec.seed) == (8, 2.5, 5)
    assert (spec.negative_prompt, spec.exact) == ("blue", True)


async def test_create_and_poll(client: openai.AsyncOpenAI, services: FakeServices) -> None:
    polling = asyncio.create_task(client.videos.create_and_poll(prompt="a red circle"))
    while not services.memory.jobs:
        await asyncio.sleep(0.01)
    services.memory.complete(next(iter(services.memory.jobs)))
    video = await polling
    assert (video.status, video.progress, video.seconds) == ("completed", 100, "2")
    assert video.completed_at is not None


async def test_retrieve(client: openai.AsyncOpenAI, services: FakeServices) -> None:
    made = await client.videos.create(prompt="a red circle")
    services.memory.move(made.id, JobState.ENCODING, progress=0.015)
    answer = await client.videos.with_raw_response.retrieve(made.id)
    assert answer.headers["openai-poll-after-ms"] == "250"
    assert (answer.parse().status, answer.parse().progress) == ("in_progress", 1)


async def test_a_failed_video(client: openai.AsyncOpenAI, services: FakeServices) -> None:
    made = await client.videos.create(prompt="a red circle")
    services.memory.move(made.id, JobState.FAILED, error=JobError("out_of_memory", "no room"))
    error = (await client.videos.retrieve(made.id)).error
    assert error is not None
    assert (error.code, error.message) == ("out_of_memory", "no room")


async def test_list_follows_its_pages(client: openai.AsyncOpenAI) -> None:
    made = [(await client.videos.create(prompt=f"{i}")).id for i in range(7)]
    newest_first = [video.id async for video in client.videos.list(limit=3)]
    oldest_first = [video.id async for video in client.videos.list(limit=2, order="asc", after=made[1])]
    assert newest_first == made[::-1]
    assert oldest_first == made[2:]


async def test_download_content(client: openai.AsyncOpenAI, services: FakeServices) -> None:
    video_id = (await client.videos.create(prompt="a red circle")).id
    services.memory.complete(video_id)
    services.add_file(video_id, "video", b"mp4" * 10_000)
    services.add_file(video_id, "thumbnail", b"webp")
    assert (await client.videos.download_content(video_id)).content == b"mp4" * 10_000
    assert (await client.videos.download_content(video_id, variant="thumbnail")).content == b"webp"


async def test_download_a_preview(client: openai.AsyncOpenAI, services: FakeServices) -> None:
    video_id = (await client.videos.create(prompt="a red circle")).id
    services.memory.previews[video_id] = b"webp so far"
    preview = await client.videos.download_content(video_id, variant="preview")  # type: ignore[arg-type]
    assert preview.content == b"webp so far"


async def test_cancel(client: openai.AsyncOpenAI, services: FakeServices) -> None:
    made = await client.videos.create(prompt="a red circle")
    services.memory.move(made.id, JobState.ENCODING)
    cancelled = await client.post(f"/videos/{made.id}/cancel", cast_to=Video)
    assert (cancelled.id, cancelled.status) == (made.id, "failed")
    assert cancelled.error is not None
    assert cancelled.error.code == "cancelled"
    assert await client.videos.retrieve(made.id) == cancelled


async def test_cancel_too_late_is_not_repeated(client: openai.AsyncOpenAI, services: FakeServices) -> None:
    video_id = (await client.videos.create(prompt="a red circle")).id
    services.memory.complete(video_id)
    with pytest.raises(openai.ConflictError) as caught:
        await client.with_options(max_retries=2).post(f"/videos/{video_id}/cancel", cast_to=Video)
    assert (caught.value.param, caught.value.code) == ("video_id", "video_final")
    assert services.memory.calls["cancel"] == 1


async def test_a_video_that_no_sampler_holds(client: openai.AsyncOpenAI, services: FakeServices) -> None:
    services.memory.announce_all(max_tokens=80)
    more = {"num_frames": 25}
    fits = await client.videos.create(prompt="a red circle", size="64x64", extra_body=more)  # type: ignore[arg-type]
    assert fits.status == "queued"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.videos.create(prompt="a red circle", size="96x64", extra_body=more)  # type: ignore[arg-type]
    assert (caught.value.param, caught.value.code) == ("size", "too_large")
    assert "120 tokens" in caught.value.message
    assert "96x64 with 13 frames or 80x48 with 25 frames" in caught.value.message
    assert len(services.memory.jobs) == 1


async def test_a_bad_request(client: openai.AsyncOpenAI, services: FakeServices) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.videos.create(prompt="a red circle", size="1280x700")  # type: ignore[arg-type]
    assert (caught.value.param, caught.value.code) == ("size", "invalid_value")
    assert 'got "1280x700"' in caught.value.message
    assert services.memory.jobs == {}


async def test_a_reference_image(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.videos.create(prompt="a", input_reference=b"\xff\xd8 jpeg")
    assert (caught.value.param, caught.value.code) == ("input_reference", "unsupported_parameter")


async def test_an_unknown_video(client: openai.AsyncOpenAI) -> None:
    for call in (client.videos.retrieve(UNKNOWN), client.videos.download_content("nothing")):
        with pytest.raises(openai.NotFoundError) as caught:
            await call
        assert (caught.value.param, caught.value.code) == ("video_id", "video_not_found")


async def test_an_unknown_cursor(client: openai.AsyncOpenAI) -> None:
    for after in (UNKNOWN, "nothing"):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.videos.list(after=after)
        assert caught.value.param == "after"


@pytest.mark.parametrize("limit", [0, 101, -1])
async def test_limits_of_a_page(client: openai.AsyncOpenAI, limit: int) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.videos.list(limit=limit)
    assert caught.value.param == "limit"


async def test_a_video_that_is_not_ready(client: openai.AsyncOpenAI) -> None:
    video_id = (await client.videos.create(prompt="a red circle")).id
    with pytest.raises(openai.ConflictError) as caught:
        await client.videos.download_content(video_id)
    assert caught.value.code == "video_not_ready"


async def test_the_organization_is_the_tenant(url: str, services: FakeServices) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", organization="acme") as client:
        video = await client.videos.create(prompt="a red circle")
        assert services.memory.jobs[video.id].tenant == "acme"
        assert (await client.videos.retrieve(video.id)).model_dump()["tenant"] == "acme"


async def test_a_full_queue_is_asked_again(client: openai.AsyncOpenAI, services: FakeServices) -> None:
    services.memory.refusals = [QueueFullError(10, None, 1)]
    video = await client.with_options(max_retries=1).videos.create(prompt="a red circle")
    assert services.memory.calls["submit"] == 2
    assert list(services.memory.jobs) == [video.id]


async def test_a_queue_that_stays_full(client: openai.AsyncOpenAI, services: FakeServices) -> None:
    services.memory.refusals = [QueueFullError(10, None, 1), QueueFullError(5, "default", 1)]
    with pytest.raises(openai.RateLimitError) as caught:
        await client.with_options(max_retries=1).videos.create(prompt="a red circle")
    assert (caught.value.code, caught.value.type) == ("tenant_queue_full", "rate_limit_error")
    assert caught.value.response.headers["retry-after"] == "1"
    assert (services.memory.calls["submit"], services.memory.jobs) == (2, {})


async def test_an_idempotency_key_by_extra_headers(client: openai.AsyncOpenAI, services: FakeServices) -> None:
    headers = {"Idempotency-Key": "order-17"}
    create = client.videos.with_raw_response.create
    first = await create(prompt="a red circle", extra_headers=headers)
    again = await create(prompt="a red circle", extra_headers=headers)
    assert again.parse() == first.parse()
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    with pytest.raises(openai.ConflictError) as caught:
        await client.with_options(max_retries=2).videos.create(prompt="a blue circle", extra_headers=headers)
    assert (caught.value.param, caught.value.code) == ("Idempotency-Key", "idempotency_key_reused")
    assert (services.memory.calls["submit"], len(services.memory.jobs)) == (3, 1)


async def test_a_lost_answer_is_safe_to_repeat_with_a_key(client: openai.AsyncOpenAI, services: FakeServices) -> None:
    services.memory.lost_answers = 1
    repeating = client.with_options(max_retries=1)
    video = await repeating.videos.create(prompt="a red circle", extra_headers={"Idempotency-Key": "order-18"})
    assert services.memory.calls["submit"] == 2
    assert list(services.memory.jobs) == [video.id]


async def test_a_registry_that_is_away(client: openai.AsyncOpenAI, services: FakeServices) -> None:
    services.memory.reachable = False
    with pytest.raises(openai.InternalServerError) as caught:
        await client.videos.create(prompt="a red circle")
    assert (caught.value.status_code, caught.value.code) == (503, "registry_unavailable")
    assert caught.value.response.headers["retry-after"] == "2"


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["mochi-1"]


async def test_a_body_too_large_over_a_real_connection(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        answer = await client.post("/v1/videos", json={"prompt": "x" * 2_000_000})
        assert answer.status_code == 413
        assert (await client.post("/v1/videos", json={"prompt": "x"})).status_code == 200


async def test_delete(client: openai.AsyncOpenAI, services: FakeServices) -> None:
    video_id = (await client.videos.create(prompt="a red circle")).id
    for _ in range(2):
        deleted = await client.videos.delete(video_id)
        assert (deleted.id, deleted.object, deleted.deleted) == (video_id, "video.deleted", True)
    with pytest.raises(openai.NotFoundError):
        await client.videos.retrieve(video_id)
    with pytest.raises(openai.NotFoundError):
        await client.videos.delete(UNKNOWN)
    assert services.memory.jobs == {}


async def test_remix(client: openai.AsyncOpenAI) -> None:
    first = await client.videos.create(prompt="a red circle", extra_body={"seed": 5})
    remix = await client.videos.remix(first.id, prompt="a blue circle")
    assert (remix.remixed_from_video_id, remix.prompt, remix.size) == (first.id, "a blue circle", first.size)
    assert remix.model_dump()["seed"] == 5
    with pytest.raises(openai.NotFoundError):
        await client.videos.remix(UNKNOWN, prompt="a blue circle")


async def test_enhance(client: openai.AsyncOpenAI) -> None:
    first = await client.videos.create(prompt="a red circle")
    enhanced = await client.post(f"/videos/{first.id}/enhance", cast_to=Video)
    assert enhanced.model_dump()["enhanced_from_video_id"] == first.id


async def test_poll(client: openai.AsyncOpenAI, services: FakeServices) -> None:
    video_id = (await client.videos.create(prompt="a red circle")).id
    polling = asyncio.create_task(client.videos.poll(video_id, poll_interval_ms=10))
    services.memory.move(video_id, JobState.FAILED, error=JobError("out_of_memory", "no room"))
    video = await polling
    assert (video.status, video.error and video.error.code) == ("failed", "out_of_memory")


async def test_the_spritesheet_and_a_download_as_a_stream(client: openai.AsyncOpenAI, services: FakeServices) -> None:
    video_id = (await client.videos.create(prompt="a red circle")).id
    services.memory.complete(video_id)
    services.add_file(video_id, "video", b"mp4" * 10_000)
    services.add_file(video_id, "spritesheet", b"sprites")
    sheet = await client.videos.download_content(video_id, variant="spritesheet")
    assert sheet.content == b"sprites"
    async with client.videos.with_streaming_response.download_content(video_id) as answer:
        assert answer.headers["content-type"] == "video/mp4"
        assert b"".join([part async for part in answer.iter_bytes()]) == b"mp4" * 10_000


async def test_what_the_model_cannot_do(client: openai.AsyncOpenAI) -> None:
    videos = client.videos
    for call in (
        videos.edit(prompt="a blue circle", video=b"mp4"),
        videos.extend(prompt="on", seconds="4", video=b"mp4"),
        videos.create_character(name="Ann", video=b"mp4"),
        videos.get_character("char_1"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            await call
        assert (caught.value.code, caught.value.param) == ("unsupported_operation", None)


async def test_the_video_is_openais_with_ours_beside(client: openai.AsyncOpenAI) -> None:
    answer = await client.videos.with_raw_response.create(prompt="a red circle")
    video = answer.parse()
    assert {name for name in Video.model_fields if getattr(video, name, "missing") == "missing"} == set()
    assert {"state", "step", "seed", "priority", "tenant", "enhanced_from_video_id"} <= set(video.model_extra or ())
    assert answer.http_response.json() == video.model_dump(mode="json")


async def test_json_is_read_as_multipart_is(url: str, client: openai.AsyncOpenAI, services: FakeServices) -> None:
    body = {"prompt": "a red circle", "seconds": "1", "size": "64x64", "seed": 3}
    await client.post("/videos", cast_to=Video, body=body)
    await client.videos.create(prompt="a red circle", seconds="1", size="64x64", extra_body={"seed": 3})  # type: ignore[arg-type]
    one, other = services.memory.jobs.values()
    assert one.spec == other.spec


async def test_the_synchronous_client(url: str, services: FakeServices) -> None:
    def use() -> list[str]:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            made = [client.videos.create(prompt="a red circle").id for _ in range(3)]
            assert [video.id for video in client.videos.list(limit=2)] == made[::-1]
            assert client.videos.retrieve(made[0]).status == "queued"
            remix = client.videos.remix(made[0], prompt="a blue circle")
            assert client.videos.delete(remix.id).deleted
            client.post(f"/videos/{made[1]}/cancel", cast_to=Video)
            assert client.videos.poll(made[1]).status == "failed"
            with pytest.raises(openai.BadRequestError):
                client.videos.create(prompt="")
            with pytest.raises(openai.BadRequestError):
                client.videos.create_character(name="Ann", video=b"mp4")
            return made

    made = await asyncio.to_thread(use)
    services.memory.complete(made[0])
    services.add_file(made[0], "video", b"mp4")

    def download() -> bytes:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            return client.videos.download_content(made[0]).content

    assert await asyncio.to_thread(download) == b"mp4"


async def test_keys() -> None:
    services, headers = keyed_services("acme", "globex", highest=Tier.STANDARD)
    key = headers["acme"]["Authorization"].removeprefix("Bearer ")
    async with (
        serving(services, services.memory) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client,
    ):
        video = await client.videos.create(prompt="a red circle")
        assert services.memory.jobs[video.id].tenant == "acme"
        with pytest.raises(openai.PermissionDeniedError) as forbidden:
            await client.videos.create(prompt="a red circle", extra_body={"priority": "interactive"})
        assert (forbidden.value.param, forbidden.value.code) == ("priority", "priority_not_allowed")
        with pytest.raises(openai.AuthenticationError) as mismatched:
            await client.with_options(organization="globex").videos.retrieve(video.id)
        assert mismatched.value.code == "mismatched_organization"
        with pytest.raises(openai.AuthenticationError) as unknown:
            await client.with_options(api_key="ms-" + "A" * 43).videos.list()
        assert unknown.value.code == "invalid_api_key"
        other = headers["globex"]["Authorization"].removeprefix("Bearer ")
        with pytest.raises(openai.NotFoundError):
            await client.with_options(api_key=other).videos.retrieve(video.id)


async def test_a_rate_limit() -> None:
    services, headers = keyed_services("acme", requests_per_minute=2)
    key = headers["acme"]["Authorization"].removeprefix("Bearer ")
    async with (
        serving(services, services.memory) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client,
    ):
        answer = await client.videos.with_raw_response.create(prompt="a red circle")
        limits = {name: value for name, value in answer.headers.items() if name.startswith("x-ratelimit")}
        assert limits["x-ratelimit-limit-requests"] == "2"
        assert limits["x-ratelimit-remaining-requests"] == "1"
        assert "x-ratelimit-reset-requests" in limits
        await client.videos.list()
        with pytest.raises(openai.RateLimitError) as caught:
            await client.videos.list()
        assert caught.value.code == "rate_limit_exceeded"
        assert int(caught.value.response.headers["retry-after"]) > 0


async def test_a_store_that_is_away(client: openai.AsyncOpenAI, services: FakeServices) -> None:
    video_id = (await client.videos.create(prompt="a red circle")).id
    services.memory.complete(video_id)
    services.store.reachable = False
    with pytest.raises(openai.InternalServerError) as caught:
        await client.videos.download_content(video_id)
    assert (caught.value.status_code, caught.value.code) == (503, "storage_unavailable")


async def test_an_events_signature_is_checked(client: openai.AsyncOpenAI) -> None:
    secret = "whsec_" + "A" * 32
    body = '{"id":"evt_1","object":"event","created_at":1790000000,"type":"video.completed","data":{"id":"video_1"}}'
    now = datetime.now(UTC)
    headers = {
        "webhook-id": "evt_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign("evt_1", now, body),
    }
    event = client.webhooks.unwrap(body, headers, secret=secret)
    assert (event.type, event.data.id) == ("video.completed", "video_1")  # type: ignore[union-attr]
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body.replace("video_1", "video_2"), headers, secret=secret)
