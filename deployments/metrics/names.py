"""The names of all metrics: the one place. `docs/metrics.md` shows them, and a test compares the two."""

from typing import Literal, get_args

from deployments.metrics.metric import Label, Metric

PREFIX = "mochi_serve_"

StartPhase = Literal["files", "weights", "graphs", "warm_up"]
STAGES = ("encoding", "sampling", "decoding", "embedding")
QUALITIES = ("exact", "fast", "draft")
LIVE_STATES = ("queued", *STAGES)
END_STATES = ("completed", "failed", "cancelled")
TIERS = ("interactive", "standard", "batch")

_TIER = Label("tier", TIERS)
_TENANT = Label("tenant", most=1000)  # `metrics.tenants` is the bound; this one only keeps the type's promise
_STAGE = Label("stage", STAGES)
_CODE = Label("code", ("internal_error",), most=60)
_GPU = Label("gpu", most=64)
_SHAPE = Label("shape", most=30)
DISKS = ("data", "models", "temporary")
_STORE_OPERATION = Label("operation", ("delete", "get", "list", "put", "stat", "other"))

_WAITS = (0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 10800, 43200)
_WORK = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_STEPS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_CALLS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_STARTS = (1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1800)
_RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 4)


def _jobs_histogram(name: str, help: str, buckets: tuple[float, ...]) -> Metric:
    return Metric(
        name=f"{PREFIX}{name}",
        kind="histogram",
        unit="seconds",
        help=help,
        source="jobs",
        labels=(_TIER,),
        buckets=buckets,
    )


# Jobs, from SQL.

JOBS_ACCEPTED = Metric(
    name=f"{PREFIX}jobs_accepted_total",
    kind="counter",
    unit="jobs",
    help="Jobs that were accepted",
    source="jobs",
    labels=(_TIER, _TENANT),
)
JOBS_ENDED = Metric(
    name=f"{PREFIX}jobs_ended_total",
    kind="counter",
    unit="jobs",
    help="Jobs that have ended, deleted ones too",
    source="jobs",
    labels=(Label("state", END_STATES), _TIER, _TENANT),
)
JOBS_FAILED = Metric(
    name=f"{PREFIX}jobs_failed_total",
    kind="counter",
    unit="jobs",
    help="Jobs that failed, by the code of their error",
    source="jobs",
    labels=(_CODE,),
)
JOBS_LIVE = Metric(
    name=f"{PREFIX}jobs_live",
    kind="gauge",
    unit="jobs",
    help="Jobs that wait or are worked on now",
    source="jobs",
    labels=(Label("state", LIVE_STATES),),
)
JOBS_UNACCOUNTED = Metric(
    name=f"{PREFIX}jobs_unaccounted",
    kind="gauge",
    unit="jobs",
    help="Accepted minus ended minus live jobs, of one reading of the database; anything but 0 is a defect",
    source="jobs",
)
GPU_SECONDS = Metric(
    name=f"{PREFIX}gpu_seconds_total",
    kind="counter",
    unit="seconds",
    help="Seconds of devices that jobs used, as far as it is in the database",
    source="jobs",
    labels=(_TENANT,),
)
STEPS_RUN = Metric(
    name=f"{PREFIX}steps_run_total",
    kind="counter",
    unit="steps",
    help="Denoising steps that were run for jobs",
    source="jobs",
    labels=(_TENANT,),
)
STEPS_REPEATED = Metric(
    name=f"{PREFIX}steps_repeated_total",
    kind="counter",
    unit="steps",
    help="Denoising steps that were lost and so run, or to be run, once more",
    source="jobs",
)
PARKS = Metric(
    name=f"{PREFIX}parks_total",
    kind="counter",
    unit="parks",
    help="Times that a job let go of its sampler with its state in storage",
    source="jobs",
)
RETRIES = Metric(
    name=f"{PREFIX}retries_total",
    kind="counter",
    unit="attempts",
    help="Times that a job went back to the queue because an attempt failed, by the code of the failure",
    source="jobs",
    labels=(_CODE,),
)
JOB_WAIT = _jobs_histogram("job_wait_seconds", "From acceptance to the first replica, of jobs that have ended", _WAITS)
JOB_ENCODE = _jobs_histogram("job_encode_seconds", "Encoding of the prompt of a completed job", _WORK)
JOB_SAMPLE = _jobs_histogram("job_sample_seconds", "Denoising of a completed job in its last attempt", _WORK)
JOB_DECODE = _jobs_histogram("job_decode_seconds", "Decoding and mp4 of a completed job", _WORK)
JOB_UPLOAD = _jobs_histogram("job_upload_seconds", "Writing of a completed job's outputs to storage, all stages", _WORK)
JOB_END_TO_END = _jobs_histogram("job_end_to_end_seconds", "From acceptance to completion", _WAITS)

