"""Debian's Prometheus scrapes the running server: every series is there, and the sums are those of the database."""

import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from PIL import Image

from deployments.metrics.names import ALL, BY_NAME
from monitoring.alerts import ALERTS, Alert
from monitoring.boards.all import DASHBOARDS
from monitoring.boards.overview import OVERVIEW
from monitoring.files import RULES
from monitoring.pictures import Source, Span, draw
from monitoring.promql import for_prometheus
from tests.chaos.job_records import JobRecords, read_only_sqlite
from tests.support.metrics.expressions import base_name, selectors
from tests.support.metrics.page import page_sums
from tests.support.metrics.prometheus import JOB as JOB_LABEL
from tests.support.metrics.prometheus import Prometheus, ray_targets, running_prometheus
from tests.support.servers.server import ENDLESS, Server
from tests.support.waiting import wait_until

JOB = {"prompt": "a red circle moves right", "size": "64x64", "num_frames": 7, "num_inference_steps": 4}


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with running_prometheus(
        tmp_path_factory.mktemp("prometheus"),
        server.url,
        key="ms-none-is-needed-here",
        rules=RULES,
        ray_targets=ray_targets(server),
    ) as running:
        yield running


def beyond_the_jobs(server: Server, records: JobRecords) -> dict[str, float]:
    """What the page says beyond the jobs' rows: what was deleted stays in it."""
    page = page_sums(server.url)
    return {name: page.get(name, 0.0) - value for name, value in records.sums().items()}


def make_one_of_each(server: Server) -> None:
    """A job that is completed, one of each other quality, one that is parked and goes on, one that is cancelled."""
    endless = server.create(**JOB | {"num_inference_steps": ENDLESS})
    server.wait_for(endless["id"], "sampling")
    urgent = [server.create(**JOB, priority="interactive", quality=quality) for quality in ("exact", "fast", "draft")]
    for video in urgent:
        server.wait_for(video["id"], "completed")
    with server.client() as client:
        assert client.post(f"/v1/videos/{endless['id']}/cancel").status_code == 200
    for tier in ("standard", "batch"):
        server.wait_for(server.create(**JOB, priority=tier)["id"], "completed")


def test_prometheus_has_every_series_after_a_job_of_each_kind(server: Server, prometheus: Prometheus) -> None:
    make_one_of_each(server)
    wait_until(lambda: prometheus.target().get("health") == "up", lambda: "the target is not up")
    wanted = {metric.name: metric for metric in ALL if metric.where_there_is is None}

    def missing() -> set[str]:
        there = {series["metric"]["__name__"] for series in prometheus.query('{__name__=~"mochi_serve_.+"}')}
        return {name for name, m in wanted.items() if (f"{name}_count" if m.kind == "histogram" else name) not in there}

    wait_until(lambda: not missing(), missing)
    assert missing() == set()
    # What happened shows: in the workers, in the ingress and in SQL.
    for counted in (
        "mochi_serve_step_seconds_count",
        "mochi_serve_busy_seconds_total",
        "mochi_serve_http_requests_total",
        "mochi_serve_job_end_to_end_seconds_count",
        "mochi_serve_store_requests_total",
        "mochi_serve_replica_start_seconds_count",
        "mochi_serve_database_commit_seconds_count",
    ):
        found = partial(prometheus.query, f"sum({counted})")
        wait_until(lambda found=found: any(float(s["value"][1]) > 0 for s in found()), partial(str, counted))  # type: ignore[misc]


def without_data(prometheus: Prometheus) -> set[tuple[str, str]]:
    """Dashboards and panels with an expression that has no series."""
    return {
        (dashboard.name, panel.title)
        for dashboard in DASHBOARDS
        for panel in dashboard.panels
        for query in panel.queries
        if not prometheus.query(for_prometheus(query.expression, JOB_LABEL, interval_s=15))
    }


