"""Devices without Ray: they stand behind what is used of Serve's handle, and each computes with a real model."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import RayServeException

from deployments.embedder.messages import AnsweredGroup, DeviceInfo
from deployments.embedder.pass_loop import PassLoop
from deployments.errors import DeviceBrokenError, PermanentError, WorkerError
from deployments.proteins.esm2 import Esm2
from deployments.proteins.queries import Answer, Query
from serve_app.calls.device_table import TABLES


@dataclass
class FakeDevice:
    """One replica. What ails it may be set at any time."""

    info: DeviceInfo
    passes: PassLoop
    fails: bool = False  # its device is broken
    chokes_on: int = 0  # it raises some error at groups of so many tokens
    refuses_above: int = 0  # its memory does not hold a query of more tokens; 0: it holds all
    fails_next: int = 0  # so many next calls end with some error
    hangs: bool = False  # a call is never answered
    dead: bool = False  # its process is gone
    reported: bool = True  # it answers what it is
    calls: list[int] = field(default_factory=list)  # tokens of each group

    async def answer(self, queries: tuple[Query, ...]) -> AnsweredGroup:
        self.calls.append(sum(len(query.tokens) for query in queries))
        if self.dead:
            raise ActorDiedError()
        if self.hangs:
            await asyncio.Event().wait()
        try:
            if self.fails:
                raise DeviceBrokenError("CUDA error: an illegal memory access was encountered")
            if self.refuses_above and max(len(query.tokens) for query in queries) > self.refuses_above:
                raise PermanentError("too_large_for_device", "the device's memory does not hold it")
            if self.fails_next or self.calls[-1] == self.chokes_on:
                self.fails_next -= self.fails_next > 0
                raise RuntimeError("a kernel that does not know this shape")
            answers, seconds = await self.passes.answer(queries)
        except (WorkerError, RuntimeError) as error:
            raise RayTaskError("answer", "", error) from error
        return AnsweredGroup(answers, seconds)


@dataclass(frozen=True, slots=True)
class _Selection:
    replica_id: str


class FakeHandle:
    """As Serve's handle of the deployment `name`, with its router: the least loaded device that is admitted."""

    def __init__(self, name: str, devices: Sequence[FakeDevice]) -> None:
        self.devices = {device.info.replica: device for device in devices}
        self.answer = self
        self._name = name

    @asynccontextmanager
    async def choose_replica(self, avoid: frozenset[str]) -> AsyncIterator[_Selection]:
        while not (ranked := TABLES[self._name].rank(self.devices, time.monotonic(), avoid)):
            await asyncio.sleep(0.001)  # as Serve's router, which asks again and again
        yield _Selection(ranked[0])

    async def dispatch(self, selection: _Selection, queries: tuple[Query, ...]) -> AnsweredGroup:
        if selection.replica_id not in self.devices:
            raise RayServeException(f"{selection.replica_id} is gone")
        return await self.devices[selection.replica_id].answer(queries)

    def broadcast(self, method: str) -> "_Broadcast":
        return _Broadcast(self, method)


@dataclass(frozen=True, slots=True)
class _Broadcast:
    handle: FakeHandle
    method: str

    async def results_async(self, timeout_s: float, return_exceptions: bool) -> list[Any]:
        told: list[Any] = []
        for device in self.handle.devices.values():
            if device.dead or not device.reported:
                told.append(ActorDiedError())
            else:
                told.append(device.info if self.method == "describe" else 0.01)
        return told


def fake_devices(model: Esm2, count: int, pass_tokens: int = 1_024, **info: Any) -> list[FakeDevice]:
    """Devices that share a model, which computes in a thread for each."""
    devices = []
    for number in range(count):
        told = DeviceInfo(
            replica=f"device-{number}",
            device="cpu (1 thread)",
            cuda=False,
            revision="r1",
            num_layers=model.num_layers,
            hidden_size=model.hidden_size,
            predicts_tokens=model.predicts_tokens,
            predicts_contacts=model.predicts_contacts,
            pass_tokens=pass_tokens,
        )
        devices.append(FakeDevice(replace(told, **info), PassLoop(model.run, pass_tokens)))
    return devices


def alone(model: Esm2, query: Query) -> Answer:
    """What the model answers to a query that has the pass to itself."""
    (answer,) = model.run([query])
    return answer
