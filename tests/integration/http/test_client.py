"""The client against a server with faults: answers that are lost, streams that break, a server that is away."""

import asyncio
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.cli.words import (
    NAME_BYTES,
    SLUG_BYTES,
    file_name,
    is_file_name,
    progress_words,
    short_time,
    slug,
    target_path,
    unix_seconds,
)
from serve_app.client.download import Part, download, find_part, part_path
from serve_app.client.errors import (
    KeyRefusedError,
    LocalFileError,
    RefusedError,
    UnreachableError,
    UsageError,
    VideoDeletedError,
    refusal,
)
from serve_app.client.http import Client, Patience, checked_key, checked_url, video_path
from tests.support.http.api_stand_in import ETAG, FILE, NO_WAIT, StandIn, running_stand_in
from tests.support.ports import free_ports


@pytest.fixture
def api() -> Iterator[StandIn]:
    with running_stand_in() as stand_in:
        yield stand_in


def nothing(event: dict[str, Any]) -> None:
    """Follows a video without a word."""


async def made(client: Client, prompt: str = "a red circle") -> dict[str, Any]:
    video = await client.create({"prompt": prompt}, f"key of {prompt}")
    return await client.finished(video["id"], nothing)


async def test_a_lost_answer_makes_no_second_video(api: StandIn) -> None:
    api.lost_answers = 2
    async with Client(api.url) as client:
        video = await client.create({"prompt": "a red circle"}, "one key")
    assert (list(api.videos), api.seen["create"]) == ([video["id"]], 3)


async def test_a_busy_server_is_asked_again_when_it_says(api: StandIn) -> None:
    api.refusals = [(429, "queue_full", NO_WAIT), (503, "service_unavailable", {}), (500, "internal_error", {})]
    async with Client(api.url) as client:
        await client.create({"prompt": "a red circle"}, "key")
    assert api.seen["create"] == 4


@pytest.mark.parametrize("status", [400, 403, 404, 409, 413])
async def test_what_cannot_succeed_is_asked_once(api: StandIn, status: int) -> None:
    api.refusals = [(status, "some_code", {})]
    async with Client(api.url) as client:
        with pytest.raises(RefusedError, match="No: some_code") as caught:
            await client.create({"prompt": "a red circle"}, "key")
    assert (caught.value.code, caught.value.exit_code, api.seen["create"]) == ("some_code", 1, 1)


async def test_a_server_that_forbids_repeats_is_obeyed(api: StandIn) -> None:
    api.refusals = [(503, "no", {"x-should-retry": "false"})]
    async with Client(api.url) as client:
        with pytest.raises(RefusedError):
            await client.create({"prompt": "a red circle"}, "key")
    assert api.seen["create"] == 1


async def test_a_wait_that_is_longer_than_the_patience_is_told_at_once(api: StandIn) -> None:
    api.refusals = [(429, "insufficient_quota", {"Retry-After": "3600"})]
    async with Client(api.url, patience_s=100) as client:
        with pytest.raises(RefusedError) as caught:
            await client.create({"prompt": "a red circle"}, "key")
    assert caught.value.retry_after_s == 3600


async def test_a_wrong_key_is_an_error_of_its_own_and_in_no_message(api: StandIn) -> None:
    api.api_key = "ms-right"
    async with Client(api.url, "ms-wrong") as client:
        with pytest.raises(KeyRefusedError) as caught:
            await client.models()
    assert caught.value.exit_code == 5 and "ms-wrong" not in str(caught.value.envelope())
    async with Client(api.url, "ms-right") as client:
        assert (await client.models())["data"] == [{"id": "mochi-1"}]


async def test_a_server_that_was_never_there_is_not_waited_for() -> None:
    async with Client(f"http://127.0.0.1:{free_ports(1)[0]}", patience_s=3600) as client:
        with pytest.raises(UnreachableError, match="--url"):
            await client.models()


async def test_another_kind_of_server_is_told() -> None:
    async def page(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="<html>")

    async with Client("http://127.0.0.1:1") as client:
        client._http._transport = httpx.MockTransport(page)
        with pytest.raises(UnreachableError, match="is no mochi-serve"):
            await client.models()


