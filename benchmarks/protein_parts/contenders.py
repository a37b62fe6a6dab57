"""The ways to embed proteins that are compared, behind one interface, and the Serve that their replicas run in."""

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
import ray
import torch
from pydantic import SecretStr
from ray import serve
from ray.serve.config import RequestRouterConfig

from benchmarks.protein_parts.source_design import SourceDesign, StockModel
from deployments.dtypes import DtypeName
from deployments.embedder.devices import planned_devices
from deployments.embedder.messages import DeviceInfo
from deployments.embedder.protein_embedder import ProteinEmbedder
from deployments.embedder.settings import EmbedderSettings, ProteinSettings
from deployments.proteins.alphabet import read_sequence
from deployments.proteins.queries import Floats, Pooling
from deployments.settings import LogSettings, StorageSettings
from serve_app.app import HEALTH_CHECK_PERIOD_S, MOST_GROUPS, REGISTRY
from serve_app.calls.devices import CallTiming, Devices
from serve_app.calls.router import ROUTER
from serve_app.local.preflight import LOOPBACK
from serve_app.local.ray_environment import LOOPBACK_ONLY
from serve_app.proteins.requests import AskedSequence, BatchRequest, ProteinRequest
from serve_app.proteins.service import ProteinService

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE_S = 300.0
NO_STORE = StorageSettings(endpoint=f"{LOOPBACK}:9", access_key=SecretStr("none"), secret_key=SecretStr("none"))
"""The models lie in folders, so nobody calls it."""
MEAN: tuple[int, Pooling] = (-1, "mean")
"""What everybody is asked for: the mean of the last layer."""


class Contender(Protocol):
    """One way to embed."""

    async def embed(self, sequences: Sequence[str]) -> list[Floats]:
        """Mean embeddings [hidden size] of the last layer, in the order of the sequences."""
        ...

    def cpu_s(self) -> float:
        """Processor seconds that its processes have taken so far, without those of the callers."""
        ...


@dataclass(frozen=True, slots=True)
class Replicas:
    """The processes of an application's replicas."""

    processes: tuple[psutil.Process, ...]

    def cpu_s(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self.processes)

    def memory_mb(self) -> dict[str, float]:
        """Of all together, 10^6 bytes.

        `rss` is resident; of it `anonymous` belongs to no file, while files that are mapped, such as weights, can be
        let go and read again. In `pss` shared pages count by shares. `peak_rss` is the most that was resident so far.
        """
        found = {"pss": sum(process.memory_full_info().pss for process in self.processes)}
        for name, field in (("rss", "VmRSS"), ("anonymous", "RssAnon"), ("peak_rss", "VmHWM")):
            found[name] = sum(_status_bytes(process.pid, field) for process in self.processes)
        return {name: round(count / 1e6) for name, count in found.items()}


