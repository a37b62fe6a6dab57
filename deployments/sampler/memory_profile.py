"""What a sample costs in device memory: arithmetic on five numbers of `deployments.sampler.memory_measure`. Pure.

A row is one row of a batch: a guided sample is two rows (with and without its prompt). Batches of different shapes
take turns, so working memory is needed only for the largest of them; what samples keep between steps adds up:

    bytes = sum over rows   (tokens x held_token_bytes + held_row_bytes)
          + sum over shapes (tokens x table_token_bytes)
          + max over shapes (rows x (tokens x step_token_bytes + step_row_bytes))

All of a shape's rows are taken to run in one batch. The weights are not in it: a budget is what they leave.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from math import ceil

from deployments.clip import GUIDED_ROWS, LatentShape, latent_tokens


@dataclass(frozen=True, slots=True)
class SampleFootprint:
    """Rows of one shape that a replica holds. shape: of the latents, (12, T, H/8, W/8)."""

    shape: LatentShape
    rows: int = GUIDED_ROWS


@dataclass(frozen=True, slots=True)
class MemoryProfile:
    """Bytes of one row; see the formula above.

    step_token_bytes, step_row_bytes: working memory of a step, for each token of a row and for each row.
    held_token_bytes, held_row_bytes: kept between steps: latents, text.
    table_token_bytes: the rotary tables, shared by rows of one shape.

    Raises:
        ValueError: a number is negative, or step_token_bytes is 0: everything would fit.
    """

    step_token_bytes: int
    step_row_bytes: int
    held_token_bytes: int
    held_row_bytes: int
    table_token_bytes: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < (name == "step_token_bytes"):
                raise ValueError(f"{name} is {value}; it must not be negative, and step_token_bytes at least 1")

    def needed(self, residents: Iterable[SampleFootprint]) -> int:
        """Bytes that all these need together; residents of one shape share its tables and its batch."""
        rows: Counter[LatentShape] = Counter()
        for resident in residents:
            rows[resident.shape] += resident.rows
        held = sum(count * self._held_bytes(shape) + self._table_bytes(shape) for shape, count in rows.items())
        return held + max((count * self._step_bytes(shape) for shape, count in rows.items()), default=0)

    def fits(self, residents: Sequence[SampleFootprint], candidate: SampleFootprint, budget: int) -> bool:
        """Whether `candidate` may join `residents` within `budget` bytes."""
        return self.needed([*residents, candidate]) <= budget

    def max_tokens(self, budget: int) -> int:
        """Tokens of the largest guided sample that fits alone, 0 if none does."""
        each_row = self.step_token_bytes + self.held_token_bytes
        left = budget - GUIDED_ROWS * (self.step_row_bytes + self.held_row_bytes)
        return max(0, left // (GUIDED_ROWS * each_row + self.table_token_bytes))

    def _step_bytes(self, shape: LatentShape) -> int:
        return latent_tokens(shape) * self.step_token_bytes + self.step_row_bytes

    def _held_bytes(self, shape: LatentShape) -> int:
        return latent_tokens(shape) * self.held_token_bytes + self.held_row_bytes

    def _table_bytes(self, shape: LatentShape) -> int:
        return latent_tokens(shape) * self.table_token_bytes


def fit_line(points: Sequence[tuple[int, int]], least_slope: int) -> tuple[int, int]:
    """(slope, intercept) of a rising line on or above every (tokens, bytes).

    Least squares for the slope, but not below that of the largest measurement from zero, where noise weighs least;
    then lifted, so that no cost is told lower than it was measured. The slope is at least `least_slope`, the intercept
    at least 0.

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