async def test_broken_streams_of_events_are_taken_up_where_they_ended(api: StandIn) -> None:
    api.breaks = [2, 0, 1]
    async with Client(api.url) as client:
        video = await client.create({"prompt": "a red circle"}, "key")
        events = [event async for event in client.events(video["id"])]
    assert [event.get("state", event["type"]) for event in events] == [
        "queued",
        "encoding",
        "sampling",
        "decoding",
        "done",
    ]
    assert api.seen["events"] == 4


async def test_a_server_that_goes_away_is_waited_for_until_the_patience_ends(api: StandIn) -> None:
    api.breaks = [4, *[0] * 1000]
    async with Client(api.url, patience_s=0.5) as client:
        video = await client.create({"prompt": "a red circle"}, "key")
        seen = []
        with pytest.raises(UnreachableError):
            async for event in client.events(video["id"]):
                seen.append(event["state"])
    assert seen == ["queued", "encoding", "sampling", "decoding"]
    assert 2 <= api.seen["events"] < 20


async def test_a_video_deleted_by_somebody_else_ends_the_wait(api: StandIn) -> None:
    api.hold = True
    async with Client(api.url) as client:
        video = await client.create({"prompt": "a red circle"}, "key")
        follower = asyncio.create_task(client.finished(video["id"], nothing))
        while api.seen["events"] == 0:
            await asyncio.sleep(0.01)
        await client.delete(video["id"])
        with pytest.raises(VideoDeletedError):
            await follower


async def test_all_pages_of_a_listing_come_once(api: StandIn) -> None:
    async with Client(api.url) as client:
        for number in range(230):
            api._new({"prompt": str(number)})
        for limit in (None, 0, 1, 100, 101, 230, 500):
            listed = [video["prompt"] async for video in client.videos({}, limit)]
            assert listed == [str(n) for n in reversed(range(230))][: limit if limit is not None else 230]


