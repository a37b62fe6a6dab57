"""The processes, the HTTP side, and, where Prometheus reads Ray's pages too, the machines."""

from deployments.metrics import names
from monitoring import ray_names as ray
from monitoring.boards.common import BOARD as Q
from monitoring.boards.common import JOBS, RARE
from monitoring.boards.gpus import REPLICAS, STARTS
from monitoring.grafana import Dashboard, Panel, Query, Row

PROCESSES = Panel(
    "Processes that are heard",
    "short",
    (Query(Q.now(names.PROCESSES), "processes"),),
    "The registry, ingress and stages' replicas; one that is not heard for 30 s is not counted.",
)
LOST = Panel(
    "Jobs that went back, in an hour",
    "short",
    (
        Query(Q.risen(names.RETRIES, "code", window=RARE), "a job again: {{code}}"),
        Query(Q.increase(names.LEASES_LAPSED, window=RARE), "leases lapsed"),
    ),
    "Because their replica died or failed, or was not heard of. One death takes all its jobs along.",
)
FEED = Panel(
    "Lag of the ingress",
    "s",
    (Query(Q.now(names.FEED_LAG), "the one that lags most"),),
    "Since the registry last brought it up to date. Seconds: the registry starts anew, or is away.",
    red_from=30,
)
REQUESTS = Panel(
    "Requests, a second",
    "reqps",
    (Query(Q.rate(names.HTTP_REQUESTS, "status"), "{{status}}"),),
    "By status.",
    kind="areas",
)
ROUTES = Panel(
    "Requests by route, a second",
    "reqps",
    (Query(Q.rate(names.HTTP_REQUESTS, "route"), "{{route}}"),),
    "Patterns, never paths.",
    kind="areas",
)
LATENCY = Panel(
    "First byte of an answer",
    "s",
    (Query(Q.quantile(0.95, names.HTTP_SECONDS, "route", window=JOBS), "{{route}}, 95 %"),),
    "Long polls and POST /v1/videos/sync wait by design.",
)
HEALTHY = Panel(
    "Serve's healthy replicas",
    "short",
    (Query(ray.HEALTHY.by("application", "deployment"), "{{application}}: {{deployment}}"),),
    "As Serve's controller sees them.",
    needs="Ray's page",
)
ACTORS = Panel(
    "Ray's actors by state",
    "short",
    (Query(ray.ACTORS.by("State"), "{{State}}"),),
    "Pending ones wait for a place on a node.",
    needs="Ray's page",
)
RESOURCES = Panel(
    "Ray's GPUs and CPUs in use",
    "short",
    (Query(ray.RESOURCES.by("Name", Name="~CPU|GPU", State="USED"), "{{Name}}"),),
    "What replicas have reserved, not what they use.",
    needs="Ray's page",
)
CPU = Panel(
    "Processors",
    "short",
    (
        Query(f"{ray.CPU_PERCENT.by('instance')} / 100 * {ray.CPUS.by('instance')}", "{{instance}}"),
        Query(ray.CPUS.by("instance"), "{{instance}}: all"),
    ),
    "In use on each node.",
    needs="Ray's page",
)
MEMORY = Panel(
    "Memory",
    "bytes",
    (
        Query(ray.MEMORY_USED.by("instance"), "{{instance}}"),
        Query(ray.MEMORY_TOTAL.by("instance"), "{{instance}}: all"),
    ),
    "In use on each node.",
    needs="Ray's page",
)
DISK = Panel(
    "Ray's disk",
    "percentunit",
    (
        Query(
            f"{ray.DISK_USED.by('instance')} / ({ray.DISK_USED.by('instance')} + {ray.DISK_FREE.by('instance')})",
            "{{instance}}",
        ),
    ),
    "The one that Ray writes on, on each node.",
    needs="Ray's page",
)

CLUSTER = Dashboard(
    "cluster",
    "cluster",
    "The processes, the HTTP side, and, where Prometheus reads Ray's pages too, the machines.",
    (
        Row("Processes", (PROCESSES, REPLICAS, STARTS, LOST, FEED)),
        Row("HTTP", (REQUESTS, ROUTES, LATENCY)),
        Row("Ray, by its own pages", (HEALTHY, ACTORS, RESOURCES, CPU, MEMORY, DISK)),
    ),
)
