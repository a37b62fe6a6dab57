"""The table of all metrics in `docs/metrics.md`: `python -m tests.support.metrics.table` writes it anew."""

from deployments.metrics.metric import Metric
from deployments.metrics.names import ALL
from tests.support import ROOT

DOCS = ROOT / "docs" / "metrics.md"
BEGIN, END = "<!-- The table: python -m tests.support.metrics.table -->\n", "<!-- Its end -->\n"


def table() -> str:
    """In the order of the names' file."""
    head = "| metric | kind | labels | from | what |\n| --- | --- | --- | --- | --- |\n"
    return head + "".join(map(_row, ALL))


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{name}`" for name in metric.label_names)
    where = "" if metric.where_there_is is None else f"; only with {metric.where_there_is}"
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.source} | {metric.help}{where} |\n"


def with_table(text: str) -> str:
    """The page with the table of today."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    DOCS.write_text(with_table(DOCS.read_text()))
