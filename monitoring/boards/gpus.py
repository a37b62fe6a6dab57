"""What the devices do, and how they are."""

from deployments.metrics import names
from deployments.metrics.metric import Metric
from monitoring.boards.common import BOARD as Q
from monitoring.boards.common import JOBS, RARE
from monitoring.boards.overview import BUSY
from monitoring.grafana import Dashboard, Panel, Query, Row


def _gauge(title: str, unit: str, metric: Metric, about: str, red_from: float | None = None) -> Panel:
    return Panel(
        title, unit, (Query(Q.now(metric, "gpu"), "{{gpu}}"),), about, needs="a GPU", width=6, red_from=red_from
    )


REPLICAS = Panel(
    "Replicas and slots",
    "short",
    (
        Query(Q.now(names.REPLICAS, "stage"), "{{stage}}: replicas"),
        Query(Q.now(names.SLOTS, "stage"), "{{stage}}: slots"),
    ),
    "Replicas that announce themselves, and the tasks that they take at once.",
)
ROWS = Panel(
    "Rows of a step",
    "short",
    (
        Query(Q.mean(names.STEP_ROWS, window=JOBS), "mean"),
        Query(Q.quantile(0.95, names.STEP_ROWS, window=JOBS), "95 %"),
    ),
    "How many go through the model together. Two are one guided sample.",
)
TOKENS = Panel(
    "Tokens through the model, a second",
    "short",
    (Query(Q.rate(names.STEP_TOKENS, suffix="_sum"), "tokens"),),
    "The throughput of all samplers, whatever the sizes.",
)
STEP = Panel(
    "A step that 95 % stay below",
    "s",
    (Query(Q.quantile(0.95, names.STEP_SECONDS, "shape", "quality", window=JOBS), "{{shape}} {{quality}}"),),
    "By size and quality.",
)
COMPILED = Panel(
    "Compiled, in an hour",
    "short",
    (
        Query(Q.increase(names.COMPILE_SECONDS, window=RARE, suffix="_count"), "calls that compiled"),
        Query(Q.increase(names.RECOMPILES, window=RARE), "of them while samples waited"),
    ),
    "Samples that wait for the compiler: the log names the guard that failed.",
)
STARTS = Panel(
    "Starts of replicas",
    "s",
    (Query(Q.mean(names.START_SECONDS, "stage", "phase", window="6h"), "{{stage}}: {{phase}}"),),
    "Mean of the last six hours: files of the model, then all until it takes tasks.",
)
UTILIZATION = _gauge("Utilisation", "percentunit", names.GPU_UTILIZATION, "The part of the time with a kernel at work.")
POWER = _gauge("Power", "watt", names.GPU_POWER, "Much below the limit while busy: it waits for something.")
TEMPERATURE = _gauge("Temperature", "celsius", names.GPU_TEMPERATURE, "Near its limit it slows down.")
MEMORY = Panel(
    "Memory in use",
    "bytes",
    (
        Query(Q.now(names.GPU_MEMORY_USED, "gpu"), "{{gpu}}"),
        Query(Q.now(names.GPU_MEMORY_TOTAL, "gpu"), "{{gpu}}: all"),
    ),
    "By all processes.",
    needs="a GPU",
    width=6,
)
ECC = _gauge(
    "Uncorrected memory errors", "short", names.GPU_ECC, "Since the driver was loaded: any is one too many.", 1
)
ROWS_REMAPPED = _gauge("Remapped rows", "short", names.GPU_REMAPPED, "Memory that was replaced: a GPU that ages.", 1)
XIDS = _gauge("Xid events", "short", names.GPU_XIDS, "Critical ones since the replica began.", 1)
WATCHED = Panel(
    "GPUs that are watched",
    "short",
    (Query(Q.now(names.GPUS), "GPUs"),),
    "Replicas whose GPU NVML tells of. 0 on CPUs.",
    width=6,
)

GPUS = Dashboard(
    "gpus",
    "GPUs",
    "What the devices do, and how they are.",
    (
        Row("Work", (BUSY, TOKENS, ROWS, STEP, REPLICAS, STARTS)),
        Row("The compiler", (COMPILED,)),
        Row("Devices, by NVML", (UTILIZATION, MEMORY, POWER, TEMPERATURE, ECC, ROWS_REMAPPED, XIDS, WATCHED)),
    ),
)
