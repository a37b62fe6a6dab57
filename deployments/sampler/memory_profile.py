"""What samples take of the device's memory: arithmetic on the numbers of `memory_measure`. Pure.

A sample is one or two rows of a batch: with guidance two, with and without its prompt. Batches of different shapes
take turns, so working memory is needed only for the largest of them; what samples keep between steps adds up:

    bytes = sum over samples (cfg_rows x (tokens x held_token_bytes + held_row_bytes)
                              + kept_rows x tokens x kept_token_bytes)
          + sum over shapes  (tokens x table_token_bytes)
          + max over shapes  (rows of a pass x (tokens x step_token_bytes + step_row_bytes))

A pass in which any row keeps something for later steps holds all of its rows once more, as they were after the first
block. All samples of one shape are taken to run in one batch. Its rows are those of a pass, or with `rows_at_once` so
many at most: what a pass then leaves for the next, a velocity for each row, is no more than what is counted for the
latents. The weights are not in it: the budget is what they leave.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from math import ceil

from deployments.clip import GUIDED_ROWS, LatentShape, latent_tokens


@dataclass(frozen=True, slots=True)
class SampleFootprint:
    """All of a sample that its memory depends on."""

    shape: LatentShape
    cfg_rows: int = GUIDED_ROWS  # 2 with guidance, 1 without
    kept_rows: int = 0  # of which steps keep what later ones reuse


@dataclass(frozen=True, slots=True)
class MemoryProfile:
    """Bytes that a row takes; see the formula above.

    Raises:
        ValueError: a number is negative, or step_token_bytes is 0: everything would fit.
    """

    step_token_bytes: int  # working memory of a step, for each token of a row
    step_row_bytes: int  # working memory of a step, for each row
    held_token_bytes: int  # kept between steps for each token of a row: latents
    held_row_bytes: int  # kept between steps for each row: text
    table_token_bytes: int  # rotary tables, for each token of a shape
    kept_token_bytes: int = 0  # what a step keeps for the next ones to reuse, for each token of a row
    rows_at_once: int = 0  # of one forward pass, at most; 0: no bound

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < (name == "step_token_bytes"):
                raise ValueError(f"{name} is {value}; it must not be negative, and step_token_bytes at least 1")

    def needed(self, samples: Iterable[SampleFootprint]) -> int:
        """Bytes that all of these need together; samples of one shape share its tables and its batch."""
        rows: Counter[LatentShape] = Counter()
        kept_rows: Counter[LatentShape] = Counter()
        for sample in samples:
            rows[sample.shape] += sample.cfg_rows
            kept_rows[sample.shape] += sample.kept_rows
        held = sum(count * self._held_bytes(shape) + self._table_bytes(shape) for shape, count in rows.items())
        kept = sum(count * self._kept_bytes(shape) for shape, count in kept_rows.items())
        steps = [
            self._pass_rows(count) * (self._step_bytes(shape) + (self._kept_bytes(shape) if kept_rows[shape] else 0))
            for shape, count in rows.items()
        ]
        return held + kept + max(steps, default=0)

    def fits(self, others: Sequence[SampleFootprint], candidate: SampleFootprint, budget: int) -> bool:
        """Whether `candidate` fits beside `others` within `budget` bytes."""
        return self.needed([*others, candidate]) <= budget

    def max_tokens(self, budget: int, kept_rows: int = 0) -> int:
        """Tokens of the largest guided sample that fits alone, 0 if none does. kept_rows: as in SampleFootprint."""
        pass_rows = self._pass_rows(GUIDED_ROWS)
        kept = (kept_rows + pass_rows) * self.kept_token_bytes if kept_rows else 0
        tokens = pass_rows * self.step_token_bytes + GUIDED_ROWS * self.held_token_bytes + self.table_token_bytes + kept
        remaining = budget - pass_rows * self.step_row_bytes - GUIDED_ROWS * self.held_row_bytes
        return max(0, remaining // tokens)

    def _pass_rows(self, rows: int) -> int:
        """Of a step with so many rows, those of its largest pass."""
        return min(rows, self.rows_at_once or rows)

    def _step_bytes(self, shape: LatentShape) -> int:
        return latent_tokens(shape) * self.step_token_bytes + self.step_row_bytes

    def _kept_bytes(self, shape: LatentShape) -> int:
        return latent_tokens(shape) * self.kept_token_bytes

    def _held_bytes(self, shape: LatentShape) -> int:
        return latent_tokens(shape) * self.held_token_bytes + self.held_row_bytes

    def _table_bytes(self, shape: LatentShape) -> int:
        return latent_tokens(shape) * self.table_token_bytes


def highest(profiles: Sequence[MemoryProfile]) -> MemoryProfile:
    """A profile below none of these, of which there is at least one: the highest of each number."""
    columns = [asdict(profile) for profile in profiles]
    return MemoryProfile(**{name: max(each[name] for each in columns) for name in columns[0]})


def fit_line(points: Sequence[tuple[int, int]], least_slope: int) -> tuple[int, int]:
    """(slope, intercept) of a rising line on or above every (tokens, bytes).

    Least squares for the slope, but not below that of the largest measurement from zero, where noise weighs least;
    then lifted, so that nothing is estimated below its measurement. The slope is at least `least_slope`, the
    intercept at least 0.

    Raises:
        ValueError: fewer than two different numbers of tokens.
    """
    if len({tokens for tokens, _ in points}) < 2:
        raise ValueError(f"a line needs measurements of at least two sizes; there are {list(points)}")
    mean_x = Fraction(sum(x for x, _ in points), len(points))
    mean_y = Fraction(sum(y for _, y in points), len(points))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    squares = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    largest = max(Fraction(y, x) for x, y in points if x == max(x for x, _ in points))
    slope = max(least_slope, ceil(squares), ceil(largest))
    return slope, max(0, *(y - slope * x for x, y in points))
