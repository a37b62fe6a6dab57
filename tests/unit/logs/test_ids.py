"""Ids of lines: which tasks and threads have them, and for how long."""

import asyncio

from deployments.logs.ids import add_log_ids, current_ids, log_ids
from deployments.tracing.context import TraceContext

TRACE = TraceContext("1" * 32, "2" * 16, True)
WHOLE = {"job": "video_1", "tenant": "acme", "lease": "l", "trace_id": "1" * 32, "span_id": "2" * 16}


def fields() -> dict[str, str]:
    return current_ids().fields()


async def test_tasks_and_threads_that_are_started_within_have_them() -> None:
    async def below() -> dict[str, str]:
        await asyncio.sleep(0)
        return await asyncio.to_thread(fields)

    with log_ids(job="video_1", tenant="acme", lease="l", trace=lambda: TRACE):
        task = asyncio.create_task(below())
        assert fields() == WHOLE
    assert fields() == {}
    assert await task == WHOLE


async def test_tasks_side_by_side_have_their_own() -> None:
    async def work(job: str) -> dict[str, str]:
        add_log_ids(job=job)
        await asyncio.sleep(0)
        return fields()

    assert list(await asyncio.gather(work("video_1"), work("video_2"))) == [{"job": "video_1"}, {"job": "video_2"}]
    assert fields() == {}


def test_more_is_added_and_then_gone() -> None:
    with log_ids(job="video_1", tenant="acme"):
        with log_ids(job="video_1", lease="l"):
            assert fields() == {"job": "video_1", "tenant": "acme", "lease": "l"}
        assert fields() == {"job": "video_1", "tenant": "acme"}


def test_another_job_has_nothing_of_the_one_before_but_the_tenant() -> None:
    with log_ids(job="video_1", tenant="acme", lease="l", trace=lambda: TRACE), log_ids(job="video_2"):
        assert fields() == {"job": "video_2", "tenant": "acme"}
