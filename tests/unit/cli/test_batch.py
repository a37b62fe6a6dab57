"""The plan of a batch as properties, and runs of it that are cut off anywhere."""

import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.cli.batch.folder import RESULTS, STATE, batch_folder
from serve_app.cli.batch.plan import Known, Todo, idempotency_key, plan, read_lines
from serve_app.cli.batch.run import BatchOptions, batch_of
from serve_app.cli.output import Output
from serve_app.cli.words import is_file_name
from serve_app.client.errors import KeyRefusedError, UnreachableError, UsageError
from serve_app.client.http import Client
from tests.support.http.api_stand_in import FILE, NO_WAIT, StandIn, running_stand_in

PROMPTS = [f"a circle number {n}" for n in range(6)]
BATCH = {"priority": "batch"}

prompts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), min_size=1, max_size=40)
rows = st.lists(
    prompts.filter(lambda text: text.strip()).map(lambda text: json.dumps({"prompt": text})), min_size=1, max_size=12
)


@pytest.fixture
def api() -> Iterator[StandIn]:
    with running_stand_in() as stand_in:
        yield stand_in


@pytest.fixture
def wish(tmp_path: Path) -> BatchOptions:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    return BatchOptions(tmp_path / "prompts.txt", tmp_path / "out", BATCH, 3, force=False)


async def run(api: StandIn, wish: BatchOptions, patience_s: float = 20, as_json: bool = False) -> int:
    async with Client(api.url, api.api_key, patience_s) as client:
        return await batch_of(client, Output(as_json), wish)


def results(wish: BatchOptions) -> list[dict[str, Any]]:
    return [json.loads(row) for row in (wish.folder / RESULTS).read_text().splitlines()]


def visible(wish: BatchOptions) -> set[str]:
    return {path.name for path in wish.folder.iterdir() if not path.name.startswith(".")}


def check_all_made_once(api: StandIn, wish: BatchOptions) -> None:
    assert sorted(video["prompt"] for video in api.videos.values()) == PROMPTS
    told = results(wish)
    assert [row["status"] for row in told] == ["completed"] * len(PROMPTS)
    assert {row["prompt"]: row["video_id"] for row in told} == {v["prompt"]: v["id"] for v in api.videos.values()}
    assert visible(wish) == {row["file"] for row in told} | {RESULTS}
    assert all((wish.folder / row["file"]).read_bytes() == FILE for row in told)


async def test_every_line_becomes_a_file(api: StandIn, wish: BatchOptions) -> None:
    assert await run(api, wish) == 0
    check_all_made_once(api, wish)
    assert {video["priority"] for video in api.videos.values()} == {"batch"}
    assert api.most_at_once <= wish.concurrency


async def test_a_second_run_does_nothing(api: StandIn, wish: BatchOptions) -> None:
    await run(api, wish)
    before = api.seen.copy()
    assert await run(api, wish) == 0
    assert api.seen == before
    check_all_made_once(api, wish)


@pytest.mark.parametrize("cut_after", [0, 0.02, 0.05, 0.08, 0.12, 0.2])
async def test_a_run_that_is_cut_off_is_taken_up(api: StandIn, wish: BatchOptions, cut_after: float) -> None:
    api.lost_answers = 1
    task = asyncio.create_task(run(api, wish))
    await asyncio.sleep(cut_after)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await run(api, wish) == 0
    check_all_made_once(api, wish)


