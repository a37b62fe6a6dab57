"""What the operators' page computes, without I/O: its modules alone, called in a browser."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Page

from tests.support.browser.tabs import Tabs
from tests.support.http.memory_app import MemoryApp

pytestmark = pytest.mark.asyncio(loop_scope="session")

JOB = {"tier": "standard", "tenant": "acme", "progress": 5, "step": 1, "num_inference_steps": 8, "step_s": None}
MINUTE, HOUR, DAY = 60, 3600, 86_400


@pytest_asyncio.fixture(loop_scope="session")
async def page(memory_app: MemoryApp, tabs: Tabs) -> AsyncIterator[Page]:
    """A tab that may load the modules."""
    page = await tabs.blank(memory_app.url)
    await page.goto(f"{memory_app.url}/status")
    yield page
    await page.close()


async def call(page: Page, module: str, function: str, *arguments: Any) -> Any:
    """What an exported function returns for arguments that JSON can hold."""
    code = "async ([path, name, given]) => (await import(path))[name](...given)"
    return await page.evaluate(code, [f"/web/status/{module}.js", function, arguments])


def move(at: float, state: str, stage: str, note: str = "", attempt: int = 1) -> dict[str, Any]:
    return {"at": at, "state": state, "stage": stage, "attempt": attempt, "note": note}


PARKED = [
    move(100, "queued", "encoding", "accepted"),
    move(100.5, "encoding", "encoding", "claimed"),
    move(101, "queued", "sampling", "encoding is done"),
    move(103, "sampling", "sampling", "claimed"),
    move(110, "queued", "sampling", "parked at step 4: a more urgent video"),
    move(130, "sampling", "sampling", "claimed"),
]


async def test_moves_become_stretches_up_to_now(page: Page) -> None:
    way = await call(page, "timeline", "wayOf", PARKED, 140)
    kinds = [(one["kind"], one["stage"], one["to"] - one["from"], one["open"]) for one in way["stretches"]]
    assert kinds == [
        ("waiting", "encoding", 0.5, False),
        ("encoding", "encoding", 0.5, False),
        ("waiting", "sampling", 2, False),
        ("sampling", "sampling", 7, False),
        ("parked", "sampling", 20, False),
        ("sampling", "sampling", 10, True),
    ]
    assert (way["from"], way["to"], way["end"]) == (100, 140, None)


async def test_the_end_is_a_moment_and_no_stretch(page: Page) -> None:
    end = move(131, "failed", "sampling", "the device is broken", attempt=2)
    way = await call(page, "timeline", "wayOf", [*PARKED, end], 500)
    last = way["stretches"][-1]
    assert (last["kind"], last["to"], last["open"], way["to"], way["end"]) == ("sampling", 131, False, 131, end)


async def test_a_clock_that_went_back_draws_nothing_backwards(page: Page) -> None:
    moves = [move(10, "queued", "encoding"), move(8, "encoding", "encoding")]
    way = await call(page, "timeline", "wayOf", moves, 7)
    assert [one["to"] - one["from"] for one in way["stretches"]] == [0, 0]


async def test_a_single_end_has_no_stretch(page: Page) -> None:
    way = await call(page, "timeline", "wayOf", [move(10, "cancelled", "encoding")], 20)
    assert (way["stretches"], way["from"], way["to"]) == ([], 10, 10)


async def test_the_way_is_told_in_a_sentence(page: Page) -> None:
    way = await call(page, "timeline", "wayOf", PARKED, 140)
    assert await call(page, "timeline", "inWords", way) == (
        "40 s so far: waiting 2.5 s in 2 stretches, encoding 500 ms, sampling 17 s in 2 stretches, parked 20 s."
    )
    way = await call(page, "timeline", "wayOf", [*PARKED, move(131, "completed", "decoding")], 500)
    assert (await call(page, "timeline", "inWords", way)).startswith("It was completed after 31 s: ")


@pytest.mark.parametrize(
    ("seconds", "marks"),
    [
        (0, [0]),
        (0.35, [0, 0.1, 0.2, 0.3]),
        (3, [0, 1, 2, 3]),
        (59, [0, 15, 30, 45]),
        (61, [0, 30, 60]),
        (HOUR, [0, 900, 1800, 2700, 3600]),
        (DAY, [0, 21_600, 43_200, 64_800, 86_400]),
        (9 * DAY, [0, 3 * DAY, 6 * DAY, 9 * DAY]),
    ],
)
async def test_an_axis_has_few_marks_at_round_distances(page: Page, seconds: float, marks: list[float]) -> None:
    assert await call(page, "timeline", "ticks", seconds, 4) == marks


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0123, "12 ms"),
        (0.9996, "1 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (HOUR - 0.4, "1 h"),
        (HOUR + 59, "1 h"),
        (2 * HOUR + 5 * MINUTE, "2 h 5 min"),
        (DAY + 3 * HOUR, "1 d 3 h"),
    ],
)
async def test_seconds_are_told_in_two_units_at_most(page: Page, seconds: float, text: str) -> None:
    assert await call(page, "timeline", "exactly", seconds) == text


SETTLE = """async ([shown, values, held]) => {
    const { settle } = await import('/web/status/steady.js');
    const { rows, more } = settle(shown, values, (value) => value[0], held);
    return [rows.map(({ key, value, gone }) => [key, value[1], gone]), more];
}"""
SHOWN = [{"key": key, "value": [key, 1], "gone": False} for key in "abc"]


async def test_rows_that_are_not_held_are_those_that_are_there(page: Page) -> None:
    now = [["d", 2], ["c", 2], ["a", 2]]
    assert await page.evaluate(SETTLE, [SHOWN, now, False]) == [
        [["d", 2, False], ["c", 2, False], ["a", 2, False]],
        0,
    ]


async def test_held_rows_keep_their_places_and_only_change_inside(page: Page) -> None:
    now = [["d", 2], ["c", 2], ["a", 2], ["e", 2]]
    assert await page.evaluate(SETTLE, [SHOWN, now, True]) == [[["a", 2, False], ["b", 1, True], ["c", 2, False]], 2]


def replica(name: str, stage: str = "sampling", **changed: Any) -> dict[str, Any]:
    return {"replica": name, "stage": stage, "slots": 2, "busy": 0, "problem": None, "device": "cpu"} | changed


async def test_jobs_stand_at_their_replicas_and_those_of_others_are_counted(page: Page) -> None:
    jobs = [
        {"id": "1", "stage": "sampling", "replica": "s1", **JOB},
        {"id": "2", "stage": "sampling", "replica": None, **JOB},
        {"id": "3", "stage": "sampling", "replica": "dead", **JOB},
    ]
    replicas = [replica("s2"), replica("s1", busy=2), replica("e1", "encoding")]
    found = await call(page, "figures", "places", {"replicas": replicas, "running": jobs})
    assert [(one["name"], [job["id"] for job in one["jobs"]], one["others"]) for one in found] == [
        ("e1", [], 0),
        ("s1", ["1"], 1),
        ("s2", [], 0),
        (None, ["2"], 0),
        ("dead", ["3"], 0),
    ]


async def test_what_the_driver_tells_of_a_gpu_is_told(page: Page) -> None:
    told = {"memory_total": 80e9, "memory_used": 20e9, "utilization": 0.97, "power_w": 612.4, "temperature_c": 64.0}
    found = await call(page, "figures", "gpuFigures", told)
    assert found == {"memory": "20.0 of 80.0 GB in use", "filled": 0.25, "others": "97 % busy · 612 W · 64 °C"}
    found = await call(page, "figures", "gpuFigures", dict.fromkeys(told) | {"power_w": 71.0})
    assert found == {"memory": "", "filled": None, "others": "71 W"}


async def test_stages_are_counted_and_the_oldest_found(page: Page) -> None:
    def row(stage: str, count: int, oldest_at: int) -> dict[str, Any]:
        return {"stage": stage, "tier": "batch", "tenant": "acme", "count": count, "oldest_at": oldest_at}

    running = [{"id": "1", "stage": "decoding", "replica": "d", **JOB}]
    waiting = [row("sampling", 3, 20), row("sampling", 4, 10)]
    found = await call(page, "figures", "stageFigures", {"waiting": waiting, "running": running})
    assert [(one["waiting"], one["running"], one["oldestAt"]) for one in found] == [
        (0, 0, None),
        (7, 0, 10),
        (0, 1, None),
    ]


@pytest.mark.parametrize(
    ("changed", "condition"),
    [
        ({}, "idle"),
        ({"busy": 1}, "working"),
        ({"slots": 0, "busy": 1}, "leaving"),
        ({"slots": 0, "problem": "the device is broken"}, "sick"),
    ],
)
async def test_a_replica_works_leaves_or_is_sick(page: Page, changed: dict[str, Any], condition: str) -> None:
    assert await call(page, "figures", "conditionOf", replica("s1", **changed)) == condition


@pytest.mark.parametrize(
    ("replicas", "starting", "told"),
    [
        ([replica("s1")], {}, None),
        ([], {}, "None is being started. One comes with the next job, if the stage may scale to none."),
        ([], {"sampling": {"count": 1, "ready_at": 1040}}, "1 is starting: likely in 40 s."),
        ([], {"sampling": {"count": 2, "ready_at": 1300}}, "2 are starting: the first likely in 5 min."),
        ([], {"sampling": {"count": 1, "ready_at": 970}}, "1 is starting: it was expected 30 s ago."),
        ([replica("s1")], {"sampling": {"count": 1, "ready_at": 1040}}, "1 more is starting: likely in 40 s."),
        (
            [replica("s1", slots=0, problem="hot")],
            {"sampling": {"count": 1, "ready_at": 1040}},
            "Those there take no jobs. 1 is starting: likely in 40 s.",
        ),
    ],
)
async def test_it_is_said_what_starts_and_when(
    page: Page, replicas: list[dict[str, Any]], starting: dict[str, Any], told: str | None
) -> None:
    others = [replica("e1", "encoding"), replica("d1", "decoding")]
    report = {"replicas": [*others, *replicas], "starting": starting}
    found = await call(page, "figures", "absences", report, 1000)
    assert [(one["stage"], one["text"]) for one in found] == ([] if told is None else [("sampling", told)])


@pytest.mark.parametrize(
    ("took_ms", "requests", "per_minute", "pause_ms"),
    [
        (10, 2, None, 2000),
        (1000, 2, None, 3000),
        (60_000, 2, None, 15_000),
        (10, 2, 600, 2000),
        # Of 60 requests a minute 30: one round of two every 4 seconds.
        (10, 2, 60, 4000),
        (10, 4, 10, 48_000),
    ],
)
async def test_a_slow_server_and_a_small_limit_are_asked_less_often(
    page: Page, took_ms: float, requests: int, per_minute: int | None, pause_ms: float
) -> None:
    round_ = {"tookMs": took_ms, "requests": requests, "perMinute": per_minute}
    assert await call(page, "figures", "pauseAfter", round_) == pause_ms
