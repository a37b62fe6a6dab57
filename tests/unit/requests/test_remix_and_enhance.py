"""Remix, enhance, priority and webhooks: the fields of requests that stand for a video that is there."""

from typing import Any

import httpx
import pytest

from serve_app.jobs import JobState, Origin, Relation, Tier
from tests.support.http.fakes import FakeServices
from tests.support.http.keyed_services import keyed_services
from tests.support.http.memory_http import fed_client

SETTINGS: dict[str, Any] = {"negative_prompt": "blur", "size": "96x64", "num_frames": 13, "fps": 12, "seed": 9}
SETTINGS |= {"num_inference_steps": 8, "guidance_scale": 2.5, "exact": True}


async def make(client: httpx.AsyncClient, **fields: object) -> dict[str, Any]:
    answer = await client.post("/v1/videos", json={"prompt": "a red circle", **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def derive(client: httpx.AsyncClient, video_id: str, how: str, **fields: object) -> httpx.Response:
    return await client.post(f"/v1/videos/{video_id}/{how}", json=fields)


def refusal(answer: httpx.Response) -> tuple[int, str | None, str]:
    error = answer.json()["error"]
    return answer.status_code, error["param"], error["code"]


async def test_a_remix_is_the_same_with_another_prompt(client: httpx.AsyncClient, services: FakeServices) -> None:
    first = await make(client, **SETTINGS)
    answer = await derive(client, first["id"], "remix", prompt="a blue circle")
    remix = answer.json()
    assert (remix["remixed_from_video_id"], remix["enhanced_from_video_id"]) == (first["id"], None)
    own = {"id", "prompt", "created_at", "remixed_from_video_id"}
    assert {k: v for k, v in remix.items() if k not in own} == {k: v for k, v in first.items() if k not in own}
    assert services.memory.jobs[remix["id"]].origin == Origin(first["id"], Relation.REMIX)


async def test_enhance_is_the_same_in_more_steps(client: httpx.AsyncClient, services: FakeServices) -> None:
    first = await make(client, **SETTINGS)
    enhanced = (await derive(client, first["id"], "enhance", num_inference_steps=50)).json()
    assert (enhanced["enhanced_from_video_id"], enhanced["remixed_from_video_id"]) == (first["id"], None)
    assert enhanced["num_inference_steps"] == 50
    own = {"id", "num_inference_steps", "created_at", "enhanced_from_video_id"}
    assert {k: v for k, v in enhanced.items() if k not in own} == {k: v for k, v in first.items() if k not in own}
    assert services.memory.jobs[enhanced["id"]].origin == Origin(first["id"], Relation.ENHANCE)


@pytest.mark.parametrize("body", [None, {}])
async def test_enhance_needs_no_body(client: httpx.AsyncClient, services: FakeServices, body: object) -> None:
    first = await make(client)
    arguments = {} if body is None else {"json": body}
    answer = await client.post(f"/v1/videos/{first['id']}/enhance", **arguments)  # type: ignore[arg-type]
    defaults = (await client.get("/v1/models")).json()["data"][0]["defaults"]
    assert answer.json()["num_inference_steps"] == (defaults["enhanced_steps"] or 2 * first["num_inference_steps"])


async def test_enhance_twice_goes_on_to_the_most(client: httpx.AsyncClient) -> None:
    video, steps = await make(client, num_inference_steps=90), []
    for _ in range(3):
        answer = await client.post(f"/v1/videos/{video['id']}/enhance")
        if answer.status_code != 200:
            break
        video = answer.json()
        steps.append(video["num_inference_steps"])
    assert steps == [180, 200]
    assert refusal(answer) == (400, "video_id", "invalid_value")
    assert "200 steps, the most there can be" in answer.json()["error"]["message"]


@pytest.mark.parametrize("steps", [2, 8, 201, 0, "30", 20.5])
async def test_enhance_takes_only_more_steps(client: httpx.AsyncClient, services: FakeServices, steps: object) -> None:
    first = await make(client)
    answer = await derive(client, first["id"], "enhance", num_inference_steps=steps)
    assert refusal(answer) == (400, "num_inference_steps", "invalid_value")
    assert len(services.memory.jobs) == 1


@pytest.mark.parametrize("state", JobState)
async def test_a_video_in_any_state_can_be_remixed_and_enhanced(
    client: httpx.AsyncClient, services: FakeServices, state: JobState
) -> None:
    first = await make(client)
    if state is JobState.COMPLETED:
        services.memory.complete(first["id"])
    elif state is not JobState.QUEUED:
        services.memory.move(first["id"], state)
    assert (await derive(client, first["id"], "remix", prompt="a blue circle")).status_code == 200
    assert (await derive(client, first["id"], "enhance")).status_code == 200


@pytest.mark.parametrize("how", ["remix", "enhance"])
@pytest.mark.parametrize("name", ["size", "seed", "model", "width", "seconds", "exact", "other"])
async def test_other_fields_are_refused_by_name(client: httpx.AsyncClient, how: str, name: str) -> None:
    first = await make(client)
    prompt = {"prompt": "a blue circle"} if how == "remix" else {}
    answer = await derive(client, first["id"], how, **prompt, **{name: 1})
    assert refusal(answer) == (400, name, "unknown_parameter")


async def test_a_remix_needs_a_prompt(client: httpx.AsyncClient) -> None:
    first = await make(client)
    answers = [await derive(client, first["id"], "remix"), await client.post(f"/v1/videos/{first['id']}/remix")]
    for answer in answers:
        assert refusal(answer) == (400, "prompt", "missing_required_parameter")
    assert refusal(await derive(client, first["id"], "enhance", prompt="x")) == (400, "prompt", "unknown_parameter")


@pytest.mark.parametrize("how", ["remix", "enhance"])
@pytest.mark.parametrize("video_id", ["video_" + "0" * 32, "nothing"])
async def test_nothing_is_made_of_nothing(client: httpx.AsyncClient, how: str, video_id: str) -> None:
    assert refusal(await derive(client, video_id, how, prompt="x")) == (404, "video_id", "video_not_found")


async def test_idempotency_tells_them_apart(client: httpx.AsyncClient, services: FakeServices) -> None:
    one, other = await make(client, seed=1), await make(client, seed=1)
    headers = {"Idempotency-Key": "k"}
    url, body = "/v1/videos/{}/remix", {"prompt": "a blue circle"}
    first = await client.post(url.format(one["id"]), json=body, headers=headers)
    again = await client.post(url.format(one["id"]), json=body, headers=headers)
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    refused = await client.post(url.format(other["id"]), json=body, headers=headers)
    assert refusal(refused) == (409, "Idempotency-Key", "idempotency_key_reused")
    assert len(services.memory.jobs) == 3


async def test_the_origin_may_be_deleted(client: httpx.AsyncClient) -> None:
    first = await make(client)
    remix = (await derive(client, first["id"], "remix", prompt="a blue circle")).json()
    assert (await client.delete(f"/v1/videos/{first['id']}")).status_code == 200
    assert (await client.get(f"/v1/videos/{remix['id']}")).json()["remixed_from_video_id"] == first["id"]


@pytest.mark.parametrize("how", ["remix", "enhance"])
async def test_priority_and_webhook_are_the_requests_own(
    client: httpx.AsyncClient, services: FakeServices, how: str
) -> None:
    first = await make(client, priority="batch")
    prompt = {"prompt": "a blue circle"} if how == "remix" else {}
    made = (await derive(client, first["id"], how, **prompt)).json()
    assert (made["priority"], made["webhook_url"]) == ("standard", None)
    urgent = (await derive(client, first["id"], how, **prompt, priority="interactive")).json()
    assert services.memory.jobs[urgent["id"]].tier is Tier.INTERACTIVE


@pytest.mark.parametrize("path", ["/v1/videos", "/generate", "/v1/videos/{}/remix", "/v1/videos/{}/enhance"])
@pytest.mark.parametrize("url", ["http://127.0.0.1/x", "http://[::1]/", "ftp://8.8.8.8/", "x", "", 5, "http://a" * 400])
async def test_webhooks_go_nowhere_private(
    client: httpx.AsyncClient, services: FakeServices, path: str, url: object
) -> None:
    first = await make(client)
    prompt = {"text": "a"} if path == "/generate" else {} if "enhance" in path else {"prompt": "a"}
    answer = await client.post(path.format(first["id"]), json=prompt | {"webhook_url": url})
    assert refusal(answer) == (400, "webhook_url", "invalid_value")
    assert len(services.memory.jobs) == 1


async def test_a_public_webhook_is_kept(client: httpx.AsyncClient, services: FakeServices) -> None:
    url = "https://8.8.8.8/done?user=7"
    video = await make(client, webhook_url=url)
    assert video["webhook_url"] == url == services.memory.jobs[video["id"]].webhook_url


@pytest.mark.parametrize(
    ("highest", "requested", "tier"),
    [
        (Tier.INTERACTIVE, None, "standard"),
        (Tier.INTERACTIVE, "interactive", "interactive"),
        (Tier.STANDARD, "interactive", None),
        (Tier.STANDARD, None, "standard"),
        (Tier.BATCH, None, "batch"),
        (Tier.BATCH, "standard", None),
        (Tier.BATCH, "batch", "batch"),
    ],
)
async def test_no_priority_above_the_tenants(highest: Tier, requested: str | None, tier: str | None) -> None:
    services, headers = keyed_services("acme", highest=highest)
    async with fed_client(services) as client:
        body = {"prompt": "a red circle"} | ({} if requested is None else {"priority": requested})
        answer = await client.post("/v1/videos", json=body, headers=headers["acme"])
        if tier is None:
            assert refusal(answer) == (403, "priority", "priority_not_allowed")
            assert services.memory.jobs == {}
        else:
            assert answer.json()["priority"] == tier
