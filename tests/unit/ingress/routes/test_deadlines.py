"""Cancel-After on every route that makes videos: header and field, answers, errors, repeats."""

import httpx
import pytest

from tests.support.http.fakes import FakeServices

MAKERS = {
    "/v1/videos": {"prompt": "a red circle"},
    "/generate": {"text": "a red circle"},
    "/v1/videos/generations": {"prompt": "a red circle"},
    "/v1/videos/{}/remix": {"prompt": "a blue circle"},
    "/v1/videos/{}/enhance": {},
}
makers = pytest.mark.parametrize("path", MAKERS)


@pytest.fixture
async def source(client: httpx.AsyncClient) -> str:
    """The id of a video that others are made from."""
    return str((await client.post("/v1/videos", json={"prompt": "a red circle", "cancel_after": 60})).json()["id"])


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["param"], error["code"]


@makers
async def test_header_and_field_say_when_it_is_cancelled(client: httpx.AsyncClient, source: str, path: str) -> None:
    url, body = path.format(source), MAKERS[path]
    for answer in (
        await client.post(url, json=body, headers={"Cancel-After": "1m30s"}),
        await client.post(url, json=body | {"cancel_after": 90}),
        await client.post(url, data=body | {"cancel_after": "90"}),
        await client.post(url, json=body | {"cancel_after": "90s"}, headers={"cancel-after": "90"}),
    ):
        assert answer.is_success, answer.text
        assert answer.json()["cancel_at"] == answer.json()["created_at"] + 90
    assert (await client.get(f"/status/{answer.json()['id']}")).json()["cancel_at"] == answer.json()["cancel_at"]


@makers
async def test_without_it_there_is_no_deadline(client: httpx.AsyncClient, source: str, path: str) -> None:
    """Nor does a video have that of the one it is made from."""
    answer = await client.post(path.format(source), json=MAKERS[path] | {"cancel_after": None})
    assert answer.is_success and answer.json()["cancel_at"] is None


async def test_enhance_needs_no_body_for_it(client: httpx.AsyncClient, source: str) -> None:
    answer = await client.post(f"/v1/videos/{source}/enhance", headers={"Cancel-After": "7d"})
    assert answer.json()["cancel_at"] == answer.json()["created_at"] + 604_800


@makers
async def test_a_wrong_one_is_named(client: httpx.AsyncClient, services: FakeServices, source: str, path: str) -> None:
    url, body = path.format(source), MAKERS[path]
    for wrong in ("", "soon", "4s", "8d"):
        answer = await client.post(url, json=body, headers={"Cancel-After": wrong})
        assert refusal(answer) == (400, "Cancel-After", "invalid_value")
        assert "from 5 seconds to 7 days" in answer.json()["error"]["message"]
    fields: list[object] = ["", "soon", 4, 604_801, True, [], 10**400]
    for field in fields:
        answer = await client.post(url, json=body | {"cancel_after": field})
        assert refusal(answer) == (400, "cancel_after", "invalid_value")
    answer = await client.post(url, json=body | {"cancel_after": "5m"}, headers={"Cancel-After": "90s"})
    assert refusal(answer) == (400, "cancel_after", "conflicting_parameters")
    assert list(services.memory.jobs) == [source]


async def test_a_repeated_request_keeps_the_first_deadline(client: httpx.AsyncClient, services: FakeServices) -> None:
    body, key = {"prompt": "a red circle"}, {"Idempotency-Key": "k"}
    first = await client.post("/v1/videos", json=body | {"cancel_after": "90s"}, headers=key)
    again = await client.post("/v1/videos", json=body, headers=key | {"Cancel-After": "1m30s"})
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    for other in ({}, {"cancel_after": "91s"}):
        answer = await client.post("/v1/videos", json=body | other, headers=key)
        assert refusal(answer) == (409, "Idempotency-Key", "idempotency_key_reused")
    assert len(services.memory.jobs) == 1