# The queue and the registry.

QUEUE_JOBS = Metric(
    name=f"{PREFIX}queue_jobs",
    kind="gauge",
    unit="jobs",
    help="Jobs that wait for a slot of a stage",
    source="jobs",
    labels=(_TIER, _TENANT),
)
QUEUE_OLDEST_WAIT = Metric(
    name=f"{PREFIX}queue_oldest_wait_seconds",
    kind="gauge",
    unit="seconds",
    help="How long the job that may be claimed for the longest time has waited for it",
    source="jobs",
    labels=(_TIER, _TENANT),
    merge="max",
)
QUEUE_GPU_SECONDS = Metric(
    name=f"{PREFIX}queue_gpu_seconds",
    kind="gauge",
    unit="seconds",
    help="Estimated seconds of devices that waiting jobs still need, all stages",
    source="registry",
    labels=(_TIER, _TENANT),
)
TARGET_WAIT = Metric(
    name=f"{PREFIX}target_wait_seconds",
    kind="gauge",
    unit="seconds",
    help="How long a job of the tier may wait in all, as `scheduling.target_wait_s` says",
    source="registry",
    labels=(_TIER,),
    merge="max",
)
REPLICAS = Metric(
    name=f"{PREFIX}replicas",
    kind="gauge",
    unit="replicas",
    help="Replicas that announce themselves",
    source="registry",
    labels=(_STAGE,),
)
SLOTS = Metric(
    name=f"{PREFIX}slots",
    kind="gauge",
    unit="slots",
    help="Tasks that the replicas of a stage take at once",
    source="registry",
    labels=(_STAGE,),
)
LEASES_LAPSED = Metric(
    name=f"{PREFIX}leases_lapsed_total",
    kind="counter",
    unit="leases",
    help="Leases under which nothing was reported for too long",
    source="registry",
)
PREEMPTIONS = Metric(
    name=f"{PREFIX}preemptions_total",
    kind="counter",
    unit="jobs",
    help="Jobs that were asked to make room for an interactive one",
    source="registry",
)
FORECAST_RATIO = Metric(
    name=f"{PREFIX}forecast_ratio",
    kind="histogram",
    unit="ratio",
    help="Real time from acceptance to completion, divided by what was forecast at the acceptance",
    source="registry",
    labels=(_TIER,),
    buckets=_RATIOS,
)
DATABASE_SECONDS = Metric(
    name=f"{PREFIX}database_commit_seconds",
    kind="histogram",
    unit="seconds",
    help="A transaction of the registry, with all operations in it",
    source="registry",
    buckets=_CALLS,
)
DATABASE_OPERATIONS = Metric(
    name=f"{PREFIX}database_operations_total",
    kind="counter",
    unit="operations",
    help="Operations on the database: done, refused by its own rule, or failed with the database",
    source="registry",
    labels=(Label("outcome", ("done", "refused", "failed")),),
)
WEBHOOKS = Metric(
    name=f"{PREFIX}webhook_deliveries_total",
    kind="counter",
    unit="tries",
    help="Tries to deliver a webhook: taken, to be tried again, or given up",
    source="registry",
    labels=(Label("outcome", ("delivered", "failed", "given_up")),),
)
WEBHOOK_SECONDS = Metric(
    name=f"{PREFIX}webhook_seconds",
    kind="histogram",
    unit="seconds",
    help="One try to deliver a webhook",
    source="registry",
    buckets=_CALLS,
)
WEBHOOKS_WAITING = Metric(
    name=f"{PREFIX}webhooks_waiting",
    kind="gauge",
    unit="webhooks",
    help="Webhooks that are neither taken nor given up",
    source="registry",
    merge="max",
)
WEBHOOK_OVERDUE = Metric(
    name=f"{PREFIX}webhook_overdue_seconds",
    kind="gauge",
    unit="seconds",
    help="How long the webhook whose try is due for the longest time has waited for it",
    source="registry",
    merge="max",
)
PROCESSES = Metric(
    name=f"{PREFIX}processes",
    kind="gauge",
    unit="processes",
    help="Processes whose metrics the registry hears, itself among them",
    source="registry",
)

# Workers.

