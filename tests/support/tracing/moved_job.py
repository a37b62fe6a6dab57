"""A job of a real server that is parked by an interactive one, moved because its sampler is told to leave, and made."""

import os
import signal
from dataclasses import dataclass

from deployments.tracing.context import TraceContext
from tests.support.servers.server import Server
from tests.support.servers.steps import wait_for_step
from tests.support.tracing.collector import Collector, SentSpan
from tests.support.waiting import wait_until

HEADER_NAME, HEADER_VALUE = "x-collector-key", "a-key-of-the-collector"
STEP_S = 0.05
STEPS = 120
SMALL = {"prompt": "a red circle moves right", "size": "64x64", "num_frames": 7}
CLIENT = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", True)


def settings(collector: Collector) -> dict[str, str]:
    """Of a server with one slot to sample in, whose spans go to the collector."""
    return {
        "MOCHI_SERVE__TRACING__EXPORTER": "otlp",
        "MOCHI_SERVE__TRACING__ENDPOINT": collector.url,
        "MOCHI_SERVE__TRACING__HEADERS": f'{{"{HEADER_NAME}": "{HEADER_VALUE}"}}',
        "MOCHI_SERVE__SAMPLING__MIN_STEP_S": str(STEP_S),
        "MOCHI_SERVE__SAMPLING__CHECKPOINT_S": "1",
        "MOCHI_SERVE__SAMPLER__SLOTS": "1",
        "MOCHI_SERVE__MODEL__NUM_INFERENCE_STEPS__MAXIMUM": "1000",
        "MOCHI_SERVE__WEBHOOKS__ALLOW_PRIVATE": "true",
    }


@dataclass(frozen=True)
class MovedJob:
    """What became of it. spans: of its trace, by their beginning."""

    video_id: str
    spans: list[SentSpan]
    traceresponse: str


def make(server: Server, collector: Collector) -> MovedJob:
    """Have it made, parked, moved, told to a webhook and downloaded."""
    body = SMALL | {"num_inference_steps": STEPS, "seed": 5, "webhook_url": f"{collector.url}/hook"}
    with server.client() as client:
        headers = {"traceparent": CLIENT.traceparent}
        answer = client.post("/v1/videos", json=body, headers=headers).raise_for_status()
        video_id = answer.json()["id"]
        wait_for_step(server, video_id, 25)
        urgent = server.create(**SMALL, num_inference_steps=10, priority="interactive")
        server.wait_for(urgent["id"], "completed")
        wait_for_step(server, video_id, 60)
        for pid in server.pids("sampler"):
            os.kill(pid, signal.SIGTERM)
        server.wait_for(video_id, "completed")
        client.get(f"/v1/videos/{video_id}/content").raise_for_status()
    wait_until(lambda: is_whole(spans(collector)), lambda: [span.name for span in spans(collector)])
    return MovedJob(video_id, spans(collector), answer.headers["traceresponse"])


def is_whole(found: list[SentSpan]) -> bool:
    """Whether the last ones of each process are there, and each has its parent: every process sends its own, later."""
    last = {"webhook", "job", "decode", "GET /v1/videos/{video_id}/content"}
    ids = {CLIENT.span_id, *(span.span_id for span in found)}
    return last <= {span.name for span in found} and all(span.parent_id in ids for span in found)


def spans(collector: Collector) -> list[SentSpan]:
    """Those of its trace."""
    return collector.of(CLIENT.trace_id)
