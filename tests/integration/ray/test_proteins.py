"""Replicas of the protein model under real Serve: the same bits in any company, all at work, and one that is killed."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import psutil
import pytest
from ray import serve
from ray.serve.config import RequestRouterConfig

from deployments.embedder.messages import DeviceInfo
from deployments.embedder.protein_embedder import ProteinEmbedder
from deployments.embedder.settings import EmbedderSettings, ProteinSettings
from deployments.settings import StorageSettings
from serve_app.calls.devices import CallTiming, Devices
from serve_app.calls.router import ROUTER
from serve_app.proteins.requests import AskedSequence, BatchRequest, ProteinRequest
from serve_app.proteins.service import ProteinService
from tests.support.proteins.models import make_esm
from tests.support.proteins.sequences import drawn_sequence
from tests.support.waiting import until

APP = "proteins-of-test"
DEPLOYMENT = "ProteinEmbedder"
OPTIONS = BatchRequest(sequences=["M"])
LENGTHS = (1, 2, 5, 14, 15, 40, 64, 120, 200, 300, 333, 500, 1022)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ProteinSettings:
    folder = make_esm(tmp_path_factory.mktemp("esm") / "model")
    return ProteinSettings(source=str(folder), torch_threads=1, group_timeout_s=60)


@pytest.fixture(scope="module")
def handle(serve_cluster: None, settings: ProteinSettings) -> Iterator[Any]:
    # The registry and the store are away: neither is needed for a model in a folder.
    storage = StorageSettings(endpoint="127.0.0.1:9", access_key="x", secret_key="y", secure=False)
    deployment: Any = ProteinEmbedder
    application = deployment.options(
        num_replicas=2,
        max_ongoing_requests=256,
        health_check_period_s=1,
        ray_actor_options={"num_cpus": 0},
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
    ).bind(
        settings=EmbedderSettings(
            registry="nobody",
            namespace="nowhere",
            storage=storage,
            proteins=settings,
            torch_threads=1,
            pass_tokens=1_024,
        )
    )
    yield serve.run(application, name=APP, route_prefix=None)
    serve.delete(APP)


@pytest.fixture
async def devices(handle: Any) -> AsyncIterator[Devices[DeviceInfo]]:
    devices: Devices[DeviceInfo] = Devices(
        "proteins", DEPLOYMENT, lambda: handle, "answer", CallTiming(answer_s=600, choice_s=600, describe_every_s=0.2)
    )
    running = asyncio.create_task(devices.run())
    await until(lambda: len(devices.known) == 2)
    yield devices
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def asked(*lengths: int) -> ProteinRequest:
    return ProteinRequest(tuple(AskedSequence(drawn_sequence(one, one).text) for one in lengths), OPTIONS)


def embedding(result: Any) -> Any:
    return result.answer.embeddings[-1, "mean"]


async def test_in_company_a_sequence_gets_the_same_bits_as_alone(
    devices: Devices[DeviceInfo], settings: ProteinSettings
) -> None:
    service = ProteinService(settings, devices)
    together = await service.answer(asked(*LENGTHS), "a")
    assert all(one.answered for one in devices.known), "both devices were at work"
    for length, found in zip(LENGTHS, together.results, strict=True):
        alone = await service.answer(asked(length), "a")
        assert np.array_equal(embedding(found), embedding(alone.results[0])), length
    assert together.head.info.device.startswith("cpu (1 thread") and together.head.device_s > 0


async def test_one_that_is_killed_loses_no_request(devices: Devices[DeviceInfo], settings: ProteinSettings) -> None:
    service = ProteinService(settings, devices)
    before = {one.info.replica for one in devices.known}
    requests = [asyncio.create_task(service.answer(asked(300, 400, 500), "a")) for _ in range(12)]
    await until(lambda: any(one.answered for one in devices.known))
    os.kill(replica_pids()[0], signal.SIGKILL)
    answers = await asyncio.gather(*requests)
    for answer in answers[1:]:
        for found, wanted in zip(answer.results, answers[0].results, strict=True):
            assert np.array_equal(embedding(found), embedding(wanted))
    await until(lambda: len(devices.known) == 2 and {one.info.replica for one in devices.known} != before)
    assert (await service.answer(asked(50), "a")).results[0].error is None


def replica_pids() -> list[int]:
    """Of the replicas that this process' Serve runs."""
    mine = psutil.Process().children(recursive=True)
    return [one.pid for one in mine if f"ServeReplica:{APP}:{DEPLOYMENT}" in " ".join(one.cmdline())]