STEP_SECONDS = Metric(
    name=f"{PREFIX}step_seconds",
    kind="histogram",
    unit="seconds",
    help="One denoising step of a batch, by the video's size and its quality",
    source="workers",
    labels=(_SHAPE, Label("quality", QUALITIES)),
    buckets=_STEPS,
)
STEP_ROWS = Metric(
    name=f"{PREFIX}step_rows",
    kind="histogram",
    unit="rows",
    help="Rows that went through the model together in a step",
    source="workers",
    buckets=(1, 2, 4, 6, 8, 12, 16, 24, 32, 64),
)
STEP_TOKENS = Metric(
    name=f"{PREFIX}step_tokens",
    kind="histogram",
    unit="tokens",
    help="Tokens of all rows of a step",
    source="workers",
    buckets=(256, 1024, 4096, 16384, 32768, 65536, 131072, 262144, 524288),
)
BUSY_SECONDS = Metric(
    name=f"{PREFIX}busy_seconds_total",
    kind="counter",
    unit="seconds",
    help="Time in which a stage's replicas worked on their devices; divided by replicas and time it is the busy share",
    source="workers",
    labels=(_STAGE,),
)
COMPILE_SECONDS = Metric(
    name=f"{PREFIX}compile_seconds",
    kind="histogram",
    unit="seconds",
    help="Time of a call in which blocks were compiled",
    source="workers",
    buckets=_STARTS,
)
RECOMPILES = Metric(
    name=f"{PREFIX}recompiles_total",
    kind="counter",
    unit="graphs",
    help="Calls in which blocks were compiled while samples waited",
    source="workers",
)
RESUMES = Metric(
    name=f"{PREFIX}resumes_total",
    kind="counter",
    unit="samples",
    help="Samples that went on from a checkpoint",
    source="workers",
)
CHECKPOINTS = Metric(
    name=f"{PREFIX}checkpoints_total",
    kind="counter",
    unit="checkpoints",
    help="Checkpoints that were written, those of parked samples too",
    source="workers",
)
CHECKPOINT_BYTES = Metric(
    name=f"{PREFIX}checkpoint_bytes_total",
    kind="counter",
    unit="bytes",
    help="Bytes of the checkpoints that were written",
    source="workers",
)
CHECKPOINT_SECONDS = Metric(
    name=f"{PREFIX}checkpoint_seconds",
    kind="histogram",
    unit="seconds",
    help="Packing and writing of a checkpoint, beside the sampling",
    source="workers",
    buckets=_CALLS,
)
START_SECONDS = Metric(
    name=f"{PREFIX}replica_start_seconds",
    kind="histogram",
    unit="seconds",
    help="The start of a replica by phase: the model's files are there, its weights are loaded, its graphs are "
    "compiled and its memory is measured, its first work is done and it takes tasks",
    source="workers",
    labels=(_STAGE, Label("phase", get_args(StartPhase))),
    buckets=_STARTS,
)

# Devices, where NVML tells of them.

_NVML = "a GPU that NVML tells of"
GPUS = Metric(
    name=f"{PREFIX}gpus_watched",
    kind="gauge",
    unit="GPUs",
    help="Replicas whose GPU NVML tells of",
    source="workers",
)


def _gpu_gauge(name: str, unit: str, help: str) -> Metric:
    return Metric(
        name=f"{PREFIX}{name}",
        kind="gauge",
        unit=unit,
        help=help,
        source="workers",
        labels=(_GPU,),
        merge="max",
        where_there_is=_NVML,
    )


GPU_MEMORY_TOTAL = _gpu_gauge("gpu_memory_total_bytes", "bytes", "Memory of the GPU, or of the MIG instance")
GPU_MEMORY_USED = _gpu_gauge("gpu_memory_used_bytes", "bytes", "Memory of the GPU that is in use, by all processes")
GPU_UTILIZATION = _gpu_gauge("gpu_utilization_ratio", "ratio", "Part of the last second or less with a kernel at work")
GPU_POWER = _gpu_gauge("gpu_power_watts", "watts", "Power that the GPU takes")
GPU_TEMPERATURE = _gpu_gauge("gpu_temperature_celsius", "degrees Celsius", "Temperature of the GPU")
GPU_ECC = _gpu_gauge("gpu_uncorrected_ecc_errors", "errors", "Uncorrected memory errors since the driver was loaded")
GPU_REMAPPED = _gpu_gauge("gpu_remapped_rows", "rows", "Memory rows that were remapped for uncorrectable errors")
GPU_XIDS = _gpu_gauge("gpu_xid_errors", "errors", "Critical Xid events since the replica on it began")

# HTTP, and what several kinds of processes do.

