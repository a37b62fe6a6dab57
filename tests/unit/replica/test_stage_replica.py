"""What the replicas of all stages share, with the smallest of them."""

import asyncio
import threading
from pathlib import Path

import pytest
import torch

from deployments.errors import PermanentError
from deployments.messages import Finished, ReplicaInfo, Stage, Started
from deployments.replica.connections import Connections
from deployments.replica.host import describe_device
from deployments.replica.running_task import RunningTask
from deployments.replica.stage_replica import StageReplica
from deployments.settings import WorkerSettings
from tests.support.workers.fakes import ReportLog, connections, task, worker_settings
from tests.support.workers.memory_store import MemoryStore


class Decoder(StageReplica):
    """Waits in its thread until it may go on or is stopped."""

    stage = Stage.DECODING
    model_parts = ("vae",)

    def __init__(self, settings: WorkerSettings, connections: Connections) -> None:
        super().__init__(settings, connections)
        self.may_go_on = threading.Event()
        self.start_worker(slots=2, max_tokens=99)

    async def work(self, running: RunningTask) -> None:
        def wait() -> None:
            while not self.may_go_on.wait(0.01):
                running.raise_if_stopped()

        await running.in_thread(wait)


def decoder(log: ReportLog) -> Decoder:
    return Decoder(worker_settings(Stage.DECODING), connections(log, MemoryStore()))


async def test_a_replica_announces_its_stage_its_device_and_its_slots() -> None:
    log = ReportLog()
    replica = decoder(log)
    while not log.announced:
        await asyncio.sleep(0.005)
    assert log.announced[0] == ReplicaInfo(
        replica="replica-1",
        stage=Stage.DECODING,
        slots=2,
        device=describe_device(torch.device("cpu")),
        model=worker_settings(Stage.DECODING).model.name,
        max_tokens=99,
    )
    replica.__del__()


async def test_a_task_is_worked_on_and_reported() -> None:
    log = ReportLog()
    replica = decoder(log)
    replica.may_go_on.set()
    await replica.run(task(Stage.DECODING))
    await replica.check_health()
    assert [type(event) for event in log.events] == [Started, Finished]
    replica.__del__()


async def test_the_end_of_a_replica_stops_its_tasks() -> None:
    log = ReportLog()
    replica = decoder(log)
    call = asyncio.create_task(replica.run(task(Stage.DECODING)))
    while not log.events:
        await asyncio.sleep(0.005)
    replica.__del__()
    await call
    assert [type(event) for event in log.events] == [Started]


async def test_a_replica_whose_model_is_not_there_ends_as_it_began(tmp_path: Path) -> None:
    settings = worker_settings(Stage.DECODING, tmp_path / "nothing")
    with pytest.raises(PermanentError, match="no such folder"):
        Decoder(settings, connections(log := ReportLog(), MemoryStore()))
    assert log.announced == []
