"""What answers at once: calls of devices, their circuit breakers, and the protein model."""

from deployments.metrics import names
from monitoring.boards.common import BOARD as Q
from monitoring.boards.common import JOBS, RARE
from monitoring.grafana import Dashboard, Needs, Panel, Query, Row

_NEEDS: Needs = "the proteins"

DEVICES = Panel(
    "Devices by their circuit breaker",
    "short",
    (Query(Q.now(names.DEVICES, "application", "breaker"), "{{application}}: {{breaker}}"),),
    "Open: it failed and gets nothing until one call tries it again.",
    kind="areas",
    needs=_NEEDS,
)
OPENED = Panel(
    "Breakers that opened, in an hour",
    "short",
    (Query(Q.increase(names.BREAKERS_OPENED, "application", window=RARE), "{{application}}"),),
    "A device failed three times in a row, or did not answer. The log names it.",
    needs=_NEEDS,
    red_from=1,
)
FAILED = Panel(
    "Calls that failed and went to another device",
    "short",
    (Query(Q.increase(names.CALLS_FAILED, "application", "reason", window=RARE), "{{application}}: {{reason}}"),),
    "In an hour. Clients notice none of them, unless all devices fail.",
    needs=_NEEDS,
)
CALL = Panel(
    "A call that 95 % stay below",
    "s",
    (Query(Q.quantile(0.95, names.CALL_SECONDS, "application", window=JOBS), "{{application}}"),),
    "From its turn to the answer, with the tries on other devices.",
    needs=_NEEDS,
)
WAITING = Panel(
    "Tokens that wait for a device",
    "short",
    (Query(Q.now(names.CALLS_WAITING, "application"), "{{application}}"),),
    "Of all requests. At the bound of the settings more are refused with 429.",
    needs=_NEEDS,
)
SEQUENCES = Panel(
    "Protein sequences, a second",
    "short",
    (Query(Q.rate(names.PROTEIN_SEQUENCES, "outcome"), "{{outcome}}"),),
    "Refused: for what is in them.",
    needs=_NEEDS,
)
TOKENS = Panel(
    "Protein tokens, a second",
    "short",
    (Query(Q.rate(names.PROTEIN_TOKENS), "tokens"),),
    "The throughput of all devices.",
    needs=_NEEDS,
)
PASS = Panel(
    "A pass that 95 % stay below",
    "s",
    (Query(Q.quantile(0.95, names.PROTEIN_PASS_SECONDS, window=JOBS), "95 %"),),
    "Of the protein model, over all sequences that were packed into it.",
    needs=_NEEDS,
)
STARTS = Panel(
    "Starts of the protein model",
    "s",
    (Query(Q.mean(names.PROTEIN_START_SECONDS, window="6h"), "mean"),),
    "Of the last six hours: files, weights and a first answer.",
    needs=_NEEDS,
)

APPLICATIONS = Dashboard(
    "applications",
    "Applications that answer at once",
    "Calls of devices, their circuit breakers, and the protein model.",
    (
        Row("Devices", (DEVICES, OPENED, FAILED, CALL, WAITING)),
        Row("Proteins", (SEQUENCES, TOKENS, PASS, STARTS)),
    ),
)
