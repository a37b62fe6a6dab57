"""What the headers of a request for a video say, and what a repeated request is answered with."""

import asyncio
from dataclasses import replace

import httpx
import pytest

from serve_app.errors import QueueFullError
from serve_app.jobs import Acceptance, JobState, Submission
from tests.support.http.fakes import FakeServices, MemoryRegistry

BODY = {"prompt": "a red circle", "num_inference_steps": 8}
ROUTES = [("/v1/videos", "prompt", 200), ("/generate", "text", 202)]


def key(text: str, tenant: str = "default") -> dict[str, str]:
    return {"Idempotency-Key": text, "OpenAI-Organization": tenant}


@pytest.mark.parametrize(("path", "prompt", "status"), ROUTES)
async def test_the_same_key_and_body_are_the_same_video(
    client: httpx.AsyncClient, services: FakeServices, path: str, prompt: str, status: int
) -> None:
    first = await client.post(path, json={prompt: "a red circle"}, headers=key("k"))
    services.memory.move(first.json()["id"], JobState.ENCODING)
    again = await client.post(path, json={prompt: "a red circle"}, headers=key("k"))
    assert (first.status_code, again.status_code) == (status, status)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers.get("location") == first.headers.get("location")
    assert (again.json()["id"], again.json()["seed"]) == (first.json()["id"], first.json()["seed"])
    assert again.json()["state"] == "encoding"
    assert len(services.memory.jobs) == 1


async def test_the_body_may_be_written_in_another_way(client: httpx.AsyncClient, services: FakeServices) -> None:
    text = {name: str(value) for name, value in BODY.items()} | {"size": "96x96", "priority": "standard"}
    answers = [
        await client.post("/v1/videos", json=BODY, headers=key("k")),
        await client.post("/v1/videos", data=text, headers=key("k")),
        await client.post("/v1/videos", files={n: (None, v) for n, v in text.items()}, headers=key("k")),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert len({answer.json()["id"] for answer in answers}) == len(services.memory.jobs) == 1


@pytest.mark.parametrize("change", [{"prompt": "a blue circle"}, {"seed": 1}, {"priority": "batch"}, {"width": 80}])
async def test_another_body_under_the_key_is_refused(
    client: httpx.AsyncClient, services: FakeServices, change: dict[str, object]
) -> None:
    await client.post("/v1/videos", json=BODY, headers=key("k"))
    refused = await client.post("/v1/videos", json=BODY | change, headers=key("k"))
    assert refused.status_code == 409
    error = refused.json()["error"]
    assert (error["param"], error["code"]) == ("Idempotency-Key", "idempotency_key_reused")
    assert '"k"' in error["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert len(services.memory.jobs) == 1


async def test_a_key_belongs_to_its_tenant(client: httpx.AsyncClient, services: FakeServices) -> None:
    made = [await client.post("/v1/videos", json=BODY, headers=key("k", tenant)) for tenant in ("a", "b")]
    assert [answer.json()["tenant"] for answer in made] == ["a", "b"]
    assert len(services.memory.jobs) == 2
    assert all("idempotent-replayed" not in answer.headers for answer in made)


async def test_without_a_key_every_request_is_a_new_video(client: httpx.AsyncClient, services: FakeServices) -> None:
    for _ in range(2):
        answer = await client.post("/v1/videos", json=BODY)
        assert "idempotent-replayed" not in answer.headers
    assert len(services.memory.jobs) == 2


async def test_a_refused_request_leaves_its_key_free(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.memory.refusals = [QueueFullError(10, None, 7)]
    refused = await client.post("/v1/videos", json=BODY, headers=key("k"))
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "7")
    assert refused.json()["error"]["code"] == "queue_full"
    assert (await client.post("/v1/videos", json={"prompt": ""}, headers=key("k"))).status_code == 400
    made = await client.post("/v1/videos", json=BODY, headers=key("k"))
    assert made.status_code == 200
    assert "idempotent-replayed" not in made.headers


async def test_requests_at_once_with_one_key_are_one_video(client: httpx.AsyncClient, services: FakeServices) -> None:
    answers = await asyncio.gather(*(client.post("/v1/videos", json=BODY, headers=key("k")) for _ in range(8)))
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1


class RepeatingRegistry(MemoryRegistry):
    """Tells each job as a repeat: the link asked it again after an answer was lost."""

    async def submit(self, submission: Submission) -> Acceptance:
        return replace(await super().submit(submission), repeated=True)


async def test_an_answer_lost_inside_is_no_replay_to_the_client(
    client: httpx.AsyncClient, services: FakeServices
) -> None:
    object.__setattr__(services, "registry", RepeatingRegistry())
    first = await client.post("/v1/videos", json=BODY, headers=key("k"))
    again = await client.post("/v1/videos", json=BODY, headers=key("k"))
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize("path", ["/v1/videos", "/generate"])
@pytest.mark.parametrize("tenant", [b"", b"a b", b"a" * 65, b"a/b", "é".encode(), b"acme,other"])
async def test_a_bad_tenant_is_refused_by_name(
    client: httpx.AsyncClient, services: FakeServices, path: str, tenant: bytes
) -> None:
    answer = await client.post(path, json=BODY, headers=[(b"OpenAI-Organization", tenant)])
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("OpenAI-Organization", "invalid_value")
    assert "It must be 1 to 64 of the characters A-Z, a-z, 0-9" in error["message"]
    assert services.memory.calls["submit"] == 0


@pytest.mark.parametrize("tenant", ["a", "A" * 64, "acme-1.x_y", "org-123"])
async def test_a_tenant_is_kept_as_given(client: httpx.AsyncClient, services: FakeServices, tenant: str) -> None:
    answer = await client.post("/v1/videos", json=BODY, headers={"OpenAI-Organization": tenant})
    assert answer.json()["tenant"] == tenant == services.memory.jobs[answer.json()["id"]].tenant


@pytest.mark.parametrize("text", [b"", b"k" * 256, "schlüssel".encode(), b"a\x01b", b"\x7f"])
async def test_a_bad_key_is_refused_by_name(client: httpx.AsyncClient, services: FakeServices, text: bytes) -> None:
    answer = await client.post("/v1/videos", json=BODY, headers=[(b"Idempotency-Key", text)])
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("Idempotency-Key", "invalid_value")
    assert "It must be 1 to 255 printable ASCII characters." in error["message"]
    assert len(error["message"]) < 300
    assert services.memory.calls["submit"] == 0


@pytest.mark.parametrize("text", ["k", "k" * 255, "a key, with {all} \"sorts\" of 'signs' ~!"])
async def test_a_key_is_kept_as_given(client: httpx.AsyncClient, services: FakeServices, text: str) -> None:
    assert (await client.post("/v1/videos", json=BODY, headers=key(text))).status_code == 200
    assert list(services.memory.keys) == [("default", text)]
