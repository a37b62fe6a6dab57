"""The numbers that a model computes in."""

from collections.abc import Mapping
from typing import Literal

DtypeName = Literal["float32", "bfloat16"]

WeightsName = Literal["int8", "fp8"]
"""The forms of 8 bits that weights may be kept in; see `deployments.mochi.weights.quantised_weights`."""

Dtypes = DtypeName | Mapping[str, DtypeName]
"""One for all parts of a model, or one for each part that has weights, by its name."""


def part_dtype(dtypes: Dtypes, part: str) -> DtypeName:
    """The one of a part.

    Raises:
        KeyError: there is none for this part.
    """
    return dtypes if isinstance(dtypes, str) else dtypes[part]