@given(st.data())
def test_a_state_file_cut_anywhere_makes_no_second_video(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = read_lines("a\nb\nc", {})
        with batch_folder(folder) as first:
            first.begin(Todo(line, Known(), False) for line in lines)
            for line in lines:
                first.note(line, Known(video_id=f"video_{line.fields['prompt']}"))
                first.finish(line, {"status": "completed", "file": line.file})
        whole = (folder / STATE).read_bytes()
        after_id = whole.index(b"\n") + 1
        kept = data.draw(st.integers(after_id, len(whole)))
        (folder / STATE).write_bytes(whole[:kept])
        with batch_folder(folder) as second:
            assert second.id == first.id
            assert second.results == first.results
            assert [first.known[key] for key in second.known] == list(second.known.values())
            assert len(second.known) >= whole[after_id:kept].count(b"\n")
            second.begin([])
        assert (folder / STATE).read_bytes().count(b"\n") == 1 + len(second.known)


async def test_what_failed_is_tried_again_with_the_next_run(api: StandIn, wish: BatchOptions) -> None:
    api.failing = {PROMPTS[1]}
    assert await run(api, wish) == 3
    (failed,) = [row for row in results(wish) if row["status"] == "failed"]
    assert (failed["prompt"], failed["file"], failed["error"]["code"]) == (PROMPTS[1], None, "out_of_memory")
    api.failing.clear()
    assert await run(api, wish) == 0
    assert len(api.videos) == len(PROMPTS) + 1
    assert sorted(row["prompt"] for row in results(wish)) == PROMPTS


async def test_a_refused_line_fails_alone(api: StandIn, wish: BatchOptions) -> None:
    api.refusals = [(400, "content_policy", {})]
    assert await run(api, wish) == 3
    (failed,) = [row for row in results(wish) if row["status"] == "failed"]
    assert failed["error"] == {"code": "content_policy", "message": "No: content_policy."}
    assert await run(api, wish) == 0
    check_all_made_once(api, wish)


async def test_a_full_queue_is_waited_for(api: StandIn, wish: BatchOptions) -> None:
    api.refusals = [(429, "tenant_queue_full", NO_WAIT)] * 5 + [(429, "insufficient_quota", {"Retry-After": "1"})]
    assert await run(api, wish, patience_s=0.5) == 0
    check_all_made_once(api, wish)


async def test_a_refused_key_ends_the_batch(api: StandIn, wish: BatchOptions) -> None:
    api.refusals = [(401, "invalid_api_key", {})]
    with pytest.raises(KeyRefusedError):
        await run(api, wish)
    assert await run(api, wish) == 0
    check_all_made_once(api, wish)


async def test_a_server_that_is_away_for_long_ends_the_run(api: StandIn, wish: BatchOptions) -> None:
    api.breaks = [0] * 1000
    with pytest.raises(UnreachableError):
        await run(api, wish, patience_s=0.3)
    api.breaks = []
    assert await run(api, wish) == 0
    check_all_made_once(api, wish)


async def test_a_video_that_the_server_has_lost_is_made_again(api: StandIn, wish: BatchOptions) -> None:
    await run(api, wish)
    lost = results(wish)[2]
    del api.videos[lost["video_id"]]
    (wish.folder / lost["file"]).unlink()
    assert await run(api, wish) == 0
    assert visible(wish) == {row["file"] for row in results(wish)} | {RESULTS}
    assert sorted(video["prompt"] for video in api.videos.values()) == PROMPTS


async def test_a_proxy_without_routes_makes_no_second_video(api: StandIn, wish: BatchOptions) -> None:
    api.hold = True
    task = asyncio.create_task(run(api, wish))
    while api.at_once < wish.concurrency:
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    api.hold, api.no_routes = False, wish.concurrency
    assert await run(api, wish) == 3
    assert await run(api, wish) == 0
    check_all_made_once(api, wish)


async def test_a_video_deleted_while_it_is_made_is_made_again_by_the_next_run(api: StandIn, wish: BatchOptions) -> None:
    api.hold = True
    task = asyncio.create_task(run(api, wish))
    while api.at_once < wish.concurrency:
        await asyncio.sleep(0.01)
    api.videos.pop(next(iter(api.videos)))
    api.hold = False
    assert await task == 3
    assert await run(api, wish) == 0
    check_all_made_once(api, wish)


async def test_a_file_that_was_deleted_is_fetched_again(api: StandIn, wish: BatchOptions) -> None:
    await run(api, wish)
    (wish.folder / results(wish)[0]["file"]).unlink()
    assert await run(api, wish) == 0
    check_all_made_once(api, wish)


async def test_a_file_that_was_renamed_but_not_written_down_is_not_fetched_again(
    api: StandIn, wish: BatchOptions
) -> None:
    await run(api, wish)
    (wish.folder / RESULTS).unlink()
    before = api.seen["bytes"]
    assert await run(api, wish) == 0
    assert api.seen["bytes"] == before
    check_all_made_once(api, wish)


async def test_files_of_others_are_not_overwritten(api: StandIn, wish: BatchOptions) -> None:
    (line, *_) = read_lines("\n".join(PROMPTS), BATCH)
    wish.folder.mkdir()
    (wish.folder / line.file).write_text("mine")
    with pytest.raises(UsageError, match="--force"):
        await run(api, wish)
    assert (wish.folder / line.file).read_text() == "mine" and not api.videos
    forced = BatchOptions(wish.prompts, wish.folder, wish.fields, 3, force=True)
    assert await run(api, forced) == 0
    check_all_made_once(api, wish)


async def test_one_batch_at_a_time_works_in_a_folder(api: StandIn, wish: BatchOptions) -> None:
    with batch_folder(wish.folder), pytest.raises(UsageError, match="another batch"):
        await run(api, wish)


async def test_the_same_prompts_in_another_folder_are_other_videos(
    api: StandIn, wish: BatchOptions, tmp_path: Path
) -> None:
    await run(api, wish)
    await run(api, BatchOptions(wish.prompts, tmp_path / "other", wish.fields, 3, force=False))
    assert len(api.videos) == 2 * len(PROMPTS)


async def test_json_lines_are_the_results(api: StandIn, wish: BatchOptions, capsys: pytest.CaptureFixture[str]) -> None:
    await run(api, wish, as_json=True)
    assert [json.loads(row) for row in capsys.readouterr().out.splitlines()] == results(wish)


@given(rows)
def test_lines_are_told_apart_and_keep_their_names_when_the_file_changes(file: list[str]) -> None:
    lines = read_lines("\n".join(file), BATCH)
    assert len({line.key for line in lines}) == len({line.file.casefold() for line in lines}) == len(file)
    assert all(is_file_name(line.file.removesuffix(".mp4")) for line in lines)
    moved = read_lines("\n\n".join([*reversed(file), '"one more"']), BATCH)
    assert {line.key: line.file for line in lines}.items() <= {line.key: line.file for line in moved}.items()


@given(rows, st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11)))
def test_the_plan_leaves_out_what_is_done_and_nothing_else(
    file: list[str], completed: set[int], written: set[int], known: set[int]
) -> None:
    lines = read_lines("\n".join(file), {})
    results = {line.key: {"status": "completed"} for n, line in enumerate(lines) if n in completed}
    sizes = {line.file: 7 for n, line in enumerate(lines) if n in written}
    notes = {line.key: Known(bytes=7, video_id="video_1") for n, line in enumerate(lines) if n in known}
    left = plan(lines, notes, results, sizes)
    done = completed & written & set(range(len(lines)))
    assert left.done == len(done)
    assert [todo.line.number for todo in left.todo] == [n + 1 for n in range(len(lines)) if n not in done]
    assert [todo.line.number - 1 for todo in left.todo if todo.fetched] == sorted(
        (written & known & set(range(len(lines)))) - done
    )
    assert set(left.conflicts) == {lines[n].file for n in (written - completed - known) & set(range(len(lines)))}


