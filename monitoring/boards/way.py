"""One job's way: where its time goes, from acceptance to the video."""

from deployments.metrics import names
from deployments.metrics.metric import Metric
from monitoring.boards.common import BOARD as Q
from monitoring.boards.common import JOBS, RARE
from monitoring.grafana import Dashboard, Panel, Query, Row

PHASES = {
    "waiting": names.JOB_WAIT,
    "encoding": names.JOB_ENCODE,
    "sampling": names.JOB_SAMPLE,
    "decoding": names.JOB_DECODE,
    "uploading": names.JOB_UPLOAD,
}


def _phase(title: str, metric: Metric, about: str) -> Panel:
    queries = (
        Query(Q.quantile(0.5, metric, "tier", window=JOBS), "{{tier}}, half"),
        Query(Q.quantile(0.95, metric, "tier", window=JOBS), "{{tier}}, 95 %"),
    )
    return Panel(title, "s", queries, about)


MEANS = {phase: Q.mean(metric, window=JOBS) for phase, metric in PHASES.items()}


def _rest() -> str:
    """What is missing to the whole."""
    parts = " - ".join(f"({mean})" for mean in MEANS.values())
    return f"clamp_min({Q.mean(names.JOB_END_TO_END, window=JOBS)} - {parts}, 0)"


MEAN = Panel(
    "Mean time in each phase",
    "s",
    (*(Query(mean, phase) for phase, mean in MEANS.items()), Query(_rest(), "between, and lost")),
    "Of jobs that ended in the last half hour. Between: waits for a slot of the next stage, and what was lost.",
    kind="areas",
    width=16,
)
WHOLE = _phase("The whole way", names.JOB_END_TO_END, "From acceptance to completion.")
WAIT = _phase("1. It waits", names.JOB_WAIT, "From acceptance to the first replica.")
ENCODE = _phase("2. Its prompt is encoded", names.JOB_ENCODE, "By the text encoder.")
SAMPLE = _phase("3. It is denoised", names.JOB_SAMPLE, "In its last attempt; as a rule nearly all of the time.")
DECODE = _phase("4. It is decoded", names.JOB_DECODE, "Latents to frames, and the mp4.")
UPLOAD = _phase("5. It is stored", names.JOB_UPLOAD, "All outputs to the object store, of all stages.")
MOVES = Panel(
    "Off the straight way, in an hour",
    "short",
    (
        Query(Q.risen(names.PARKS, window=RARE), "parked"),
        Query(Q.increase(names.RESUMES, window=RARE), "went on from a checkpoint"),
        Query(Q.risen(names.RETRIES, window=RARE), "tried again"),
        Query(Q.increase(names.LEASES_LAPSED, window=RARE), "not heard of"),
    ),
    "Parked and gone on: nothing is lost. Tried again: steps since the last checkpoint are.",
)
STEP = Panel(
    "A step, by size and quality",
    "s",
    (Query(Q.mean(names.STEP_SECONDS, "shape", "quality", window=JOBS), "{{shape}} {{quality}}"),),
    "Mean time of one denoising step of a batch.",
)
LOST = Panel(
    "Steps lost",
    "percentunit",
    (Query(f"{Q.rate(names.STEPS_REPEATED, window=JOBS)} / ({Q.rate(names.STEPS_RUN, window=JOBS)} > 0)", "lost"),),
    "The part of the steps that was run in vain. sampling.checkpoint_s bounds it.",
)
CHECKPOINTS = Panel(
    "Writing of a checkpoint",
    "s",
    (
        Query(Q.quantile(0.5, names.CHECKPOINT_SECONDS, window=JOBS), "half"),
        Query(Q.quantile(0.95, names.CHECKPOINT_SECONDS, window=JOBS), "95 %"),
    ),
    "Beside the sampling, which does not wait for it.",
)

WAY = Dashboard(
    "job",
    "one job's way",
    "Where a job's time goes: waiting, encoding, sampling, decoding, storing.",
    (
        Row("Where the time goes", (MEAN, WHOLE)),
        Row("Step by step", (WAIT, ENCODE, SAMPLE, DECODE, UPLOAD, MOVES)),
        Row("While it is denoised", (STEP, LOST, CHECKPOINTS)),
    ),
)
