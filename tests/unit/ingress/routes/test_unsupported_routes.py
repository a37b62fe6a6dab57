"""OpenAI's routes for what this model cannot do: refused in words, without looking at the body."""

import httpx
import pytest

from tests.support.http.fakes import FakeServices

ROUTES = [
    ("POST", "/v1/videos/edits"),
    ("POST", "/v1/videos/extensions"),
    ("POST", "/v1/videos/characters"),
    ("GET", "/v1/videos/characters/char_1"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_a_clear_refusal(client: httpx.AsyncClient, services: FakeServices, method: str, path: str) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "unsupported_operation")
    assert error["message"].startswith("This model cannot ")
    assert services.memory.jobs == {}


@pytest.mark.parametrize("path", [path for method, path in ROUTES if method == "POST"])
@pytest.mark.parametrize("body", [b"", b"{", b"\xff" * 100, b'{"prompt": "a", "video": {"id": "video_1"}}'])
async def test_whatever_the_body_is(client: httpx.AsyncClient, path: str, body: bytes) -> None:
    answer = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_operation")


async def test_they_hide_no_video(client: httpx.AsyncClient) -> None:
    """The words in their paths are no ids."""
    for word in ("edits", "extensions", "characters"):
        answer = await client.get(f"/v1/videos/{word}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "video_not_found")


async def test_another_method_is_405(client: httpx.AsyncClient) -> None:
    answer = await client.put("/v1/videos/characters/char_1")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
