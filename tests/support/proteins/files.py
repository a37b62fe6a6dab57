"""Files of proteins as jobs without Ray: a real registry, workers that a test can kill, the app and its store."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from safetensors.numpy import load

from deployments.embedder.messages import DeviceInfo
from deployments.embedder.settings import ProteinSettings
from deployments.messages import ReplicaInfo, Stage, StageTask
from deployments.proteins.esm2 import Esm2
from deployments.replica.registry_link import Method, P, T
from deployments.replica.running_task import Timing
from deployments.replica.stage_worker import StageWorker
from serve_app.calls.devices import Devices
from serve_app.config import JobSettings, RetentionSettings, SchedulingSettings
from serve_app.errors import NoReplicaError, ReplicaDiedError
from serve_app.proteins.files.worker import FileWorker
from serve_app.proteins.service import ProteinService
from serve_app.registry.actor import JobRegistry
from serve_app.registry.timing import DispatchTiming, RegistryTiming
from tests.support.proteins.api import LASTING, NAME, TIMING, ProteinApi, running_api
from tests.support.waiting import PATIENCE_S

SETTINGS = JobSettings(retry_pause_s=0.01, max_attempts=3)
Row = dict[str, Any]


@dataclass
class KillableWorker:
    """A worker that ends like a killed process: nothing of it is reported."""

    name: str
    worker: StageWorker
    files: FileWorker
    killed: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, task: StageTask) -> None:
        """Raises ReplicaDiedError when it is killed."""
        work = asyncio.create_task(self.worker.run(task, lambda running: self.files.work(running, self.worker)))
        death = asyncio.create_task(self.killed.wait())
        await asyncio.wait({work, death}, return_when=asyncio.FIRST_COMPLETED)
        death.cancel()
        if self.killed.is_set():
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
            raise ReplicaDiedError(self.name)
        await work


@dataclass
class Files:
    """A registry on a database that outlives it, and the workers it calls."""

    url: str
    scheduling: SchedulingSettings = SchedulingSettings()
    api: ProteinApi = field(init=False)
    registry: JobRegistry = field(init=False)
    workers: dict[str, KillableWorker] = field(default_factory=dict)
    count: int = 0

    def start_registry(self) -> None:
        self.registry = JobRegistry(
            self.url,
            SETTINGS,
            self.scheduling,
            "here",
            send=self._send,
            retention=RetentionSettings(),
            timing=RegistryTiming(DispatchTiming(takeover_s=1.0)),
        )

    async def restart_registry(self) -> None:
        """As after a kill: what it had in memory is gone."""
        await self.registry.close()
        self.start_registry()

    async def call(self, method: Method[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The link to whichever registry is there."""
        answer: T = await getattr(self.registry, method.__name__)(*args, **kwargs)
        return answer

    def start_worker(self, slots: int = 2) -> KillableWorker:
        self.count += 1
        name = f"files-{self.count}"
        devices: Devices[DeviceInfo] = Devices("proteins", NAME, lambda: self.api.handle, "answer", TIMING, LASTING)
        self._describing = asyncio.create_task(devices.run())
        service = ProteinService(ProteinSettings(source="tests", name="tiny"), devices, 1)
        worker = StageWorker(
            ReplicaInfo(name, Stage.EMBEDDING, slots, "cpu", "tiny"),
            _Reports(self),
            is_draining=lambda: False,
            end_process=lambda: None,
            timing=Timing(end_retry_s=0.01, announce_retry_s=0.01, report_every_s=0.01),
        )
        self.workers[name] = KillableWorker(name, worker, FileWorker(service, self.api.store))
        return self.workers[name]

    def kill_worker(self, name: str) -> None:
        killed = self.workers.pop(name)
        killed.killed.set()
        killed.worker.close()

    async def _send(self, task: StageTask, accept: Callable[[str], bool]) -> None:
        for name, worker in list(self.workers.items()):
            if accept(name):
                await worker.run(task)
                return
        raise NoReplicaError(task.stage)

    async def upload(self, fasta: str, status: int = 200, **query: Any) -> Any:
        """The answer's JSON to a file."""
        headers = {"Content-Type": "text/x-fasta"}
        answer = await self.api.client.post("/jobs", content=fasta.encode(), params=query, headers=headers)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def job(self, job_id: str) -> Any:
        answer = await self.api.client.get(f"/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def reaches(self, job_id: str, condition: Callable[[Any], object]) -> Any:
        """The job once the condition holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition(job := await self.job(job_id)):
                assert job["state"] != "failed", job
                await asyncio.sleep(0.002)
        return job

    async def has_done(self, job_id: str, parts: int) -> Any:
        return await self.reaches(job_id, lambda job: job["parts_done"] >= parts)

    async def completed(self, job_id: str) -> Any:
        return await self.reaches(job_id, lambda job: job["state"] == "completed")

    async def answers(self, job: Any) -> tuple[list[Row], dict[str, Any]]:
        """All rows and arrays of a job, in the order of its parts."""
        rows: list[Row] = []
        arrays: dict[str, Any] = {}
        for number in range(1, job["parts_done"] + 1):
            answer = await self.api.client.get(f"/jobs/{job['id']}/parts/{number}")
            assert answer.status_code == 200, answer.text
            part_rows, part_arrays = read_part(answer)
            rows += part_rows
            assert not arrays.keys() & part_arrays.keys()
            arrays |= part_arrays
        return rows, arrays


class _Reports:
    """The registry as a worker sees it; which one it is changes."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files.registry, name)


def read_part(answer: httpx.Response) -> tuple[list[Row], dict[str, Any]]:
    """Rows and arrays of an object in safetensors."""
    body = answer.content
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    return json.loads(header["__metadata__"]["answer"])["results"], dict(load(body))


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether all arrays have the same names and bits."""
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def fasta_of(sequences: Sequence[str]) -> str:
    """With names seq0, seq1 ..., and lines of 60."""
    lines = []
    for n, sequence in enumerate(sequences):
        lines += [f">seq{n} of a test", *(sequence[i : i + 60] for i in range(0, len(sequence), 60))]
    return "\n".join(lines) + "\n"


@asynccontextmanager
async def running_files(
    model: Esm2, url: str, workers: int = 1, slots: int = 2, **settings: Any
) -> AsyncIterator[Files]:
    """settings: of the section `proteins`."""
    files = Files(url)
    files.start_registry()
    async with running_api(model, 2, link=files, **settings) as api:
        files.api = api
        for _ in range(workers):
            files.start_worker(slots)
        yield files
        for name in list(files.workers):
            files.kill_worker(name)
    await files.registry.close()
