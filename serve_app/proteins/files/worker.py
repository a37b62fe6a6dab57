"""Works on files of sequences, part by part: a stage of the registry's jobs, which asks the devices as requests do.

Every part that is done lies in storage before it is reported. So a worker that is killed loses the part that it was at
and the one that was being stored, and one that is to leave, or to make room, ends behind them.
"""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from ray import serve

from deployments.background import keep_running
from deployments.embedder.messages import DeviceInfo
from deployments.embedder.settings import ProteinSettings
from deployments.errors import PermanentError, TransientError
from deployments.keys import answered_part_key, asked_part_key
from deployments.logs.lines import begin_log, name_replica
from deployments.logs.masking import secrets_of
from deployments.messages import Checkpointed, Event, Parked, ProteinSpec, ReplicaInfo, Stage, StageTask
from deployments.replica.registry_link import RegistryLink, WorkerRegistry, WorkerRegistryClient
from deployments.replica.running_task import RunningTask, TaskStore, Timing
from deployments.replica.stage_worker import StageWorker
from deployments.storage.object_store import ObjectStore, Store
from deployments.tracing.tracer import TRACER
from deployments.watchdog.heartbeat import watch_this_process
from serve_app.calls.devices import CallTiming, Devices
from serve_app.config import AppSettings
from serve_app.errors import InvalidRequestError, ServiceUnavailableError
from serve_app.proteins.answers import MEDIA_TYPES, AnswerHead, batch_answer
from serve_app.proteins.files.parts import FilePart
from serve_app.proteins.requests import Options, ProteinRequest
from serve_app.proteins.service import APPLICATION, EMBEDDER, ProteinAnswer, ProteinService, check_options
from serve_app.proteins.work import SequenceResult

ROLE = "protein_files"
PASSES_AHEAD = 1
"""That each device is sent at once: a request for a few sequences waits for no more."""
LOOK_S = 5.0
"""Between two looks at whether a part that is computed is still wanted."""
DEVICE_PAUSE_S = 2.0
FAILURES = 5
"""Of the devices at one part, before it counts as an attempt of the job."""
log = logging.getLogger("ray.serve")

T = TypeVar("T")


class FileWorker:
    """Answers the parts of a file.

    Args:
        service: asks the devices.
        store: of the parts.
    """

    def __init__(self, service: ProteinService, store: Store) -> None:
        self._service = service
        self._store = store

    async def work(self, running: RunningTask, worker: StageWorker) -> Event | None:
        """Do a task; returns None when it is finished, or `Parked`.

        Raises:
            WorkerError: what ends the attempt.
            StoppedError: the task was stopped.
        """
        task, spec = running.task, running.task.spec
        assert isinstance(spec, ProteinSpec)
        options = Options.model_validate(dict(spec.options))
        store = TaskStore(self._store, running)
        # While a part is computed, the next one is read and the one before is stored.
        reading: asyncio.Task[FilePart] | None = None
        storing: asyncio.Task[None] | None = None
        try:
            for number in range(task.checkpoint_step, spec.parts):
                running.progress(number, spec.parts)
                if running.park_reason is not None:
                    if storing is not None:
                        await storing
                    return Parked(number, running.park_reason, running.device_s, running.passes)
                part = await (reading or _read(store, task.job_id, number))
                reading = None
                if number + 1 < spec.parts:
                    reading = asyncio.create_task(_read(store, task.job_id, number + 1))
                running.clock.lap("read")
                answered = await _while_wanted(running, self._answer(running, part.request(options)))
                running.add_device_ns(round(answered.head.device_s * 1e9))
                running.clock.lap("embed")
                if storing is not None:
                    await storing
                running.clock.lap("store")
                storing = asyncio.create_task(_keep(running, worker, store, number, part, answered))
            if storing is not None:
                await storing
        finally:
            left = [one for one in (reading, storing) if one is not None]
            for one in left:
                one.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        running.clock.lap("store")
        running.progress(spec.parts, spec.parts)
        return None

    async def _answer(self, running: RunningTask, request: ProteinRequest) -> ProteinAnswer:
        """Of a part; devices that are not there are waited for."""
        tenant = running.task.tenant or ""
        failures = 0
        while True:
            try:
                check_options(request.options, self._service.any_device())
                return await self._answer_each(request, tenant)
            except InvalidRequestError as error:
                raise PermanentError(error.code or "invalid_request", error.message) from None
            except ServiceUnavailableError as error:
                failures += error.code == "device_failed"
                if failures >= FAILURES:
                    raise TransientError("device_failed", error.message) from None
                log.warning("a part of a file waits for the devices: %s", error.message)
            await asyncio.sleep(DEVICE_PAUSE_S)

    async def _answer_each(self, request: ProteinRequest, tenant: str) -> ProteinAnswer:
        """As the service does, but what a device refuses of one sequence is the error of that one alone."""
        try:
            return await self._service.answer_part(request, tenant)
        except InvalidRequestError as error:
            asked = request.sequences
            if len(asked) == 1:
                refused = SequenceResult(asked[0].id, error=PermanentError(error.code or "", error.message))
                return ProteinAnswer(self._service.head(0.0), (refused,))
        middle = len(asked) // 2
        first = await self._answer_each(replace(request, sequences=asked[:middle]), tenant)
        second = await self._answer_each(replace(request, sequences=asked[middle:]), tenant)
        head = AnswerHead(first.head.model, first.head.info, first.head.device_s + second.head.device_s)
        return ProteinAnswer(head, (*first.results, *second.results))


