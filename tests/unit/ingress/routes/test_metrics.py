"""The page /metrics: who may read it, in which form, and how requests are counted."""

import httpx
import pytest

from deployments.metrics import names
from deployments.metrics.recorder import RECORDER, Distribution
from serve_app.config import MetricsSettings
from tests.support.http.fakes import FakeServices
from tests.support.http.keyed_services import keyed_services
from tests.support.http.memory_http import fed_client

SERIES = (names.JOBS_ACCEPTED.name, ("batch", "acme"))
LINE = 'mochi_serve_jobs_accepted_total{tenant="acme",tier="batch"} 3.0'


def keyed(**settings: object) -> tuple[FakeServices, dict[str, dict[str, str]]]:
    services, headers = keyed_services("operator", "acme")
    services.settings = services.settings.model_copy(update={"metrics": MetricsSettings.model_validate(settings)})
    services.memory.counted = {SERIES: 3}
    return services, headers


async def ask(services: FakeServices, headers: dict[str, str]) -> httpx.Response:
    async with fed_client(services) as client:
        return await client.get("/metrics", headers=headers)


async def test_without_keys_everybody_reads_it(services: FakeServices, unfed: httpx.AsyncClient) -> None:
    services.memory.counted = {SERIES: 3}
    answer = await unfed.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert LINE in answer.text.splitlines()
    assert "no-store" in answer.headers["cache-control"]


async def test_openmetrics_is_sent_to_who_asks_for_it(unfed: httpx.AsyncClient) -> None:
    answer = await unfed.get(
        "/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    )
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")


async def test_with_keys_it_needs_one_of_a_reader() -> None:
    services, headers = keyed()
    assert LINE in (await ask(services, headers["operator"])).text.splitlines()
    refused = await ask(services, headers["acme"])
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "metrics_not_allowed")
    assert "metrics.readers: operator" in refused.json()["error"]["message"]
    assert (await ask(services, {})).json()["error"]["code"] == "missing_api_key"


async def test_the_readers_are_a_setting() -> None:
    services, headers = keyed(readers=["acme"])
    assert (await ask(services, headers["acme"])).status_code == 200
    assert (await ask(services, headers["operator"])).status_code == 403


async def test_an_open_page_needs_no_key() -> None:
    services, headers = keyed(open=True)
    assert (await ask(services, {})).status_code == 200
    assert (await ask(services, {"Authorization": "Bearer wrong"})).status_code == 200


async def test_a_registry_that_is_away_is_said(services: FakeServices, unfed: httpx.AsyncClient) -> None:
    services.memory.reachable = False
    assert (await unfed.get("/metrics")).status_code == 503


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("GET", "/v1/videos/video_1", "/v1/videos/{video_id}", 404),  # the fast route of a plain read
        ("GET", "/v1/videos/video_1?wait=0", "/v1/videos/{video_id}", 404),
        ("HEAD", "/v1/videos", "/v1/videos", 200),
        ("GET", "/web/no.js", "/web/{path:path}", 404),
        ("GET", "/no/such/path", "unmatched", 404),
        ("POST", "/v1/videos", "/v1/videos", 400),
    ],
)
async def test_a_request_is_counted_by_the_pattern_of_its_route(
    unfed: httpx.AsyncClient, method: str, path: str, route: str, status: int
) -> None:
    def counted() -> tuple[float, int]:
        values = RECORDER.snapshot("test").values
        number = values.get((names.HTTP_REQUESTS.name, (route, method, str(status))), 0)
        seconds = values.get((names.HTTP_SECONDS.name, (route,)))
        assert isinstance(number, int | float)
        return number, sum(seconds.counts) if isinstance(seconds, Distribution) else 0

    number, times = counted()
    await unfed.request(method, path)
    assert counted() == (number + 1, times + 1)
