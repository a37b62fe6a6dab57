"""How many replicas there are by default, and what each takes: on machines with 0, 1, 4 and 8 GPUs."""

import pytest
from pydantic import ValidationError

from deployments.embedder.devices import PlannedDevices, planned_devices
from deployments.embedder.settings import ProteinSettings


def planned(gpus: float, **settings: object) -> PlannedDevices:
    return planned_devices(ProteinSettings.model_validate({"source": "x"} | settings), gpus, cores=8)


@pytest.mark.parametrize("gpus", [1, 4, 8])
def test_each_gpu_has_a_replica(gpus: int) -> None:
    assert planned(gpus) == PlannedDevices(count=gpus, num_gpus=1, torch_threads=None, pass_tokens=16_384)


def test_without_a_gpu_there_is_one_that_takes_the_cores() -> None:
    assert planned(0) == PlannedDevices(count=1, num_gpus=0, torch_threads=8, pass_tokens=1_024)
    assert planned(0.5).num_gpus == 0, "a part of a GPU that another holds is none"


def test_the_settings_go_before() -> None:
    assert planned(4, num_gpus=0.5).count == 8
    assert planned(4, num_gpus=0.3).count == 13
    assert planned(4, num_gpus=2).count == 2
    assert planned(1, num_gpus=2).count == 1, "it waits for a node that has two"
    assert planned(8, replicas=3).count == 3
    assert planned(8, num_gpus=0, replicas=4) == PlannedDevices(4, 0, torch_threads=2, pass_tokens=1_024)
    assert planned(0, replicas=16).torch_threads == 1
    assert planned(0, torch_threads=3).torch_threads == 3
    assert planned(0, pass_tokens=64).pass_tokens == 64


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"min_http_replicas": 3, "max_http_replicas": 2}, "max_http_replicas"),
        ({"num_gpus": 0, "memory_fraction": 0.5}, "memory_fraction"),
        ({"pass_tokens": 1}, "pass_tokens"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        ProteinSettings.model_validate({"source": "x"} | settings)