async def _read(store: Store, job_id: str, number: int) -> FilePart:
    data = await store.get(asked_part_key(job_id, number))
    try:
        return await asyncio.to_thread(FilePart.from_json, data)
    except (ValueError, KeyError) as error:
        raise PermanentError("file_damaged", f"part {number + 1} of the file is damaged in storage") from error


async def _keep(
    running: RunningTask, worker: StageWorker, store: TaskStore, number: int, part: FilePart, answered: ProteinAnswer
) -> None:
    """Store the answers to a part, and tell that it is done."""
    task, spec = running.task, running.task.spec
    assert isinstance(spec, ProteinSpec)
    kind = MEDIA_TYPES[spec.format]
    data = await asyncio.to_thread(batch_answer, answered.head, answered.results, kind, part.first)
    await store.put_result(answered_part_key(task.job_id, number, spec.format), data, kind)
    await worker.report_now(running, Checkpointed(number + 1))


async def _while_wanted(running: RunningTask, work: Coroutine[Any, Any, T]) -> T:
    """What the work returns; it is given up when the task is stopped."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            running.raise_if_stopped()
            await asyncio.wait({task}, timeout=LOOK_S)
        return task.result()
    finally:
        task.cancel()


@serve.deployment
class ProteinFiles:
    """A replica: it works on several files at a time, in turns.

    Args:
        settings: with the store's endpoint and keys filled in.
        proteins: their part of it.
        registry: name of the job registry's actor.
        embedder: handle of the model's deployment.
    """

    def __init__(self, settings: AppSettings, proteins: ProteinSettings, registry: str, embedder: Any) -> None:
        self._watched = watch_this_process()
        begin_log(settings.logging, ROLE, secrets_of(settings))
        TRACER.start(settings.tracing, ROLE)
        replica: str = serve.get_replica_context().replica_id.unique_id
        name_replica(replica)
        devices: Devices[DeviceInfo] = Devices(
            APPLICATION, EMBEDDER, lambda: embedder, "answer", CallTiming(answer_s=proteins.group_timeout_s)
        )
        service = ProteinService(proteins, devices, PASSES_AHEAD)
        self._files = FileWorker(service, ObjectStore(settings.storage))
        link: WorkerRegistry = WorkerRegistryClient(RegistryLink(registry, settings.namespace))
        self._worker = StageWorker(
            ReplicaInfo(
                replica=replica,
                stage=Stage.EMBEDDING,
                slots=proteins.files_at_once,
                device="the devices of the proteins",
                model=proteins.served_name,
            ),
            link,
            device_problem=lambda: None if devices.known else "no device of the protein model answers",
            timing=Timing(device_every_s=DEVICE_PAUSE_S),
        )
        self._describing = asyncio.get_running_loop().create_task(keep_running(devices.run, "the devices", log))

    async def run(self, task: StageTask) -> None:
        """Do one task. The registry learns all of it by reports; a failed task raises nothing."""
        await self._worker.run(task, lambda running: self._files.work(running, self._worker))

    async def check_health(self) -> None:
        """Raises RuntimeError if Serve must replace this replica."""
        self._worker.check_health()

    def __del__(self) -> None:
        if hasattr(self, "_describing"):  # not if the constructor failed
            self._worker.close()
            self._describing.cancel()
