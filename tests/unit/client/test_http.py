"""What a client sends, and how it reads answers, without a server."""

import json

import httpx
import pytest

from serve_app.client.errors import UnreachableError, UsageError, refused_error
from serve_app.client.http import Client, Patience, checked_key, checked_url, video_path


async def test_another_kind_of_server_is_an_error() -> None:
    async def page(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="<html>")

    async with Client(transport=httpx.MockTransport(page)) as client:
        with pytest.raises(UnreachableError, match="is no mochi-serve"):
            await client.models()


async def test_the_servers_clock_counts() -> None:
    dates = ["Sat, 01 Jan 2000 00:00:00 GMT", "yesterday"]

    async def models(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Date": dates.pop(0)}, json={})

    async with Client(transport=httpx.MockTransport(models)) as client:
        for _ in range(2):
            await client.models()
            assert 946_684_800 <= client.now < 946_684_800 + 3600


async def test_patience_ends_and_is_renewed() -> None:
    error = UnreachableError("away")
    patience = Patience(0.4)
    await patience.pause_after(error)
    with pytest.raises(UnreachableError):
        for _ in range(10):
            await patience.pause_after(error)
    patience.reset()
    await patience.pause_after(error)


@pytest.mark.parametrize(
    "body", [b"", b"<h1>Bad gateway</h1>", b"[]", b'{"error": "text"}', b'{"error": {"message": 3}}']
)
def test_errors_of_other_servers_have_a_message(body: bytes) -> None:
    error = refused_error(httpx.Response(502, content=body))
    assert error.message and error.temporary and error.envelope()["error"]["type"] == "server_error"


@pytest.mark.parametrize(
    ("given_url", "used"),
    [("http://host:1", "http://host:1"), ("http://host/", "http://host"), ("https://host/a/v1/", "https://host/a")],
)
def test_urls_with_and_without_v1_are_the_same(given_url: str, used: str) -> None:
    assert str(checked_url(given_url)) == used


@pytest.mark.parametrize("url", ["", "host:8000", "ftp://host", "http://", "http://[", "http://host:99999999"])
def test_wrong_urls_are_wrong_usage(url: str) -> None:
    with pytest.raises(UsageError, match="http://127.0.0.1:8000"):
        checked_url(url)


@pytest.mark.parametrize("key", ["a b", "a\nb", "schlüssel", ""])
def test_keys_that_cannot_be_sent_are_refused_without_being_shown(key: str) -> None:
    with pytest.raises(UsageError) as caught:
        checked_key(key)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("video_id", ["", "..", "a/b", "a?b", "video 1", "x" * 129])
def test_what_is_no_id_is_not_sent(video_id: str) -> None:
    with pytest.raises(UsageError):
        video_path(video_id)


async def test_what_is_made_from_a_video_may_have_a_deadline() -> None:
    bodies: list[bytes] = []

    async def make(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        return httpx.Response(200, json={})

    video_id = "video_" + "0" * 32
    async with Client(transport=httpx.MockTransport(make)) as client:
        for cancel_after in (None, "90s"):
            await client.remix(video_id, "a", "k", cancel_after)
            await client.enhance(video_id, None, "k", cancel_after)
    deadline = {"cancel_after": "90s"}
    assert list(map(json.loads, bodies)) == [{"prompt": "a"}, {}, {"prompt": "a"} | deadline, deadline]