async def test_a_download_is_taken_up_where_it_broke(api: StandIn, tmp_path: Path) -> None:
    target = tmp_path / "clip.mp4"
    async with Client(api.url) as client:
        video = await made(client)
        api.breaks = [30_000, 20_000, 0]
        assert await download(client, video["id"], target) == len(FILE)
    assert target.read_bytes() == FILE and [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    # A byte is fetched twice at each of the three breaks, to see that the part belongs to the file.
    assert api.seen["bytes"] <= len(FILE) + 3


@pytest.mark.parametrize("there", [1, 50_000, len(FILE) - 1, len(FILE)])
async def test_a_part_of_an_earlier_run_is_used(api: StandIn, tmp_path: Path, there: int) -> None:
    target = tmp_path / "clip.mp4"
    async with Client(api.url) as client:
        video = await made(client)
        part_path(target, video["id"], ETAG).write_bytes(FILE[:there])
        await download(client, video["id"], target)
    assert target.read_bytes() == FILE
    assert api.seen["bytes"] == len(FILE) - there + 1


async def test_a_part_of_another_file_is_thrown_away(api: StandIn, tmp_path: Path) -> None:
    target = tmp_path / "clip.mp4"
    async with Client(api.url) as client:
        video = await made(client)
        part_path(target, video["id"], '"another"').write_bytes(b"x" * 50_000)
        await download(client, video["id"], target)
    assert target.read_bytes() == FILE and list(tmp_path.iterdir()) == [target]


async def test_a_file_that_came_short_is_not_taken_for_whole(tmp_path: Path) -> None:
    """Where no Content-Length says it, as when a proxy sends the rest in chunks."""

    async def short(request: httpx.Request) -> httpx.Response:
        range_ = {"Content-Range": "bytes 0-9/10", "Transfer-Encoding": "chunked", "ETag": ETAG}
        return httpx.Response(206, headers=range_, stream=httpx.ByteStream(b"12345"))

    async with Client("http://127.0.0.1:1", patience_s=0.3) as client:
        client._met, client._http._transport = True, httpx.MockTransport(short)
        with pytest.raises(UnreachableError, match="5 of 10 bytes"):
            await download(client, "video_1", tmp_path / "clip.mp4")
    assert not (tmp_path / "clip.mp4").exists()


async def test_a_file_that_cannot_be_written_is_told(api: StandIn, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").mkdir()
    async with Client(api.url) as client:
        video = await made(client)
        with pytest.raises(LocalFileError, match=r"clip\.mp4"):
            await download(client, video["id"], tmp_path / "clip.mp4")


async def test_the_servers_clock_counts(api: StandIn) -> None:
    async with Client(api.url) as client:
        client._note(httpx.Response(200, headers={"Date": "Sat, 01 Jan 2000 00:00:00 GMT"}))
        assert 946_684_800 <= client.now < 946_684_810
        client._note(httpx.Response(200, headers={"Date": "yesterday"}))
        assert client.now < 946_684_810


async def test_patience_ends_and_is_renewed() -> None:
    error = UnreachableError("away")
    patience = Patience(0.4)
    await patience.after(error)
    with pytest.raises(UnreachableError):
        for _ in range(10):
            await patience.after(error)
    patience.renew()
    await patience.after(error)


@pytest.mark.parametrize(
    "body", [b"", b"<h1>Bad gateway</h1>", b"[]", b'{"error": "text"}', b'{"error": {"message": 3}}']
)
def test_errors_of_other_servers_are_told_too(body: bytes) -> None:
    error = refusal(httpx.Response(502, content=body))
    assert error.message and error.passing and error.envelope()["error"]["type"] == "server_error"


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


@given(st.text(max_size=300), st.text("0123456789abcdef", min_size=32, max_size=32))
def test_names_of_files_are_names_of_files(prompt: str, digits: str) -> None:
    name = file_name(prompt, f"video_{digits}", ".mp4")
    assert is_file_name(name.removesuffix(".mp4")) and name.endswith(f"{digits[-8:]}.mp4")
    assert len(slug(prompt).encode()) <= SLUG_BYTES


@given(st.text(max_size=300))
def test_a_file_name_stays_in_its_folder(name: str) -> None:
    if is_file_name(name):
        assert (Path("folder") / f"{name}.mp4").parent == Path("folder")
        assert len(name.encode()) <= NAME_BYTES and not name.startswith(".")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a\0b", "a\nb", "\ud800", "ä" * 101])
def test_these_are_no_file_names(name: str) -> None:
    assert not is_file_name(name)


def test_a_file_goes_where_it_was_asked_for(tmp_path: Path) -> None:
    name = "a-red-circle-90abcdef.mp4"
    arguments = ("A red, circle!", "video_1234567890abcdef", ".mp4")
    assert target_path(None, *arguments) == Path(name)
    assert target_path(tmp_path, *arguments) == tmp_path / name
    assert target_path(tmp_path / "x.mp4", *arguments) == tmp_path / "x.mp4"


@given(st.binary(min_size=1, max_size=60).map(lambda b: f'"{b.hex()}-2"'))
def test_a_part_tells_what_it_is_a_part_of(tag: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "clip.mp4"
        part_path(target, "video_1", tag).write_bytes(b"12345")
        assert find_part(target, "video_2") is None
        part = find_part(target, "video_1")
        assert part == Part(part_path(target, "video_1", tag), tag) and part.resume_at == 4


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-3, "0 s"), (0.4, "0 s"), (59.6, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (90_000, "1 d 1 h")],
)
def test_lengths_of_time_are_short(seconds: float, words: str) -> None:
    assert short_time(seconds) == words


def test_progress_in_words() -> None:
    view = {"state": "sampling", "step": 3, "num_inference_steps": 20, "queue_position": None}
    assert progress_words(view | {"estimated_completion_at": 108}, 100) == "sampling, step 3/20, about 8 s left"
    waiting = {"state": "queued", "step": 0, "num_inference_steps": 20, "queue_position": 4}
    assert progress_words(waiting, 100) == "queued, 4 before it"


def test_times_are_seconds_or_dates() -> None:
    assert unix_seconds("1700000000.5") == 1_700_000_000.5
    assert unix_seconds("2026-11-21T09:30+00:00") == 1_795_253_400
    assert unix_seconds("2026-11-21") == datetime(2026, 11, 21).timestamp()
    for wrong in ("", "yesterday", "-5", "1e9", "2026-13-01"):
        with pytest.raises(UsageError, match="2026-11-21"):
            unix_seconds(wrong)
