"""How long work takes, fitted to what was measured: a sum of terms, and a correction for each size. Pure.

The time is `c . x`: the terms x say how much work there is (passes, tokens, tokens squared ...), the
coefficients c >= 0 are fitted by least squares of the relative errors. With few measurements a fit of
many terms says nothing, so all sets of terms are tried (C. L. Lawson and R. J. Hanson, "Solving
Least Squares Problems", 1974, for c >= 0), and a term is taken only if it explains much. What was
too slow once (a first pass, a busy machine) has a relative error of at most 1 and so pulls little.

A size that was measured is corrected by the weighted median of measured over fitted times, which is
what it measured; one that never was takes the fit as it is.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import inf

Terms = tuple[float, ...]
"""How much work there is, each in a unit of its own, >= 0."""

SPANS_PER_SIZE = 12
MAX_SIZES = 64
# Each further term must lower the mean squared relative error by this factor, or it is left out ...
_TERM_FACTOR = 1.3
# ... where errors of this size do not count.
_NOISE = 0.02
# The fit is made anew when this share of the measurements is new.
_NEW_SHARE = 1 / 16


@dataclass(frozen=True, slots=True)
class _Span:
    terms: Terms
    seconds: float


@dataclass(slots=True)
class TimeFit:
    """Times of one kind of work. Bounded: the newest spans of the sizes measured last.

    Args:
        preferred: the term that all time is put down to while nothing tells the terms apart.
    """

    preferred: int
    _spans: OrderedDict[Hashable, deque[_Span]] = field(default_factory=OrderedDict)  # by size, last measured last
    _coefficients: Terms = ()
    _corrections: dict[Hashable, float] = field(default_factory=dict)  # by size; none before it is asked for
    _new: int = 0  # spans since the fit

    @property
    def is_measured(self) -> bool:
        """Whether there is any measurement."""
        return bool(self._spans)

    def observe(self, size: Hashable, terms: Terms, seconds: float) -> None:
        """Learn from a span of work; its seconds must be above 0 and finite, and so must some term."""
        spans = self._spans.setdefault(size, deque(maxlen=SPANS_PER_SIZE))
        spans.append(_Span(terms, seconds))
        self._spans.move_to_end(size)
        if len(self._spans) > MAX_SIZES:
            self._spans.popitem(last=False)
        self._corrections.pop(size, None)
        self._new += 1

    def coefficients(self, size: Hashable) -> Terms:
        """Seconds for a unit of each term at this size; all 0 without a measurement."""
        if self._new and self._new >= _NEW_SHARE * sum(map(len, self._spans.values())):
            spans = [span for of_size in self._spans.values() for span in of_size]
            self._coefficients = _fit(spans, self.preferred)
            self._corrections.clear()
            self._new = 0
        if size not in self._corrections:
            self._corrections[size] = self._correction(size)
            if len(self._corrections) > 4 * MAX_SIZES:  # clients choose the sizes that are asked for
                self._corrections = {size: self._corrections[size]}
        return tuple(self._corrections[size] * coefficient for coefficient in self._coefficients)

    def seconds(self, size: Hashable, terms: Terms) -> float:
        """The time that work takes; 0 without a measurement."""
        return _dot(self.coefficients(size), terms)

    def _correction(self, size: Hashable) -> float:
        fitted = [(span, _dot(self._coefficients, span.terms)) for span in self._spans.get(size, ())]
        ratios = sorted((span.seconds / seconds, seconds) for span, seconds in fitted if seconds > 0)
        return _weighted_median(ratios) if ratios else 1.0


def _weighted_median(values: Sequence[tuple[float, float]]) -> float:
    """The value at which half of the weight is passed; values with weights, sorted by value."""
    half = sum(weight for _, weight in values) / 2
    passed = 0.0
    for value, weight in values:
        passed += weight
        if passed >= half:
            return value
    return values[-1][0]


def _fit(spans: Sequence[_Span], preferred: int) -> Terms:
    """The coefficients, >= 0, of the set of terms that explains the times best for its size."""
    count = len(spans[0].terms)
    relative = [[term / span.seconds for term in span.terms] for span in spans]
    products = [[sum(row[i] * row[j] for row in relative) for j in range(count)] for i in range(count)]
    sums = [sum(row[i] for row in relative) for i in range(count)]
    best, best_score = (0.0,) * count, inf
    preferred_first = sorted(range(count), key=lambda term: term != preferred)
    for size in range(1, count + 1):
        for chosen in combinations(preferred_first, size):
            solved = _solve([[products[i][j] for j in chosen] for i in chosen], [sums[i] for i in chosen])
            if solved is None or min(solved) < 0:
                continue
            coefficients = [0.0] * count
            for term, value in zip(chosen, solved, strict=True):
                coefficients[term] = value
            error = sum((_dot(coefficients, row) - 1) ** 2 for row in relative) / len(spans)
            score = (error + _NOISE**2) * _TERM_FACTOR**size
            if score < best_score * (1 - 1e-6):
                best, best_score = tuple(coefficients), score
    return best


def _solve(matrix: list[list[float]], right: list[float]) -> list[float] | None:
    """Gaussian elimination; None if the matrix is singular or nearly so. Symmetric, >= 0."""
    scale = [row[i] ** 0.5 for i, row in enumerate(matrix)]
    if not all(0 < value < inf for value in scale):
        return None
    count = len(right)
    rows = [[matrix[i][j] / scale[i] / scale[j] for j in range(count)] + [right[i] / scale[i]] for i in range(count)]
    for i in range(count):
        if rows[i][i] < 1e-6:
            return None
        for k in range(i + 1, count):
            factor = rows[k][i] / rows[i][i]
            rows[k] = [a - factor * b for a, b in zip(rows[k], rows[i], strict=True)]
    solution = [0.0] * count
    for i in reversed(range(count)):
        known = sum(rows[i][j] * solution[j] for j in range(i + 1, count))
        solution[i] = (rows[i][count] - known) / rows[i][i]
    return [value / scale[i] for i, value in enumerate(solution)]


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True)) if left else 0.0
