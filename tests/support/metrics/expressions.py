"""What an expression of PromQL names, read from its text alone: not by the code that wrote it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

SELECTOR = re.compile(r"\b((?:mochi_serve|ray)_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"[^"]*"')
LISTED = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right) \(([^)]*)\)")
SUFFIXES = ("_bucket", "_sum", "_count")


@dataclass(frozen=True, slots=True)
class Selector:
    """A metric's name with its matchers."""

    name: str
    labels: tuple[str, ...]
    text: str


def selectors(expression: str) -> Iterator[Selector]:
    """All of an expression, in its order."""
    for match in SELECTOR.finditer(expression):
        yield Selector(match[1], tuple(MATCHER.findall(match[2] or "")), match[0])


def listed_labels(expression: str) -> set[str]:
    """Those by which it adds up or joins."""
    return {label.strip() for listed in LISTED.findall(expression) for label in listed.split(",") if label.strip()}


def base_name(name: str) -> str:
    """Of the metric to which a series of a histogram belongs."""
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name