HTTP_REQUESTS = Metric(
    name=f"{PREFIX}http_requests_total",
    kind="counter",
    unit="requests",
    help="Answered requests, by the route's pattern, method and status",
    source="ingress",
    labels=(Label("route", most=60), Label("method", most=10), Label("status", most=40)),
)
HTTP_SECONDS = Metric(
    name=f"{PREFIX}http_request_seconds",
    kind="histogram",
    unit="seconds",
    help="From a request's arrival to the first byte of its answer",
    source="ingress",
    labels=(Label("route", most=60),),
    buckets=_CALLS,
)
FEED_LAG = Metric(
    name=f"{PREFIX}feed_lag_seconds",
    kind="gauge",
    unit="seconds",
    help="Time since the registry last brought the ingress replica that lags most up to date",
    source="ingress",
    merge="max",
)
STORE_REQUESTS = Metric(
    name=f"{PREFIX}store_requests_total",
    kind="counter",
    unit="requests",
    help="Requests to the object store",
    source="all",
    labels=(_STORE_OPERATION, Label("outcome", ("done", "missing", "failed"))),
)
STORE_SECONDS = Metric(
    name=f"{PREFIX}store_request_seconds",
    kind="histogram",
    unit="seconds",
    help="Requests to the object store, with their repeats; of a stream, until its first byte",
    source="all",
    labels=(_STORE_OPERATION,),
    buckets=_CALLS,
)
DISK_USED = Metric(
    name=f"{PREFIX}disk_used_ratio",
    kind="gauge",
    unit="ratio",
    help="Used part of the fullest disk that holds SQLite's data folder, a replica's model or temporary files",
    source="all",
    labels=(Label("disk", DISKS),),
    merge="max",
)

# Applications that answer at once.

_PROTEINS = "the proteins"
_APPLICATION = Label("application", most=8)

PROTEIN_SEQUENCES = Metric(
    name=f"{PREFIX}protein_sequences_total",
    kind="counter",
    unit="sequences",
    help="Protein sequences that were answered, or refused for what is in them",
    source="ingress",
    labels=(Label("outcome", ("answered", "refused")),),
    where_there_is=_PROTEINS,
)
PROTEIN_TOKENS = Metric(
    name=f"{PREFIX}protein_tokens_total",
    kind="counter",
    unit="tokens",
    help="Tokens that passes of the protein model ran: residues, and two more a sequence",
    source="workers",
    where_there_is=_PROTEINS,
)
PROTEIN_PASS_SECONDS = Metric(
    name=f"{PREFIX}protein_pass_seconds",
    kind="histogram",
    unit="seconds",
    help="Passes of the protein model over all sequences that were packed into one row",
    source="workers",
    buckets=_STEPS,
    where_there_is=_PROTEINS,
)
PROTEIN_START_SECONDS = Metric(
    name=f"{PREFIX}protein_start_seconds",
    kind="histogram",
    unit="seconds",
    help="From the start of a replica of the protein model to its first answer",
    source="workers",
    buckets=_STARTS,
    where_there_is=_PROTEINS,
)
CALL_SECONDS = Metric(
    name=f"{PREFIX}call_seconds",
    kind="histogram",
    unit="seconds",
    help="Calls of devices, from their turn to the answer, with the tries on other devices",
    source="ingress",
    labels=(_APPLICATION,),
    buckets=_STEPS,
    where_there_is=_PROTEINS,
)
CALLS_FAILED = Metric(
    name=f"{PREFIX}calls_failed_total",
    kind="counter",
    unit="calls",
    help="Calls that a device failed or left unanswered; another device is tried",
    source="ingress",
    labels=(_APPLICATION, Label("reason", ("failed", "broken", "timeout", "died"))),
    where_there_is=_PROTEINS,
)
CALLS_WAITING = Metric(
    name=f"{PREFIX}calls_waiting_tokens",
    kind="gauge",
    unit="tokens",
    help="Tokens of the requests that wait for a device",
    source="ingress",
    labels=(_APPLICATION,),
    where_there_is=_PROTEINS,
)
DEVICES = Metric(
    name=f"{PREFIX}devices",
    kind="gauge",
    unit="devices",
    help="Devices of an application by the state of their circuit breaker, as the HTTP replica sees it that sees most",
    source="ingress",
    labels=(_APPLICATION, Label("breaker", ("closed", "open", "half_open"))),
    merge="max",
    where_there_is=_PROTEINS,
)
BREAKERS_OPENED = Metric(
    name=f"{PREFIX}breakers_opened_total",
    kind="counter",
    unit="times",
    help="Times that the circuit breaker of a device opened",
    source="ingress",
    labels=(_APPLICATION,),
    where_there_is=_PROTEINS,
)

ALL: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""In the order of this file."""
BY_NAME = {metric.name: metric for metric in ALL}
