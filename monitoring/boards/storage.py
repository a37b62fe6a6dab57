"""The object store, the database, the disks, and the webhooks that are sent from there."""

from deployments.metrics import names
from monitoring.boards.common import BOARD as Q
from monitoring.boards.common import JOBS, RARE
from monitoring.grafana import Dashboard, Panel, Query, Row

STORE_REQUESTS = Panel(
    "Requests to the store, a second",
    "reqps",
    (Query(Q.rate(names.STORE_REQUESTS, "operation"), "{{operation}}"),),
    "By operation.",
    kind="areas",
)
STORE_FAILED = Panel(
    "Failed requests to the store",
    "percentunit",
    (
        Query(
            f"{Q.rate(names.STORE_REQUESTS, 'operation', outcome='failed')} / "
            f"({Q.rate(names.STORE_REQUESTS, 'operation')} > 0)",
            "{{operation}}",
        ),
    ),
    "After their repeats. Stages wait for a store that is away, and no attempt is counted.",
)
STORE_TIME = Panel(
    "Time of a request to the store",
    "s",
    (Query(Q.quantile(0.95, names.STORE_SECONDS, "operation", window=JOBS), "{{operation}}, 95 %"),),
    "With repeats; of a stream, until its first byte.",
)
CHECKPOINT_BYTES = Panel(
    "Checkpoints, bytes a second",
    "Bps",
    (Query(Q.rate(names.CHECKPOINT_BYTES), "written"),),
    "What samplers write, so that little is lost with them.",
)
CHECKPOINTS = Panel(
    "Checkpoints, a minute",
    "short",
    (Query(f"60 * ({Q.rate(names.CHECKPOINTS)})", "written"),),
    "Those of parked samples too.",
)
DISKS = Panel(
    "The fullest disks",
    "percentunit",
    (Query(Q.now(names.DISK_USED, "disk"), "{{disk}}"),),
    "Of all machines. With a full disk of data nothing is accepted; with one of models no new replica starts.",
    red_from=0.9,
)
COMMIT = Panel(
    "A transaction of the registry",
    "s",
    (
        Query(Q.quantile(0.5, names.DATABASE_SECONDS), "half"),
        Query(Q.quantile(0.95, names.DATABASE_SECONDS), "95 %"),
        Query(Q.quantile(0.99, names.DATABASE_SECONDS), "99 %"),
    ),
    "All moves of jobs go through these, one after the other. Above 0.1 s look at the database's disk.",
)
OPERATIONS = Panel(
    "Operations on the database, a second",
    "ops",
    (Query(Q.rate(names.DATABASE_OPERATIONS, "outcome"), "{{outcome}}"),),
    "Refused by a rule of their own is normal; failed is not.",
)
GROUPED = Panel(
    "Operations in a transaction",
    "short",
    (
        Query(
            f"{Q.rate(names.DATABASE_OPERATIONS)} / ({Q.rate(names.DATABASE_SECONDS, suffix='_count')} > 0)",
            "mean",
        ),
    ),
    "What arrives together is committed together: under load this rises before the time does.",
)
TRIES = Panel(
    "Webhooks, in an hour",
    "short",
    (Query(Q.increase(names.WEBHOOKS, "outcome", window=RARE), "{{outcome}}"),),
    "Tries: taken, to be tried again, given up.",
)
BACKLOG = Panel(
    "Webhooks that wait",
    "short",
    (Query(Q.now(names.WEBHOOKS_WAITING), "neither taken nor given up"),),
    "Those of a receiver that is away wait here, each with longer pauses.",
)
OVERDUE = Panel(
    "The longest overdue webhook",
    "s",
    (
        Query(Q.now(names.WEBHOOK_OVERDUE), "overdue"),
        Query(Q.quantile(0.95, names.WEBHOOK_SECONDS, window=JOBS), "a try, 95 %"),
    ),
    "A try that is due waits: slow receivers hold all that are sent at once.",
)

STORAGE = Dashboard(
    "storage",
    "storage and database",
    "The object store, the database, the disks, and the webhooks.",
    (
        Row("The object store", (STORE_REQUESTS, STORE_FAILED, STORE_TIME)),
        Row("Disks and checkpoints", (DISKS, CHECKPOINT_BYTES, CHECKPOINTS)),
        Row("The database", (COMMIT, OPERATIONS, GROUPED)),
        Row("Webhooks", (TRIES, BACKLOG, OVERDUE)),
    ),
)
