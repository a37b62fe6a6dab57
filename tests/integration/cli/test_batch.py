"""Runs of a batch against a server with faults, cut off anywhere."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve_app.cli.batch.folder import RESULTS, batch_folder
from serve_app.cli.batch.plan import read_lines
from serve_app.cli.batch.run import BatchOptions, run_batch
from serve_app.cli.output import Output
from serve_app.client.errors import KeyRefusedError, UnreachableError, UsageError
from serve_app.client.http import Client
from tests.support.http.api_stand_in import FILE, NO_WAIT, StandIn

PROMPTS = [f"a circle number {n}" for n in range(6)]
BATCH = {"priority": "batch"}


@pytest.fixture
def options(tmp_path: Path) -> BatchOptions:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    return BatchOptions(tmp_path / "prompts.txt", tmp_path / "out", concurrency=3)


async def run(api: StandIn, options: BatchOptions, patience_s: float = 20, as_json: bool = False) -> int:
    async with Client(api.url, api.api_key, patience_s) as client:
        return await run_batch(client, Output(as_json), options, BATCH)


def results(options: BatchOptions) -> list[dict[str, Any]]:
    return [json.loads(row) for row in (options.folder / RESULTS).read_text().splitlines()]


def visible(options: BatchOptions) -> set[str]:
    return {path.name for path in options.folder.iterdir() if not path.name.startswith(".")}


def check_all_made_once(api: StandIn, options: BatchOptions) -> None:
    assert sorted(video["prompt"] for video in api.videos.values()) == PROMPTS
    rows = results(options)
    assert [row["status"] for row in rows] == ["completed"] * len(PROMPTS)
    assert {row["prompt"]: row["video_id"] for row in rows} == {v["prompt"]: v["id"] for v in api.videos.values()}
    assert visible(options) == {row["file"] for row in rows} | {RESULTS}
    assert all((options.folder / row["file"]).read_bytes() == FILE for row in rows)


async def test_every_line_becomes_a_file(api: StandIn, options: BatchOptions) -> None:
    assert await run(api, options) == 0
    check_all_made_once(api, options)
    assert {video["priority"] for video in api.videos.values()} == {"batch"}
    assert api.most_at_once <= options.concurrency


async def test_a_second_run_does_nothing(api: StandIn, options: BatchOptions) -> None:
    await run(api, options)
    before = api.seen.copy()
    assert await run(api, options) == 0
    assert api.seen == before
    check_all_made_once(api, options)


@pytest.mark.parametrize("cut_after", [0, 0.02, 0.05, 0.08, 0.12, 0.2])
async def test_a_run_that_is_cut_off_is_taken_up(api: StandIn, options: BatchOptions, cut_after: float) -> None:
    api.lost_answers = 1
    task = asyncio.create_task(run(api, options))
    await asyncio.sleep(cut_after)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await run(api, options) == 0
    check_all_made_once(api, options)


async def test_what_failed_is_tried_again_with_the_next_run(api: StandIn, options: BatchOptions) -> None:
    api.failing = {PROMPTS[1]}
    assert await run(api, options) == 3
    (failed,) = [row for row in results(options) if row["status"] == "failed"]
    assert (failed["prompt"], failed["file"], failed["error"]["code"]) == (PROMPTS[1], None, "out_of_memory")
    api.failing.clear()
    assert await run(api, options) == 0
    assert len(api.videos) == len(PROMPTS) + 1
    assert sorted(row["prompt"] for row in results(options)) == PROMPTS


async def test_a_refused_line_fails_alone(api: StandIn, options: BatchOptions) -> None:
    api.refusals = [(400, "content_policy", {})]
    assert await run(api, options) == 3
    (failed,) = [row for row in results(options) if row["status"] == "failed"]
    assert failed["error"] == {"code": "content_policy", "message": "No: content_policy."}
    assert await run(api, options) == 0
    check_all_made_once(api, options)


async def test_a_full_queue_is_waited_for(api: StandIn, options: BatchOptions) -> None:
    api.refusals = [(429, "tenant_queue_full", NO_WAIT)] * 5 + [(429, "insufficient_quota", {"Retry-After": "1"})]
    assert await run(api, options, patience_s=0.5) == 0
    check_all_made_once(api, options)


async def test_a_refused_key_ends_the_batch(api: StandIn, options: BatchOptions) -> None:
    api.refusals = [(401, "invalid_api_key", {})]
    with pytest.raises(KeyRefusedError):
        await run(api, options)
    assert await run(api, options) == 0
    check_all_made_once(api, options)


async def test_a_server_that_is_away_for_long_ends_the_run(api: StandIn, options: BatchOptions) -> None:
    api.breaks = [0] * 1000
    with pytest.raises(UnreachableError):
        await run(api, options, patience_s=0.3)
    api.breaks = []
    assert await run(api, options) == 0
    check_all_made_once(api, options)


async def test_a_video_that_the_server_has_lost_is_made_again(api: StandIn, options: BatchOptions) -> None:
    await run(api, options)
    lost = results(options)[2]
    del api.videos[lost["video_id"]]
    (options.folder / lost["file"]).unlink()
    assert await run(api, options) == 0
    assert visible(options) == {row["file"] for row in results(options)} | {RESULTS}
    assert sorted(video["prompt"] for video in api.videos.values()) == PROMPTS


async def test_a_proxy_without_routes_makes_no_second_video(api: StandIn, options: BatchOptions) -> None:
    api.hold = True
    task = asyncio.create_task(run(api, options))
    while api.at_once < options.concurrency:
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    api.hold, api.no_routes = False, options.concurrency
    assert await run(api, options) == 3
    assert await run(api, options) == 0
    check_all_made_once(api, options)


async def test_a_video_deleted_while_it_is_made_is_made_again_by_the_next_run(
    api: StandIn, options: BatchOptions
) -> None:
    api.hold = True
    task = asyncio.create_task(run(api, options))
    while api.at_once < options.concurrency:
        await asyncio.sleep(0.01)
    api.videos.pop(next(iter(api.videos)))
    api.hold = False
    assert await task == 3
    assert await run(api, options) == 0
    check_all_made_once(api, options)


async def test_a_file_that_was_deleted_is_fetched_again(api: StandIn, options: BatchOptions) -> None:
    await run(api, options)
    (options.folder / results(options)[0]["file"]).unlink()
    assert await run(api, options) == 0
    check_all_made_once(api, options)


async def test_a_file_that_was_renamed_but_not_written_down_is_not_fetched_again(
    api: StandIn, options: BatchOptions
) -> None:
    await run(api, options)
    (options.folder / RESULTS).unlink()
    before = api.seen["bytes"]
    assert await run(api, options) == 0
    assert api.seen["bytes"] == before
    check_all_made_once(api, options)


async def test_files_of_others_are_not_overwritten(api: StandIn, options: BatchOptions) -> None:
    (line, *_) = read_lines("\n".join(PROMPTS), BATCH)
    options.folder.mkdir()
    (options.folder / line.file).write_text("mine")
    with pytest.raises(UsageError, match="--force"):
        await run(api, options)
    assert (options.folder / line.file).read_text() == "mine" and not api.videos
    forced = replace(options, force=True)
    assert await run(api, forced) == 0
    check_all_made_once(api, options)


async def test_one_batch_at_a_time_works_in_a_folder(api: StandIn, options: BatchOptions) -> None:
    with batch_folder(options.folder), pytest.raises(UsageError, match="another batch"):
        await run(api, options)


async def test_the_same_prompts_in_another_folder_are_other_videos(
    api: StandIn, options: BatchOptions, tmp_path: Path
) -> None:
    await run(api, options)
    await run(api, replace(options, folder=tmp_path / "other"))
    assert len(api.videos) == 2 * len(PROMPTS)


async def test_json_lines_are_the_results(
    api: StandIn, options: BatchOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    await run(api, options, as_json=True)
    assert [json.loads(row) for row in capsys.readouterr().out.splitlines()] == results(options)


async def test_a_file_that_is_no_text_is_wrong_usage(api: StandIn, options: BatchOptions) -> None:
    options.prompts.write_bytes(b"a\xff")
    with pytest.raises(UsageError, match="not UTF-8 at byte 1"):
        await run(api, options)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
async def test_a_file_with_a_byte_order_mark_is_read(api: StandIn, options: BatchOptions, encoding: str) -> None:
    options.prompts.write_text("\r\n".join(PROMPTS), encoding=encoding, newline="")
    assert await run(api, options) == 0
    check_all_made_once(api, options)
