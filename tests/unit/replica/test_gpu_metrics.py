"""What NVML says of a GPU becomes gauges; what it does not say has no series."""

from collections import deque

from deployments.metrics import names
from deployments.metrics.recorder import Recorder
from deployments.replica.gpu_metrics import count_gpu
from deployments.replica.gpu_state import GpuFigures, GpuWatch, NoGpuWatch
from tests.support.workers.fake_nvml import FakeGpu, FakeNvml

GB = 1_000_000_000


def gauges(uuid: str, figures: GpuFigures) -> dict[str, object]:
    recorder = Recorder()
    count_gpu(uuid, figures, recorder)
    return {name.removeprefix(names.PREFIX): value for (name, labels), value in recorder.snapshot("x").values.items()}


def test_all_that_is_known_is_told_in_base_units() -> None:
    gpu = FakeGpu(used=30 * GB, remapped=(0, 2, 1, 0), events=deque([31, 48]))
    watch = GpuWatch(FakeNvml(gpu), gpu, lambda: 0, "abc")
    assert gauges(watch.uuid, watch.look()) == {
        "gpus_watched": 1,
        "gpu_memory_total_bytes": 80 * GB,
        "gpu_memory_used_bytes": 30 * GB,
        "gpu_utilization_ratio": 0.4,
        "gpu_power_watts": 300.5,
        "gpu_temperature_celsius": 55,
        "gpu_uncorrected_ecc_errors": 0,
        "gpu_remapped_rows": 2,
        "gpu_xid_errors": 2,
    }


def test_what_is_not_known_has_no_series() -> None:
    assert gauges("abc", GpuFigures()) == {"gpus_watched": 1, "gpu_xid_errors": 0}


def test_where_nvml_tells_of_no_gpu_there_is_none() -> None:
    watch = NoGpuWatch()
    assert gauges(watch.uuid, watch.look()) == {"gpus_watched": 0}
