"""The spans of requests, and W3C's `traceparent`, taken and given."""

import httpx
import pytest

from deployments.tracing.context import TraceContext, parse_traceparent
from deployments.tracing.span import FinishedSpan, Kind
from tests.support.http.fakes import FakeServices
from tests.support.tracing.spans import traced

CLIENT = TraceContext("c" * 32, "d" * 16, True)
HEADERS = {"traceparent": CLIENT.traceparent}
BODY = {"prompt": "a red circle moves right"}


def trace_of(answer: httpx.Response) -> TraceContext:
    context = parse_traceparent(answer.headers["traceresponse"])
    assert context is not None
    return context


async def completed(services: FakeServices, client: httpx.AsyncClient, headers: dict[str, str] | None = None) -> str:
    answer = await client.post("/v1/videos", json=BODY, headers=headers)
    video_id: str = answer.json()["id"]
    services.memory.complete(video_id)
    services.add_file(video_id, "video", b"clip")
    return video_id


@pytest.mark.parametrize(
    ("path", "route"), [("/v1/videos", "/v1/videos"), ("/v1/videos/generations", "/v1/videos/generations")]
)
async def test_a_request_goes_on_with_the_trace_of_its_client(
    services: FakeServices, unfed: httpx.AsyncClient, path: str, route: str
) -> None:
    with traced() as spans:
        answer = await unfed.post(path, json=BODY, headers=HEADERS)
    (span,) = spans
    assert (span.context.trace_id, span.parent_id, span.kind) == (CLIENT.trace_id, CLIENT.span_id, Kind.SERVER)
    assert span.name == f"POST {route}" and span.attributes["http.route"] == route
    assert span.attributes["http.response.status_code"] == answer.status_code
    assert span.attributes["mochi_serve.job.id"] == answer.json()["id"]
    assert trace_of(answer) == span.context == services.memory.jobs[answer.json()["id"]].trace


@pytest.mark.parametrize("headers", [{}, {"traceparent": "rubbish"}, {"traceparent": f"00-{'0' * 32}-{'d' * 16}-01"}])
async def test_without_a_good_one_the_trace_is_the_video_s(unfed: httpx.AsyncClient, headers: dict[str, str]) -> None:
    with traced() as spans:
        answer = await unfed.post("/v1/videos", json=BODY, headers=headers)
    assert answer.status_code == 200
    (span,) = spans
    assert span.parent_id is None and f"video_{span.context.trace_id}" == answer.json()["id"]


async def test_two_headers_are_as_good_as_none(unfed: httpx.AsyncClient) -> None:
    with traced() as spans:
        await unfed.post("/v1/videos", json=BODY, headers=[("traceparent", CLIENT.traceparent)] * 2)
    assert spans[0].parent_id is None


async def test_a_client_that_keeps_no_trace_has_none_kept(unfed: httpx.AsyncClient) -> None:
    unkept = TraceContext(CLIENT.trace_id, CLIENT.span_id, False)
    with traced() as spans:
        answer = await unfed.post("/v1/videos", json=BODY, headers={"traceparent": unkept.traceparent})
    assert spans == [] and trace_of(answer).trace_id == CLIENT.trace_id


async def test_without_an_exporter_the_client_s_span_is_passed_on(
    services: FakeServices, unfed: httpx.AsyncClient
) -> None:
    answer = await unfed.post("/v1/videos", json=BODY, headers=HEADERS)
    assert trace_of(answer) == CLIENT
    answer = await unfed.post("/v1/videos", json=BODY)
    assert services.memory.jobs[answer.json()["id"]].traceparent is None
    assert not trace_of(answer).sampled


async def test_a_request_that_is_repeated_tells_the_trace_of_its_video(unfed: httpx.AsyncClient) -> None:
    with traced():
        first, again = [await unfed.post("/v1/videos", json=BODY, headers={"Idempotency-Key": "one"}) for _ in range(2)]
    assert trace_of(first) == trace_of(again)


async def download(client: httpx.AsyncClient, video_id: str, **headers: str) -> tuple[httpx.Response, FinishedSpan]:
    with traced() as spans:
        answer = await client.get(f"/v1/videos/{video_id}/content", headers=headers)
    assert spans[-1].name == "GET /v1/videos/{video_id}/content", "it ends when all is sent"
    return answer, spans[-1]


async def test_a_download_is_in_the_trace_of_its_video(services: FakeServices, unfed: httpx.AsyncClient) -> None:
    with traced() as spans:
        video_id = await completed(services, unfed)
    (made,) = spans
    answer, span = await download(unfed, video_id)
    assert answer.content == b"clip" and trace_of(answer) == made.context
    assert (span.context.trace_id, span.parent_id) == (made.context.trace_id, made.context.span_id)
    assert (span.attributes["mochi_serve.variant"], span.links) == ("video", ())


async def test_a_download_in_another_trace_is_linked_to_it(services: FakeServices, unfed: httpx.AsyncClient) -> None:
    with traced():
        video_id = await completed(services, unfed)
    _, span = await download(unfed, video_id, **HEADERS)
    assert span.links == (CLIENT,) and span.context.trace_id != CLIENT.trace_id


async def test_a_download_in_the_same_trace_is_the_client_s_child(
    services: FakeServices, unfed: httpx.AsyncClient
) -> None:
    with traced():
        video_id = await completed(services, unfed, HEADERS)
    own = TraceContext(CLIENT.trace_id, "e" * 16, True)
    _, span = await download(unfed, video_id, traceparent=own.traceparent)
    assert (span.parent_id, span.links) == (own.span_id, ())


async def test_reads_have_no_span(services: FakeServices, unfed: httpx.AsyncClient) -> None:
    with traced():
        video_id = await completed(services, unfed)
    with traced() as spans:
        await unfed.get(f"/v1/videos/{video_id}", headers=HEADERS)
        await unfed.get("/v1/videos", headers=HEADERS)
    assert spans == []


async def test_a_registry_that_is_away_is_the_error_of_the_request(
    services: FakeServices, unfed: httpx.AsyncClient
) -> None:
    services.memory.reachable = False
    with traced() as spans:
        answer = await unfed.post("/v1/videos", json=BODY)
    assert answer.status_code == 503 and spans[0].error == "503"


async def test_no_prompt_and_no_key_is_told(unfed: httpx.AsyncClient) -> None:
    with traced() as spans:
        await unfed.post("/v1/videos", json=BODY, headers={"Authorization": "Bearer ms-secret"})
    assert "circle" not in repr(spans) and "ms-secret" not in repr(spans)
