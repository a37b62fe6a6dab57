"""The client against a server with faults: answers that are lost, streams that break, a server that is away."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from serve_app.client.download import download, part_path
from serve_app.client.errors import (
    KeyRefusedError,
    LocalFileError,
    RefusedError,
    UnreachableError,
    VideoDeletedError,
)
from serve_app.client.http import Client
from tests.support.http.api_stand_in import ETAG, FILE, NO_WAIT, StandIn
from tests.support.servers.ports import free_ports


def nothing(event: dict[str, Any]) -> None:
    """Follows a video without a word."""


async def made(client: Client, prompt: str = "a red circle") -> dict[str, Any]:
    video = await client.create({"prompt": prompt}, f"key of {prompt}")
    return await client.wait_until_done(video["id"], nothing)


async def test_a_lost_answer_makes_no_second_video(api: StandIn) -> None:
    api.lost_answers = 2
    async with Client(api.url) as client:
        video = await client.create({"prompt": "a red circle"}, "one key")
    assert (list(api.videos), api.seen["create"]) == ([video["id"]], 3)


async def test_a_request_without_a_key_gets_one_of_its_own(api: StandIn) -> None:
    api.lost_answers = 1
    async with Client(api.url) as client:
        first = await client.create({"prompt": "a red circle"})
        second = await client.create({"prompt": "a red circle"})
        assert (await client.wait_until_done(first["id"]))["status"] == "completed"
        assert [video["id"] async for video in client.videos(limit=2)] == [second["id"], first["id"]]
    assert (set(api.videos), api.seen["create"]) == ({first["id"], second["id"]}, 3)


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


async def test_a_wait_that_is_longer_than_the_patience_is_an_error_at_once(api: StandIn) -> None:
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
        follower = asyncio.create_task(client.wait_until_done(video["id"], nothing))
        while api.seen["events"] == 0:
            await asyncio.sleep(0.01)
        await client.delete(video["id"])
        with pytest.raises(VideoDeletedError):
            await follower


async def test_all_pages_of_a_listing_come_once(api: StandIn) -> None:
    async with Client(api.url) as client:
        for number in range(230):
            api.add_video({"prompt": str(number)})
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


async def test_a_file_that_cannot_be_written_is_an_error(api: StandIn, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").mkdir()
    async with Client(api.url) as client:
        video = await made(client)
        with pytest.raises(LocalFileError, match=r"clip\.mp4"):
            await download(client, video["id"], tmp_path / "clip.mp4")
