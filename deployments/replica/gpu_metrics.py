"""What NVML says of a GPU, as metrics."""

from deployments.metrics import names
from deployments.metrics.recorder import RECORDER, Recorder
from deployments.replica.gpu_state import GpuFigures


def count_gpu(uuid: str, figures: GpuFigures, recorder: Recorder = RECORDER) -> None:
    """Set the gauges of the GPU that are known. uuid: empty where NVML tells of none; then there are no series."""
    recorder.set(names.GPUS, 1 if uuid else 0)
    if not uuid:
        return
    gauges = {
        names.GPU_MEMORY_TOTAL: figures.memory_total,
        names.GPU_MEMORY_USED: figures.memory_used,
        names.GPU_UTILIZATION: None if figures.utilization is None else figures.utilization / 100,
        names.GPU_POWER: figures.power_w,
        names.GPU_TEMPERATURE: figures.temperature_c,
        names.GPU_ECC: figures.uncorrected_ecc,
        names.GPU_REMAPPED: figures.remapped_rows,
        names.GPU_XIDS: len(figures.xids),
    }
    for metric, value in gauges.items():
        if value is not None:
            recorder.set(metric, value, uuid)
