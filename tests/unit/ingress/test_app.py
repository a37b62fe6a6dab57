import subprocess
import sys
from collections import Counter

import httpx
import pytest

from serve_app.access.tenants import AccessTable
from serve_app.jobs import Acceptance, JobState, Submission
from serve_app.registry_api import RegistryClient
from tests.support import ROOT
from tests.support.http.fakes import FakeServices, MemoryRegistry
from tests.support.http.memory_http import fed_client


def test_the_ingress_loads_no_model_code() -> None:
    heavy = ("torch", "diffusers", "transformers", "accelerate", "sqlalchemy.orm")
    code = f"import sys, serve_app.ingress.app; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


class BrokenRegistry(MemoryRegistry):
    """Fails in a way that nobody foresaw."""

    async def submit(self, submission: Submission) -> Acceptance:
        raise ZeroDivisionError("a secret detail")


async def test_an_unforeseen_error_is_an_envelope_without_details(services: FakeServices) -> None:
    services.registry = RegistryClient(BrokenRegistry())
    async with fed_client(services, raise_app_exceptions=False) as client:
        answer = await client.post("/v1/videos", json={"prompt": "a red circle"})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text


@pytest.mark.parametrize("path", ["/v1/videos", "/generate"])
async def test_a_job_is_durable_before_the_answer(client: httpx.AsyncClient, services: FakeServices, path: str) -> None:
    name = "prompt" if path == "/v1/videos" else "text"
    answer = await client.post(path, json={name: "a red circle", "seed": 3})
    job = services.memory.jobs[answer.json()["id"]]
    assert (job.video.prompt, job.video.seed) == ("a red circle", 3)


async def test_json_form_and_multipart_say_the_same(client: httpx.AsyncClient, services: FakeServices) -> None:
    fields = {"prompt": "a red circle", "width": 96, "seed": 1, "guidance_scale": 2.5, "exact": True}
    text = {name: str(value) for name, value in fields.items()} | {"exact": "true"}
    await client.post("/v1/videos", json=fields)
    await client.post("/v1/videos", data=text)
    await client.post("/v1/videos", files={name: (None, value) for name, value in text.items()})
    specs = [job.spec for job in services.memory.jobs.values()]
    assert len(specs) == 3
    assert len(set(specs)) == 1


async def test_reads_come_from_the_feed(client: httpx.AsyncClient, services: FakeServices) -> None:
    ids = [(await client.post("/v1/videos", json={"prompt": "a red circle"})).json()["id"] for _ in range(3)]
    services.memory.move(ids[0], JobState.ENCODING)
    await client.post(f"/v1/videos/{ids[1]}/cancel")
    before = services.memory.calls - Counter(poll_feed=services.memory.calls["poll_feed"])
    states = [(await client.get(f"/v1/videos/{video_id}")).json()["state"] for video_id in ids]
    assert states == ["encoding", "cancelled", "queued"]
    assert [video["id"] for video in (await client.get("/v1/videos")).json()["data"]] == ids[::-1]
    assert len((await client.get(f"/v1/videos/{ids[0]}/history")).json()["data"]) == 2
    after = services.memory.calls - Counter(poll_feed=services.memory.calls["poll_feed"])
    assert after == before


async def test_without_a_feed_reads_ask_the_registry(unfed: httpx.AsyncClient, services: FakeServices) -> None:
    video_id = (await unfed.post("/v1/videos", json={"prompt": "a red circle"})).json()["id"]
    services.memory.move(video_id, JobState.ENCODING)
    assert (await unfed.get(f"/v1/videos/{video_id}")).json()["state"] == "encoding"
    assert [video["id"] for video in (await unfed.get("/v1/videos")).json()["data"]] == [video_id]
    assert len((await unfed.get(f"/v1/videos/{video_id}/history")).json()["data"]) == 2
    assert (services.memory.calls["list_jobs"], services.memory.calls["history"]) == (1, 1)


async def test_without_a_feed_and_a_registry_reads_are_503(unfed: httpx.AsyncClient, services: FakeServices) -> None:
    video_id = (await unfed.post("/v1/videos", json={"prompt": "a red circle"})).json()["id"]
    services.memory.reachable = False
    for path in (
        f"/v1/videos/{video_id}",
        "/v1/videos",
        f"/v1/videos/{video_id}/history",
        "/jobs",
        "/health",
        "/ready",
    ):
        answer = await unfed.get(path)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert answer.json()["error"]["code"] == "registry_unavailable"
        assert "db.internal" not in answer.text


async def test_the_feed_ends_with_the_app(services: FakeServices) -> None:
    async with fed_client(services):
        assert services.feed.valid
    calls = services.memory.calls["poll_feed"]
    services.memory.feed.publish_access(AccessTable(5, {}, {}))
    await services.memory.feed.flush()
    assert services.memory.calls["poll_feed"] == calls
