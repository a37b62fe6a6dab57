"""A device with an ESM2 model, as a deployment: it answers groups of queries."""

import asyncio
import logging
import time
from typing import Any

import torch
from ray import serve

from deployments.background import keep_running
from deployments.embedder.messages import AnsweredGroup, DeviceInfo
from deployments.embedder.pass_loop import PassLoop
from deployments.embedder.settings import ARCHITECTURES, SETTING, EmbedderSettings
from deployments.errors import DeviceBrokenError
from deployments.logs.lines import begin_log, name_replica
from deployments.logs.masking import secrets_of
from deployments.metrics import names
from deployments.metrics.push import push_forever
from deployments.metrics.recorder import RECORDER
from deployments.proteins.alphabet import read_sequence
from deployments.proteins.esm2 import Esm2
from deployments.proteins.queries import Query
from deployments.proteins.repeatable_products import set_repeatable_products
from deployments.replica.connections import bucket_opener
from deployments.replica.cuda_environment import set_cuda_environment
from deployments.replica.device_errors import is_broken
from deployments.replica.gpu_metrics import count_gpu
from deployments.replica.gpu_state import gpu_watch, why_unfit
from deployments.replica.host import assigned_gpus, describe_device, limit_memory, replica_device, set_threads
from deployments.replica.registry_link import RegistryLink, WorkerRegistryClient
from deployments.storage.models.hub import StorePins
from deployments.storage.models.single import single_model_folder
from deployments.storage.models.store import source_revision
from deployments.storage.object_store import ObjectStore
from deployments.watchdog.heartbeat import watch_this_process

WARM_UP = Query(
    read_sequence("MKTVRQERLKSIVRILERSKEPVSGAQLAEELSVSRQVIVQDIAYLRSLGYNIVATPRGYVLAGG").tokens,
    layers=(-1,),
    poolings=("mean",),
)
ROLE = "embedder"
log = logging.getLogger("ray.serve")


@serve.deployment
class ProteinEmbedder:
    """A replica: one device.

    Raises:
        PermanentError, StorageUnavailableError: as `single_model_folder` and `Esm2` do; `gpu_unusable`.
    """

    def __init__(self, settings: EmbedderSettings) -> None:
        self._watched = watch_this_process()
        begin_log(settings.logging, ROLE, secrets_of(settings))
        began = time.perf_counter()
        self._settings = settings
        self._replica: str = serve.get_replica_context().replica_id.unique_id
        name_replica(self._replica)
        set_repeatable_products()
        if assigned_gpus():
            set_cuda_environment()
        self._device = replica_device()
        self._gpu = gpu_watch(self._device)
        limit_memory(self._device, settings.proteins.memory_fraction)
        set_threads(settings.torch_threads)
        proteins = settings.proteins
        folder = single_model_folder(
            SETTING,
            proteins,
            ARCHITECTURES,
            proteins.dtype,
            bucket_opener(settings.storage),
            pins=StorePins(ObjectStore(settings.storage)),
        )
        self._revision = source_revision(proteins.source, folder)
        self._model = Esm2(folder, proteins.dtype, self._device)
        self._passes = PassLoop(self._model.run, settings.pass_tokens, torch.cuda.empty_cache)
        self._broken: str | None = None
        # A device that cannot compute must not start.
        self._model.run([WARM_UP])
        RECORDER.observe(names.PROTEIN_START_SECONDS, time.perf_counter() - began)
        registry = WorkerRegistryClient(RegistryLink(settings.registry, settings.namespace))
        self._pushing = asyncio.get_running_loop().create_task(
            keep_running(lambda: push_forever(registry.push_metrics, ROLE), "the metrics", log)
        )

    async def answer(self, queries: tuple[Query, ...]) -> AnsweredGroup:
        """Answer a group, in one pass with others that came together with it.

        Raises:
            PermanentError: the model cannot answer a query; see `Esm2.check`.
            DeviceBrokenError: the device is of no use any more; this replica is replaced.
        """
        for query in queries:
            self._model.check(query)
        try:
            answers, device_s = await self._passes.answer(queries)
        except Exception as error:
            if not is_broken(error):
                raise
            self._broken = f"{type(error).__name__}: {error}"
            raise DeviceBrokenError(self._broken) from error
        return AnsweredGroup(answers, device_s)

    async def warm_up(self) -> float:
        """Run a short sequence; the seconds that it took."""
        began = time.perf_counter()
        await self.answer((WARM_UP,))
        return time.perf_counter() - began

    async def describe(self) -> DeviceInfo:
        """What this device is, and how it is."""
        figures = await asyncio.to_thread(self._gpu.look)
        count_gpu(self._gpu.uuid, figures)
        model = self._model
        return DeviceInfo(
            replica=self._replica,
            device=describe_device(self._device),
            cuda=self._device.type == "cuda",
            revision=self._revision,
            num_layers=model.num_layers,
            hidden_size=model.hidden_size,
            predicts_tokens=model.predicts_tokens,
            predicts_contacts=model.predicts_contacts,
            pass_tokens=self._settings.pass_tokens,
            problem=self._broken or why_unfit(figures),
        )

    async def check_health(self) -> None:
        """Raises RuntimeError if Serve must replace this replica: its device is broken, or a pass hangs."""
        if self._broken is not None:
            raise RuntimeError(self._broken)
        limit_s = 2 * self._settings.proteins.group_timeout_s
        if self._passes.pass_s > limit_s:
            raise RuntimeError(f"a pass of the model has taken {self._passes.pass_s:.0f} s, longer than {limit_s:g}")

    def __del__(self) -> None:
        pushing: Any = getattr(self, "_pushing", None)
        if pushing is not None:  # the constructor did not fail
            pushing.cancel()