def test_every_panel_has_data_after_the_jobs(server: Server, prometheus: Prometheus) -> None:
    """But for those that say what they need, and it is not here; Ray's page is scraped beside ours."""
    need_gpus, need_proteins = (needing(what) for what in ("a GPU", "the proteins"))
    no_gpu = page_sums(server.url)["mochi_serve_gpus_watched"] == 0
    server.wait_for(server.create(**JOB)["id"], "completed")  # within the last minute, for what is shown a second
    may_lack = need_gpus | need_proteins
    must_lack = may_lack if no_gpu else need_proteins
    wait_until(lambda: must_lack <= without_data(prometheus) <= may_lack, lambda: without_data(prometheus) ^ may_lack)


def needing(what: str) -> set[tuple[str, str]]:
    """The panels that say so."""
    return {(board.name, panel.title) for board in DASHBOARDS for panel in board.panels if panel.needs == what}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_looks_at_series_that_there_are(prometheus: Prometheus, alert: Alert) -> None:
    """But for codes of what has not happened, and GPUs."""
    for selector in selectors(alert.expression):
        if BY_NAME[base_name(selector.name)].where_there_is is None:
            looked_at = selector.name if "code" in selector.labels else selector.text
            wait_until(partial(prometheus.query, looked_at), partial(str, selector))


def test_a_dashboard_is_drawn_without_a_grafana(prometheus: Prometheus, tmp_path: Path) -> None:
    path = tmp_path / "overview.png"
    draw(OVERVIEW, Source(prometheus.url, JOB_LABEL, interval_s=15), Span(time.time() - 60, time.time()), path)
    with Image.open(path) as picture:
        colours = picture.convert("RGB").getcolors(maxcolors=1_000_000)
    assert colours is not None and len(colours) > 100


def test_prometheus_takes_the_rules_and_no_alert_fires(prometheus: Prometheus) -> None:
    wait_until(lambda: set(prometheus.rule_health().values()) == {"ok"}, prometheus.rule_health)
    assert set(prometheus.rule_health()) == {alert.name for alert in ALERTS}
    assert prometheus.firing() == []


def test_the_sums_are_those_of_the_database_after_kills(server: Server) -> None:
    records = JobRecords(read_only_sqlite(str(server.data / "jobs.db")))
    deleted = pytest.approx(beyond_the_jobs(server, records), abs=1e-6)
    jobs = [server.create(**JOB | {"num_inference_steps": 30, "seed": seed}) for seed in range(4)]
    server.wait_for(jobs[0]["id"], "sampling", "completed")
    before = page_sums(server.url)
    for part in ("sampler", "registry", "ingress"):
        server.kill(part)
    for job in jobs:
        server.wait_for(job["id"], "completed")
    wait_until(lambda: beyond_the_jobs(server, records) == deleted, lambda: beyond_the_jobs(server, records))
    after = page_sums(server.url)
    assert after["mochi_serve_jobs_unaccounted"] == 0
    fallen = {
        metric.name: (before[metric.name], after[metric.name])
        for metric in ALL
        if metric.kind == "counter" and metric.source == "jobs" and after[metric.name] < before[metric.name]
    }
    assert fallen == {}


def test_ray_s_own_page_carries_them(server: Server) -> None:
    """Each of Ray's nodes has a page; its port stands in the file that Ray writes for Prometheus."""
    wait_until(lambda: "mochi_serve_http_requests" in ray_page(server))
    page = ray_page(server)
    assert re.search(r"^ray_mochi_serve_step_seconds_bucket\{.*quality=\"exact\"", page, re.MULTILINE)
    assert re.search(r"^ray_mochi_serve_jobs_accepted_total\{.*tier=\"standard\"", page, re.MULTILINE)


def ray_page(server: Server) -> str:
    """What Ray's agent of the one node exports."""
    for port in ports_of_agent(server):
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30)
        except httpx.TransportError:
            continue
        if "ray_" in answer.text:
            return answer.text
    return ""


def ports_of_agent(server: Server) -> list[int]:
    """Where the agent's process listens."""
    return [
        connection.laddr.port
        for process in server.descendants()
        if any("dashboard/agent.py" in part or "dashboard_agent" in part for part in process.cmdline())
        or process.name().startswith("ray::DashboardAgent")
        for connection in process.net_connections("tcp")
        if connection.status == "LISTEN"
    ]
