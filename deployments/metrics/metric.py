"""What a metric is: its name, kind, unit, labels and buckets, and what is known of it before anything happened."""

from dataclasses import dataclass
from itertools import product
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Merge = Literal["sum", "max"]
"""How a gauge that several processes tell becomes one."""
Source = Literal["jobs", "registry", "workers", "ingress", "all"]
"""Who counts it: `jobs` is read from SQL, and so exact whatever was killed; the others are counted in memory."""

OTHER = "other"
"""The value of a label that stands for all beyond the bound."""


@dataclass(frozen=True, slots=True)
class Label:
    """A label and its bound."""

    name: str
    values: tuple[str, ...] = ()  # known from the start, with series of 0; all that there are, if `most` is None
    most: int | None = None  # of values in a metric, after which the next ones become OTHER


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric. Counters end in `_total`; what has a unit names it in the plural, as Prometheus asks."""

    name: str
    kind: Kind
    unit: str
    help: str  # one sentence, without a full stop
    source: Source
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()  # upper bounds of a histogram's, rising, without infinity
    merge: Merge = "sum"
    where_there_is: str | None = None  # the series exist only where there is this

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    def first_series(self) -> list[tuple[str, ...]]:
        """The labels' values of the series that exist before anything happened; one without labels for a metric of
        none, and none at all where nothing can be known before."""
        if self.where_there_is is not None or not all(label.values for label in self.labels):
            return []
        return list(product(*(label.values for label in self.labels)))