def test_keys_differ_by_folder_line_attempt_and_request() -> None:
    first, second = read_lines("a red circle\na red circle", BATCH)
    (urgent,) = read_lines("a red circle", {"priority": "interactive"})
    todos = [Todo(line, Known(attempt), False) for line in (first, second, urgent) for attempt in (1, 2)]
    keys = {idempotency_key(folder, todo) for folder in ("1", "2") for todo in todos}
    assert len(keys) == 12 and all(len(key) < 255 for key in keys)
    # Another priority is another request, but the same video.
    assert (first.key, first.file) == (urgent.key, urgent.file)


def test_lines_are_text_or_json() -> None:
    text = (
        '\ufeffa red circle\r\n\n{"prompt": "a", "fps": 12, "id": 7}\n"b"\n"c" and d\n{"prompt": "e", "name": "x.mp4"}'
    )
    lines = read_lines(text, {"fps": 24})
    assert [(line.number, dict(line.fields)) for line in lines] == [
        (1, {"prompt": "a red circle", "fps": 24}),
        (3, {"prompt": "a", "fps": 12}),
        (4, {"prompt": "b", "fps": 24}),
        (5, {"prompt": '"c" and d', "fps": 24}),
        (6, {"prompt": "e", "fps": 24}),
    ]
    assert (lines[1].id, lines[1].file, lines[4].file) == (7, "7.mp4", "x.mp4")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{", "no JSON object"),
        ('{"prompt": NaN}', "NaN"),
        ('{"seed": 1}', '"prompt" is missing'),
        ('{"prompt": 3}', "no text"),
        ('{"prompt": "a", "id": [1]}', '"id" must be'),
        ('{"prompt": "a", "id": true}', '"id" must be'),
        ('{"prompt": "a", "name": "../a"}', '"name" must be'),
        ('{"prompt": "a", "name": 3}', '"name" must be'),
        ('{"prompt": "a", "name": ".mp4"}', '"name" must be'),
        ('{"prompt": ' + "[" * 100_000, "no JSON object"),
    ],
)
def test_wrong_lines_are_named(row: str, told: str) -> None:
    with pytest.raises(UsageError, match=f"line 2: .*{told}"):
        read_lines(f"a red circle\n{row}", {})


def test_two_lines_have_no_file_in_common() -> None:
    with pytest.raises(UsageError, match=r"line 2: 'A.mp4' is the file of line 1"):
        read_lines('{"prompt": "x", "name": "a"}\n{"prompt": "y", "id": "A"}', {})


def test_many_mistakes_are_counted() -> None:
    with pytest.raises(UsageError, match="line 5: .*; and 3 more"):
        read_lines("\n".join(["{"] * 8), {})


async def test_a_file_that_is_no_text_is_wrong_usage(api: StandIn, wish: BatchOptions) -> None:
    wish.prompts.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8 at byte 0"):
        await run(api, wish)
