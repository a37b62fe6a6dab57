"""How many examples a property is tried with, where it is not the number that the profile says."""

from hypothesis import settings


def examples(factor: float) -> int:
    """So many times the examples of the profile (tests/conftest.py), so that the profile decides for every property."""
    profile = settings.default
    assert profile is not None
    return max(1, round(factor * profile.max_examples))
