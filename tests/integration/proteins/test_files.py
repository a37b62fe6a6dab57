"""A FASTA file as a job of the real registry: each sequence once, whatever is killed, as in requests for a few."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.proteins.esm2 import Esm2
from tests.support.proteins.files import Files, fasta_of, read_part, running_files, same
from tests.support.proteins.models import make_esm
from tests.support.proteins.sequences import drawn_sequence
from tests.support.waiting import until

SEQUENCES = [drawn_sequence(5 + n % 40, n).text for n in range(120)]
FASTA = fasta_of(SEQUENCES)
SMALL_PARTS = {"part_sequences": 10}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Esm2:
    return Esm2(make_esm(tmp_path_factory.mktemp("esm") / "model"))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'jobs.db'}"


@pytest.fixture
async def files(model: Esm2, url: str) -> AsyncIterator[Files]:
    async with running_files(model, url, **SMALL_PARTS) as running:
        yield running


async def test_each_sequence_is_answered_as_in_a_batch(files: Files) -> None:
    wrong = [*SEQUENCES[:25], "MK1", *SEQUENCES[25:40]]
    job = await files.upload(fasta_of(wrong), pooling="mean,max", layers="0,-1")
    assert (job["sequences"], job["parts"], job["format"], job["priority"]) == (41, 5, "safetensors", "batch")
    assert job["options"] == {"pooling": ["mean", "max"], "layers": [0, -1]}
    done = await files.completed(job["id"])
    assert (done["progress"], done["parts_done"], done["error"]) == (100, 5, None) and done["gpu_seconds"] > 0
    rows, arrays = await files.answers(done)
    assert [(row["index"], row["id"]) for row in rows] == [(n, f"seq{n}") for n in range(41)]
    assert rows[25]["error"]["code"] == "sequence_invalid"
    body = {"fasta": fasta_of(wrong), "pooling": ["mean", "max"], "layers": [0, -1]}
    answer = await files.api.client.post("/predict/batch", json=body, headers={"Accept": "application/x-safetensors"})
    batch_rows, batch_arrays = read_part(answer)
    assert rows == batch_rows and same(arrays, batch_arrays)


async def test_what_is_killed_costs_no_sequence_and_none_comes_twice(files: Files, model: Esm2, tmp_path: Path) -> None:
    job = await files.upload(FASTA)
    for kill in range(3):
        await files.has_done(job["id"], 3 * kill + 1)
        files.kill_worker(f"files-{kill + 1}")
        if kill == 1:
            await files.restart_registry()
        files.start_worker()
    done = await files.completed(job["id"])
    rows, arrays = await files.answers(done)
    assert [row["id"] for row in rows] == [f"seq{n}" for n in range(120)]
    async with running_files(model, f"sqlite:///{tmp_path / 'other.db'}", **SMALL_PARTS) as undisturbed:
        whole = await undisturbed.completed((await undisturbed.upload(FASTA))["id"])
        other_rows, other_arrays = await undisturbed.answers(whole)
    assert rows == other_rows and same(arrays, other_arrays)


async def test_an_interactive_file_does_not_wait_for_a_long_one(model: Esm2, url: str) -> None:
    async with running_files(model, url, slots=1, part_sequences=2) as files:
        long = await files.upload(fasta_of(SEQUENCES * 3))
        await files.has_done(long["id"], 2)
        urgent = await files.upload(fasta_of(SEQUENCES[:4]), priority="interactive")
        await files.completed(urgent["id"])
        parked = await files.job(long["id"])
        assert parked["state"] != "completed" and parked["parks"] == 1
        rows, _ = await files.answers(await files.completed(long["id"]))
        assert len(rows) == 360


async def test_what_is_done_can_be_had_before_the_end_and_until_it_is_deleted(files: Files) -> None:
    job = await files.upload(FASTA)
    path = f"/jobs/{job['id']}"
    await files.has_done(job["id"], 1)
    assert (await files.api.client.get(f"{path}/parts/1")).status_code == 200
    for number, status in ((0, 404), (13, 404), (12, 409)):
        answer = await files.api.client.get(f"{path}/parts/{number}")
        assert answer.status_code == status, answer.text
    cancelled = (await files.api.client.post(f"{path}/cancel")).json()
    assert (cancelled["state"], cancelled["error"]["code"]) == ("cancelled", "cancelled")
    rows, _ = await files.answers(await files.job(job["id"]))
    assert len(rows) >= 10
    assert (await files.api.client.delete(path)).json()["deleted"]
    assert (await files.api.client.get(path)).status_code == 404
    assert (await files.api.client.get(f"{path}/parts/1")).status_code == 404


async def test_the_events_tell_each_move_and_the_end(files: Files) -> None:
    job = await files.upload(FASTA)
    answer = await files.api.client.get(f"/jobs/{job['id']}/events")
    events = [line.removeprefix("event: ") for line in answer.text.splitlines() if line.startswith("event: ")]
    assert events[0] == "state" and events[-1] == "done" and events.count("state") == 3 and "progress" in events
    history = (await files.api.client.get(f"/jobs/{job['id']}/history")).json()["data"]
    assert [move["state"] for move in history] == ["queued", "embedding", "completed"]


async def test_a_sequence_that_no_device_holds_has_an_error_of_its_own(files: Files) -> None:
    big = drawn_sequence(700, 1).text
    for device in files.api.devices:
        device.refuses_above = 500
    job = await files.completed((await files.upload(fasta_of([*SEQUENCES[:5], big, *SEQUENCES[5:9]])))["id"])
    rows, _ = await files.answers(job)
    assert [row["id"] for row in rows] == [f"seq{n}" for n in range(10)]
    assert [row["error"]["code"] for row in rows if "error" in row] == ["too_large_for_device"]
    assert "error" in rows[5]


async def test_without_devices_a_file_waits(files: Files) -> None:
    job = await files.upload(FASTA)
    await files.has_done(job["id"], 1)
    devices = dict(files.api.handle.devices)
    files.api.handle.devices.clear()
    await asyncio.sleep(0.3)
    waiting = await files.job(job["id"])
    assert waiting["state"] in ("embedding", "queued")
    files.api.handle.devices.update(devices)
    done = await files.completed(job["id"])
    assert done["attempt"] == 1


async def test_a_repeated_request_is_one_job(files: Files) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = await files.api.client.post("/jobs", content=FASTA, headers=headers | {"Content-Type": "text/x-fasta"})
    again = await files.api.client.post("/jobs", content=FASTA, headers=headers | {"Content-Type": "text/plain"})
    assert again.json()["id"] == first.json()["id"] and again.headers["idempotent-replayed"] == "true"
    other = await files.api.client.post(
        "/jobs", content=FASTA + ">x\nMK\n", headers=headers | {"Content-Type": "text/x-fasta"}
    )
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
    await files.completed(first.json()["id"])
    job_ids = {key.split("/")[1] for key in files.api.store.objects}
    assert job_ids == {first.json()["id"]}, "of the others nothing stays"


async def test_files_and_videos_are_listed_apart(files: Files) -> None:
    ids = [(await files.upload(fasta_of(SEQUENCES[: n + 1])))["id"] for n in range(3)]
    listed = (await files.api.client.get("/jobs", params={"limit": 2})).json()
    assert [job["id"] for job in listed["data"]] == ids[:0:-1] and listed["has_more"]
    rest = (await files.api.client.get("/jobs", params={"after": listed["last_id"]})).json()
    assert [job["id"] for job in rest["data"]] == ids[:1] and not rest["has_more"]
    assert (await files.registry.list_jobs(10)).jobs == ()
    await asyncio.gather(*map(files.completed, ids))


@pytest.mark.parametrize("members", [1, 50])
async def test_gzip_is_unpacked(files: Files, members: int) -> None:
    headers = {"Content-Type": "text/x-fasta", "Content-Encoding": "gzip"}
    data, size = FASTA.encode(), -(-len(FASTA) // members)
    packed = b"".join(gzip.compress(data[start : start + size]) for start in range(0, len(data), size))
    answer = await files.api.client.post("/jobs", content=packed, headers=headers)
    assert answer.status_code == 200 and answer.json()["sequences"] == 120
    rows, _ = await files.answers(await files.completed(answer.json()["id"]))
    assert len(rows) == 120


@pytest.mark.parametrize(
    ("content", "headers", "query", "status", "code"),
    [
        (b"", {}, {}, 400, "fasta_invalid"),
        (b"\n;no sequence\n", {}, {}, 400, "fasta_invalid"),
        (b"MK\n>a\nMK\n", {}, {}, 400, "fasta_invalid"),
        (b">a\n\xff\xfe\n", {}, {}, 400, "fasta_invalid"),
        (b">a\n" + b"M" * 60_000 + b"\n" + b"K" * 40_001, {}, {}, 400, "fasta_invalid"),
        (FASTA.encode() * 40, {}, {}, 413, "request_too_large"),
        (fasta_of(["MK"] * 300).encode(), {}, {}, 400, "file_too_large"),
        (FASTA.encode(), {"Content-Encoding": "gzip"}, {}, 400, "fasta_invalid"),
        (gzip.compress(FASTA.encode())[:-20], {"Content-Encoding": "gzip"}, {}, 400, "fasta_invalid"),
        (gzip.compress(FASTA.encode() * 40), {"Content-Encoding": "gzip"}, {}, 413, "request_too_large"),
        (FASTA.encode(), {"Content-Encoding": "br"}, {}, 415, None),
        (FASTA.encode(), {"Content-Type": "text/html"}, {}, 415, None),
        (FASTA.encode(), {}, {"layer": "1"}, 400, "unknown_parameter"),
        (FASTA.encode(), {}, {"layers": "99"}, 400, None),
        (FASTA.encode(), {}, {"format": "csv"}, 400, None),
        (FASTA.encode(), {}, {"mutations": "A1G"}, 400, None),
        (FASTA.encode(), {}, {"priority": "now"}, 400, None),
        (FASTA.encode(), {}, {"webhook_url": "http://127.0.0.1/x"}, 400, None),
    ],
)
async def test_what_is_refused_leaves_nothing(
    model: Esm2, url: str, content: bytes, headers: dict[str, str], query: dict[str, Any], status: int, code: str | None
) -> None:
    limits = {"max_file_bytes": 110_000, "max_file_sequences": 200}
    async with running_files(model, url, workers=0, **SMALL_PARTS, **limits) as files:
        sent = {"Content-Type": "text/x-fasta"} | headers
        answer = await files.api.client.post("/jobs", content=content, headers=sent, params=query)
        assert answer.status_code == status, answer.text
        assert code in (None, answer.json()["error"]["code"])
        assert files.api.store.objects == {}
        assert (await files.api.client.get("/jobs")).json()["data"] == []


async def test_a_client_that_goes_away_leaves_nothing(files: Files) -> None:
    going = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield FASTA.encode()
        await going.wait()

    sending = asyncio.create_task(
        files.api.client.post("/jobs", content=body(), headers={"Content-Type": "text/x-fasta"})
    )
    await until(lambda: files.api.store.objects)
    sending.cancel()
    await until(lambda: not files.api.store.objects)
    with pytest.raises(asyncio.CancelledError):
        await sending


async def test_while_the_model_is_loaded_no_file_is_taken(files: Files) -> None:
    await files.api.forget_all()
    answer = await files.upload(FASTA, 503)
    assert answer["error"]["code"] == "model_loading" and files.api.store.objects == {}


async def test_bytes_may_come_in_any_pieces(model: Esm2, url: str) -> None:
    data = b"\xef\xbb\xbf" + FASTA.replace("\n", "\r\n").encode()

    async def pieces(size: int) -> AsyncIterator[bytes]:
        for start in range(0, len(data), size):
            yield data[start : start + size]

    async with running_files(model, url, workers=0, **SMALL_PARTS) as files:
        stored: list[list[bytes]] = []
        for size in (1, 7, 64, len(data)):
            headers = {"Content-Type": "text/x-fasta"}
            answer: httpx.Response = await files.api.client.post("/jobs", content=pieces(size), headers=headers)
            prefix = f"jobs/{answer.json()['id']}/"
            stored.append([files.api.store.objects[key] for key in await files.api.store.list_keys(prefix)])
    assert len(stored[0]) == 12 and all(one == stored[0] for one in stored)
