"""`traceparent` is read as W3C says, and what is none counts as if it were not there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.tracing.context import (
    TraceContext,
    context_of_job,
    new_context,
    parse_traceparent,
    span_id_of,
    trace_id_of,
)
from serve_app.jobs import new_job_id

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CLIENT = TraceContext(TRACE, SPAN, True)


@pytest.mark.parametrize("header", [f"00-{TRACE}-{SPAN}-01", f"  00-{TRACE}-{SPAN}-01\t", f"cc-{TRACE}-{SPAN}-01-more"])
def test_a_good_one_is_read(header: str) -> None:
    assert parse_traceparent(header) == CLIENT


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)])
def test_its_last_bit_says_whether_it_is_kept(flags: str, sampled: bool) -> None:
    context = parse_traceparent(f"00-{TRACE}-{SPAN}-{flags}")
    assert context is not None and context.sampled is sampled


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "rubbish",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-more",  # version 00 has four fields
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}x-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE}-{SPAN}-01, 00-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01-{'x' * 10_000} ",
    ],
)
def test_what_is_none_is_refused_quietly(header: str | None) -> None:
    assert parse_traceparent(header) is None


@given(st.text())
def test_no_text_raises(header: str) -> None:
    context = parse_traceparent(header)
    assert context is None or parse_traceparent(context.traceparent) == context


def test_it_is_written_as_it_is_read() -> None:
    assert CLIENT.traceparent == f"00-{TRACE}-{SPAN}-01"


def test_a_job_without_a_client_s_trace_has_one_with_its_own_id() -> None:
    job_id = new_job_id()
    context = new_context(job_id, None, 1.0)
    assert f"video_{context.trace_id}" == job_id and context.sampled
    assert context == new_context(job_id, None, 1.0), "a request that is repeated has the same"
    assert parse_traceparent(context.traceparent) == context


def test_a_client_s_trace_goes_on_and_its_flag_counts() -> None:
    job_id = new_job_id()
    kept = new_context(job_id, CLIENT, 0.0)
    assert (kept.trace_id, kept.sampled) == (TRACE, True) and kept.span_id == span_id_of(job_id, "request")
    assert not new_context(job_id, TraceContext(TRACE, SPAN, False), 1.0).sampled


def test_a_part_of_the_traces_is_kept_and_the_same_one_each_time() -> None:
    jobs = [new_job_id() for _ in range(2000)]
    kept = [new_context(job_id, None, 0.25).sampled for job_id in jobs]
    assert 300 < sum(kept) < 700  # 500; 10 standard deviations
    assert kept == [new_context(job_id, None, 0.25).sampled for job_id in jobs]
    assert not any(new_context(job_id, None, 0).sampled for job_id in jobs)


def test_what_is_kept_with_a_job_is_its_trace() -> None:
    assert context_of_job("video_1", CLIENT.traceparent) == CLIENT
    assert context_of_job("video_1", None) == new_context("video_1", None, 0)
    assert context_of_job("video_1", "rubbish") == new_context("video_1", None, 0)


def test_ids_are_good_whatever_the_job_s_is() -> None:
    for job_id in ("video_1", f"video_{'0' * 32}", new_job_id()):
        assert parse_traceparent(new_context(job_id, None, 1).traceparent) is not None
    assert trace_id_of("video_1") != trace_id_of("video_2")
    assert CLIENT.at("video_1", 2) == TraceContext(TRACE, span_id_of("video_1", 2), True)
