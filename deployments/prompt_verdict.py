"""What the prompt classifier answers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """probability: from 0 to 1, that the prompt is of the kinds to be refused. label: the likeliest of them."""

    label: str
    probability: float
