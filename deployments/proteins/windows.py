"""Sequences that are longer than a model reads, in windows that overlap.

The windows are equally long and evenly spread, so that each overlaps the next by what was asked for or more. Each
residue is taken from the window where it is furthest from an inner edge, a place where the sequence was cut: the border
between two windows is the middle of their overlap. What is asked of the residues is thus asked of each exactly once:
values per residue follow each other, the mean is the mean over all residues, the maximum that over all. The states of
the windows' ``<cls>`` are averaged, each with the residues taken from its window as its weight; that is no state of
the whole sequence, which no model can make. Contacts between residues of two windows are not known, so there are none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from deployments.proteins.alphabet import MAX_RESIDUES, ProteinSequence
from deployments.proteins.queries import Answer, Floats, Pooling, Query

OVERLAP = 256
"""In residues: half of it is what a residue has around it at the least, on each side."""


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a sequence that is read at once."""

    span: range
    """Its residues, from 0 in the sequence."""

    taken: range
    """Those that its values are used for."""


def cut(length: int, size: int = MAX_RESIDUES, overlap: int = OVERLAP) -> tuple[Window, ...]:
    """Windows over a sequence of `length` residues; one, the whole, where it is no longer than `size`.

    Raises:
        ValueError: windows of `size` residues cannot overlap by `overlap`.
    """
    if not 0 <= overlap < size:
        raise ValueError(f"the overlap of windows must be from 0 to {size - 1} residues, got {overlap}")
    if length <= size:
        return (Window(range(length), range(length)),)
    last = -(-(length - size) // (size - overlap))
    starts = [index * (length - size) // last for index in range(last + 1)]
    borders = [0, *((start + before + size) // 2 for before, start in zip(starts, starts[1:], strict=False)), length]
    return tuple(
        Window(range(start, start + size), range(begin, end))
        for start, begin, end in zip(starts, borders, borders[1:], strict=False)
    )


def window_queries(
    sequence: ProteinSequence, whole: Query, size: int = MAX_RESIDUES, overlap: int = OVERLAP
) -> tuple[Query, ...]:
    """What to ask of the windows of a sequence, in their order, instead of the query about the whole of it.

    Raises:
        ValueError: contacts or some of the residues alone are asked of a sequence that has to be cut; or see `cut`.
    """
    windows = cut(len(sequence), size, overlap)
    if len(windows) == 1:
        return (whole,)
    if whole.contacts or whole.kept is not None:
        raise ValueError(f"contacts, and some residues alone, are known of sequences up to {size} residues only")
    return tuple(_window_query(sequence, whole, window) for window in windows)


def _window_query(sequence: ProteinSequence, whole: Query, window: Window) -> Query:
    first = window.span.start
    part = ProteinSequence(sequence.residues[first : window.span.stop])
    return replace(
        whole,
        tokens=part.tokens,
        kept=range(window.taken.start - first, window.taken.stop - first),
        logits_at=tuple(position - first for position in whole.logits_at if position in window.taken),
    )


def merge(queries: Sequence[Query], answers: Sequence[Answer]) -> Answer:
    """The answer about the whole sequence from those about its windows; positions of logits must have been in order.

    Args:
        queries: as `window_queries` makes them.
        answers: to these, in their order.
    """
    if len(queries) == 1:
        return answers[0]
    weights = [len(query.kept or ()) for query in queries]
    logits = [answer.logits for answer in answers if answer.logits is not None]
    return Answer(
        {key: _pool(key[1], [answer.embeddings[key] for answer in answers], weights) for key in answers[0].embeddings},
        logits=np.concatenate(logits) if logits else None,
    )


def _pool(pooling: Pooling, parts: Sequence[Floats], weights: Sequence[int]) -> Floats:
    if pooling == "per_residue":
        return np.concatenate(parts)
    if pooling == "max":
        largest: Floats = np.stack(parts).max(axis=0)
        return largest
    mean: Floats = np.average(np.stack(parts), axis=0, weights=weights).astype(np.float32)
    return mean
