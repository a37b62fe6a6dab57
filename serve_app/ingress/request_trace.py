"""The span of a request that makes a video or downloads one, and the trace that it belongs to.

Other requests have none: they are counted, and a poll costs what it did.
"""

import secrets
from dataclasses import replace

from fastapi import Request
from starlette.types import Scope

from deployments.logs.ids import add_log_ids
from deployments.tracing.context import HEADER, TraceContext, new_context, parse_traceparent
from deployments.tracing.span import SILENT, Kind, Span
from deployments.tracing.tracer import TRACER, Tracer
from serve_app.jobs import Job

RESPONSE_HEADER = "traceresponse"
"""Of W3C's Trace Context, level 2: the trace that the video of an answer is made in."""

_KEY = "mochi_serve.trace"
BEGUN = "mochi_serve.begun_ns"
"""Where in a request's scope stands when it came, Unix time in nanoseconds."""


class RequestTrace:
    """Of one request.

    Args:
        incoming: what its client sent, see `parse_traceparent`.
        begun_ns: when it came, Unix time; now by default.
        method: of HTTP.
        route: the pattern of its path.
    """

    def __init__(
        self,
        incoming: TraceContext | None = None,
        begun_ns: int | None = None,
        method: str = "POST",
        route: str = "",
        tracer: Tracer = TRACER,
    ) -> None:
        self.span: Span = SILENT
        self._incoming = incoming
        self._begun_ns = begun_ns
        self._name = f"{method} {route}".rstrip()
        self._about: dict[str, str | int | float | bool] = {"http.request.method": method, "http.route": route}
        self._tracer = tracer

    def begin_job(self, job_id: str, tenant: str) -> str | None:
        """It asks for a job. Returns what is kept with the job: None where neither client nor settings want a trace."""
        add_log_ids(
            job=job_id, tenant=tenant, trace=lambda: new_context(job_id, self._incoming, self._tracer.sample_ratio)
        )
        if not self._tracer.enabled:  # the client's own span is passed on, as nothing lies between
            return None if self._incoming is None else self._incoming.traceparent
        context = new_context(job_id, self._incoming, self._tracer.sample_ratio)
        about = self._about | {"mochi_serve.job.id": job_id, "mochi_serve.tenant": tenant}
        parent_id = None if self._incoming is None else self._incoming.span_id
        self.span = self._tracer.begin_as(self._name, context, parent_id, about, Kind.SERVER, start_ns=self._begun_ns)
        return context.traceparent

    def begin_download(self, job: Job, variant: str) -> Span:
        """It downloads a file of a job: in the job's trace, with a link to the client's if that is another one."""
        if self.span is not SILENT:  # it has made the video, too
            return self.span
        context, incoming = job.trace, self._incoming
        is_of_job = incoming is not None and incoming.trace_id == context.trace_id
        parent_id = incoming.span_id if incoming is not None and is_of_job else context.span_id
        links = () if incoming is None or is_of_job else (incoming,)
        about = self._about | {
            "mochi_serve.job.id": job.id,
            "mochi_serve.tenant": job.tenant,
            "mochi_serve.variant": variant,
        }
        own = replace(context, span_id=secrets.token_hex(8))
        self.span = self._tracer.begin_as(
            self._name, own, parent_id, about, Kind.SERVER, links, start_ns=self._begun_ns
        )
        return self.span

    def end(self, status: int | None) -> None:
        """It has been answered whole. status: None if it was broken off before."""
        if status is None:
            self.span.end("broken_off")
            return
        self.span.set({"http.response.status_code": status})
        self.span.end(str(status) if status >= 500 else None)


def request_trace(request: Request) -> RequestTrace:
    """Of the request, the same whenever it is asked for."""
    scope = request.scope
    trace: RequestTrace | None = scope.get(_KEY)
    if trace is None:
        headers = request.headers.getlist(HEADER)
        incoming = parse_traceparent(headers[0]) if len(headers) == 1 else None
        route = getattr(scope.get("route"), "path", "")
        trace = scope[_KEY] = RequestTrace(incoming, scope.get(BEGUN), scope["method"], route)
    return trace


def end_request_trace(scope: Scope, status: int | None) -> None:
    """As `authentication.OnEnd`."""
    trace: RequestTrace | None = scope.get(_KEY)
    if trace is not None:
        trace.end(status)