def _status_bytes(pid: int, field: str) -> int:
    """As Linux tells it, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def replicas_of(application: str, count: int) -> Replicas:
    """Those that run. Raises SystemExit if there are more or fewer: by whose figures would one go?"""
    title = f"ServeReplica:{application}:"
    found = tuple(
        process for process in psutil.Process().children(recursive=True) if title in " ".join(process.cmdline())
    )
    if len(found) != count:
        raise SystemExit(f"{application} has {len(found)} processes whose title has {title!r}; wanted are {count}")
    return Replicas(found)


class Source:
    """The one replica with all devices."""

    def __init__(self, folder: Path, devices: int) -> None:
        deployment: Any = SourceDesign
        # The more of them there are in the threads' line, the better for it.
        options = deployment.options(max_ongoing_requests=MOST_GROUPS, ray_actor_options={"num_cpus": 0})
        self._handle: Any = serve.run(options.bind(folder, devices), name="source", route_prefix=None)
        self._replicas = replicas_of("source", 1)
        self.cpu_s = self._replicas.cpu_s

    async def embed(self, sequences: Sequence[str]) -> list[Floats]:
        embedded: list[Floats] = await self._handle.embed.remote([read_sequence(text).tokens for text in sequences])
        return embedded


class OneByOne:
    """transformers alone, in one process and one thread of the CPU."""

    def __init__(self, folder: Path) -> None:
        self._actor: Any = ray.remote(num_cpus=0)(_OneByOneActor).remote(folder)
        process = psutil.Process(ray.get(self._actor.process_id.remote()))
        self.cpu_s = Replicas((process,)).cpu_s

    async def embed(self, sequences: Sequence[str]) -> list[Floats]:
        embedded: list[Floats] = await self._actor.embed.remote([read_sequence(text).tokens for text in sequences])
        return embedded


class _OneByOneActor:
    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self._model = StockModel(folder)

    def process_id(self) -> int:
        return os.getpid()

    def embed(self, sequences: list[bytes]) -> list[Floats]:
        return [self._model.embed_alone(one) for one in sequences]


class Ours:
    """The deployment as it is served, called as the HTTP side calls it, without HTTP.

    Args:
        name: of the application and of its deployment.
        folder: of the model.
        replicas: devices, each a process.
        threads: of the CPU, of each.
    """

    def __init__(self, name: str, folder: Path, replicas: int, dtype: DtypeName = "float32", threads: int = 1) -> None:
        settings = ProteinSettings(
            source=str(folder), dtype=dtype, num_gpus=0, replicas=replicas, torch_threads=threads
        )
        began = time.perf_counter()
        self._handle = _deploy(name, settings)
        self.start_s = time.perf_counter() - began
        self.replicas = replicas_of(name, replicas)
        self.cpu_s = self.replicas.cpu_s
        timing = CallTiming(answer_s=settings.group_timeout_s)
        self._devices: Devices[DeviceInfo] = Devices(name, name, lambda: self._handle, "answer", timing)
        self._service = ProteinService(settings, self._devices)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Ours"]:
        """Within, the devices are asked what they are, as the HTTP side does; it begins when all have answered."""
        asking = asyncio.create_task(self._devices.run())
        try:
            async with asyncio.timeout(PATIENCE_S):
                while len(self._devices.known) < len(self.replicas.processes):
                    await asyncio.sleep(0.05)
            yield self
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def embed(self, sequences: Sequence[str]) -> list[Floats]:
        """Raises PermanentError: a sequence was refused."""
        asked = tuple(map(AskedSequence, sequences))
        answer = await self._service.answer(ProteinRequest(asked, BatchRequest(sequences=list(sequences))), "bench")
        embedded = []
        for result in answer.results:
            if result.error is not None:
                raise result.error
            assert result.answer is not None
            embedded.append(result.answer.embeddings[MEAN])
        return embedded


def _deploy(name: str, settings: ProteinSettings) -> Any:
    """As `serve_app.app.proteins` deploys it; its handle, once all replicas run.

    There is no registry: metrics, which is all that goes there, are let go by.
    """
    devices = planned_devices(settings, gpus=0)
    deployment: Any = ProteinEmbedder
    application = deployment.options(
        name=name,
        num_replicas=devices.count,
        ray_actor_options={"num_gpus": devices.num_gpus, "num_cpus": settings.num_cpus},
        max_ongoing_requests=MOST_GROUPS,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        graceful_shutdown_timeout_s=5,
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
    ).bind(
        settings=EmbedderSettings(
            registry=REGISTRY,
            namespace="bench",
            storage=NO_STORE,
            proteins=settings,
            torch_threads=devices.torch_threads,
            pass_tokens=devices.pass_tokens,
            logging=LogSettings(),
        )
    )
    return serve.run(application, name=name, route_prefix=None)


@contextmanager
def serve_running() -> Iterator[None]:
    """Ray and Serve on this machine alone, without HTTP, in a temporary folder; nothing of them is left afterwards."""
    os.environ.update(LOOPBACK_ONLY | {"RAY_AUTH_MODE": "disabled"})
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory(prefix="mochi-bench-", ignore_cleanup_errors=True) as folder:
        ray.init(
            address="local",
            _temp_dir=folder,
            _node_ip_address=LOOPBACK,
            include_dashboard=False,
            object_store_memory=100_000_000,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
        try:
            serve.start(proxy_location="Disabled")
            logging.getLogger("ray.serve").setLevel(logging.WARNING)
            yield
        finally:
            started = psutil.Process().children(recursive=True)
            ray.shutdown()
            _, left = psutil.wait_procs(started, timeout=30)
            for process in left:
                process.kill()
