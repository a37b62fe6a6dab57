import httpx
import pytest

from deployments.messages import Stage
from serve_app.jobs import JobState
from tests.support.http.fakes import FakeServices


async def test_generate_to_download(client: httpx.AsyncClient, services: FakeServices) -> None:
    accepted = await client.post("/generate", json={"text": "a red circle", "seed": 7})
    assert accepted.status_code == 202
    video_id = accepted.json()["id"]
    assert accepted.headers["location"] == f"/status/{video_id}"
    assert services.memory.jobs[video_id].video.seed == 7

    waiting = await client.get(accepted.headers["location"])
    assert waiting.json() == accepted.json()
    assert waiting.headers["openai-poll-after-ms"] == "250"

    services.memory.complete(video_id)
    services.add_file(video_id, "video", b"the mp4")
    done = await client.get(f"/status/{video_id}")
    assert (done.json()["status"], done.json()["progress"]) == ("completed", 100)
    assert "openai-poll-after-ms" not in done.headers
    assert (await client.get(f"/download/{video_id}")).content == b"the mp4"


async def test_text_is_required(client: httpx.AsyncClient) -> None:
    error = (await client.post("/generate", json={"prompt": "a red circle"})).json()["error"]
    assert (error["param"], error["code"]) == ("prompt", "unknown_parameter")
    error = (await client.post("/generate", json={})).json()["error"]
    assert (error["param"], error["code"]) == ("text", "missing_required_parameter")


async def test_cancel(client: httpx.AsyncClient, services: FakeServices) -> None:
    video_id = (await client.post("/generate", json={"text": "a red circle"})).json()["id"]
    services.memory.move(video_id, JobState.ENCODING)
    cancelled = await client.post(f"/cancel/{video_id}")
    assert cancelled.status_code == 200
    assert (cancelled.json()["status"], cancelled.json()["state"]) == ("failed", "cancelled")
    assert cancelled.json()["error"] == {"code": "cancelled", "message": "the job was cancelled"}
    for path in (f"/cancel/{video_id}", f"/v1/videos/{video_id}/cancel"):
        again = await client.post(path)
        assert (again.status_code, again.json()) == (200, cancelled.json())
    assert (await client.get(f"/download/{video_id}")).json()["error"]["code"] == "cancelled"


@pytest.mark.parametrize("state", [JobState.COMPLETED, JobState.FAILED])
async def test_a_final_job_is_not_cancelled(client: httpx.AsyncClient, services: FakeServices, state: JobState) -> None:
    video_id = (await client.post("/generate", json={"text": "a red circle"})).json()["id"]
    job = services.memory.complete(video_id) if state is JobState.COMPLETED else services.memory.move(video_id, state)
    answer = await client.post(f"/cancel/{video_id}")
    assert answer.status_code == 409
    assert answer.headers["x-should-retry"] == "false"
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("video_id", "video_final")
    assert f"is {state};" in error["message"]
    assert services.memory.jobs[video_id] == job


@pytest.mark.parametrize("video_id", ["video_" + "0" * 32, "nothing"])
async def test_cancel_of_nothing(client: httpx.AsyncClient, video_id: str) -> None:
    answer = await client.post(f"/cancel/{video_id}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "video_not_found")


async def test_jobs_is_the_same_listing(client: httpx.AsyncClient) -> None:
    for _ in range(3):
        await client.post("/generate", json={"text": "a red circle"})
    assert (await client.get("/jobs?limit=2")).json() == (await client.get("/v1/videos?limit=2")).json()


async def test_ready_waits_for_every_stage(client: httpx.AsyncClient, services: FakeServices) -> None:
    starting = await client.get("/ready")
    assert (starting.status_code, starting.headers["retry-after"]) == (503, "2")
    assert "no sampling replica is ready" in starting.json()["error"]["message"]

    services.memory.announce_all()
    decoder = services.memory.replicas.pop(Stage.DECODING)
    assert "no decoding replica" in (await client.get("/ready")).json()["error"]["message"]

    services.memory.replicas[Stage.DECODING] = decoder
    ready = await client.get("/ready")
    assert (ready.status_code, ready.json()["status"], ready.json()["error"]) == (200, "ok", None)


async def test_health_is_good_while_replicas_start(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.memory.announce_all()
    del services.memory.replicas[Stage.SAMPLING]
    services.memory.starting = {Stage.SAMPLING: (1_700_000_090.2, 1_700_000_120.0)}
    answer = await client.get("/health")
    report = answer.json()
    assert (answer.status_code, report["status"], report["error"]) == (200, "starting", None)
    assert report["waiting_for"] == "no sampling replica is ready"
    assert report["starting"] == {"sampling": {"count": 2, "ready_at": 1_700_000_091}}
    assert (await client.post("/generate", json={"text": "a red circle"})).status_code == 202


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_both_need_the_stores(client: httpx.AsyncClient, services: FakeServices, path: str) -> None:
    services.memory.announce_all()
    services.store.reachable = False
    without_store = await client.get(path)
    assert without_store.status_code == 503
    assert without_store.json()["storage"] == "the object store does not answer"

    services.store.reachable = True
    services.memory.database = "the disk is full"
    without_database = await client.get(path)
    assert (without_database.status_code, without_database.headers["retry-after"]) == (503, "2")
    assert (without_database.json()["status"], without_database.json()["database"]) == (
        "unavailable",
        "the disk is full",
    )
    assert "the disk is full" in without_database.json()["error"]["message"]

    services.memory.database = "ok"
    ready = await client.get(path)
    assert ready.status_code == 200
    assert (ready.json()["database"], ready.json()["error"]) == ("ok", None)


async def test_health_tells_devices_models_and_queue(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.memory.announce_all(max_tokens=1280)
    for state in (JobState.ENCODING, JobState.CANCELLED):
        video_id = (await client.post("/generate", json={"text": "a red circle"})).json()["id"]
        services.memory.move(video_id, state)
    await client.post("/generate", json={"text": "a red circle"})
    report = (await client.get("/health")).json()
    assert report["models"] == ["mochi-1"]
    assert report["queue"] == {"encoding": 1, "queued": 1}
    replica = {"replica": "sampling#1", "device": "cpu", "model": "mochi-1", "slots": 1, "max_tokens": 1280}
    assert report["devices"]["sampling"] == [replica | {"revision": None, "problem": None}]
    assert report["devices"]["decoding"][0]["max_tokens"] is None


async def test_health_without_the_registry(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.memory.reachable = False
    answer = await client.get("/health")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "registry_unavailable"


async def test_the_status_tells_what_waits_and_what_is_worked_on(
    client: httpx.AsyncClient, services: FakeServices
) -> None:
    services.memory.announce_all()
    running, *_ = [(await client.post("/generate", json={"text": f"circle {n}"})).json()["id"] for n in range(3)]
    services.memory.move(running, JobState.ENCODING)
    services.memory.move(running, JobState.QUEUED, stage=Stage.SAMPLING)
    services.memory.move(running, JobState.SAMPLING, step=3, progress=0.4)
    status = (await client.get("/v1/status")).json()
    (waiting,) = status["waiting"]
    assert (waiting["stage"], waiting["tier"], waiting["tenant"], waiting["count"]) == (
        "encoding",
        "standard",
        "default",
        2,
    )
    (job,) = status["running"]
    assert (job["id"], job["replica"], job["step"], job["progress"], job["step_s"]) == (
        running,
        "sampling#1",
        3,
        40,
        0.25,
    )
    assert {(one["stage"], one["busy"]) for one in status["replicas"]} == {
        ("encoding", 0),
        ("sampling", 1),
        ("decoding", 0),
    }
