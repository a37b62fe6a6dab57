"""Windows: every residue once, from where it is furthest from a cut; merged answers are those about all residues."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.proteins.alphabet import MASK
from deployments.proteins.esm2 import Esm2
from deployments.proteins.queries import POOLINGS, Query
from deployments.proteins.windows import cut, merge, window_queries
from tests.support.proteins.sequences import drawn_sequence


def distance(position: int, span: range, length: int) -> float:
    """From a residue to the nearest inner edge of a window."""
    left = position - span.start if span.start else np.inf
    right = span.stop - 1 - position if span.stop < length else np.inf
    return min(left, right)


@given(st.integers(1, 300), st.integers(2, 60), st.data())
def test_each_residue_is_taken_once_from_its_best_window(length: int, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    windows = cut(length, size, overlap)
    assert [i for window in windows for i in window.taken] == list(range(length))
    assert all(len(window.span) == min(size, length) for window in windows)
    assert all(before.span.stop - after.span.start >= overlap for before, after in pairwise(windows))
    for window in windows:
        for i in window.taken:
            assert distance(i, window.span, length) == max(
                distance(i, other.span, length) for other in windows if i in other.span
            )


def test_no_more_windows_than_needed() -> None:
    assert [len(cut(length)) for length in (1, 1022, 1023, 1788, 1789)] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("overlap", [-1, 1022])
def test_an_overlap_that_cannot_be(overlap: int) -> None:
    with pytest.raises(ValueError, match="from 0 to 1021"):
        cut(2000, overlap=overlap)


def test_merged_answers_are_those_about_all_residues(esm: Esm2) -> None:
    sequence = drawn_sequence(95, masks=True)
    whole = Query(sequence.tokens, (-1, 0), POOLINGS, logits_at=sequence.masked)
    queries = window_queries(sequence, whole, size=40, overlap=10)
    assert len(queries) == 3 and sum(len(query.logits_at) for query in queries) == len(sequence.masked) > 2
    answers = esm.run(queries)
    merged = merge(queries, answers)
    for layer in (-1, 0):
        residues = merged.embeddings[layer, "per_residue"]
        assert residues.shape == (95, esm.hidden_size) and residues.dtype == np.float32
        np.testing.assert_allclose(merged.embeddings[layer, "mean"], residues.mean(0), atol=1e-5)
        np.testing.assert_array_equal(merged.embeddings[layer, "max"], residues.max(0))
        states = np.stack([answer.embeddings[layer, "bos"] for answer in answers])
        weights = [len(query.kept or ()) for query in queries]
        np.testing.assert_allclose(merged.embeddings[layer, "bos"], np.average(states, 0, weights), atol=1e-5)
    # A residue's values are those of the window that it is taken from.
    (last,) = esm.run([Query(queries[-1].tokens, (-1,), ("per_residue",), logits_at=queries[-1].logits_at)])
    np.testing.assert_allclose(
        merged.embeddings[-1, "per_residue"][-1], last.embeddings[-1, "per_residue"][-1], atol=1e-5
    )
    assert merged.logits is not None and last.logits is not None
    np.testing.assert_allclose(merged.logits[-len(last.logits) :], last.logits, atol=1e-5)
    assert all(query.tokens[position + 1] == MASK for query in queries for position in query.logits_at)


def test_a_sequence_that_fits_is_asked_as_it_is(esm: Esm2) -> None:
    sequence = drawn_sequence(40)
    whole = Query(sequence.tokens, (-1,), ("mean",), contacts=True)
    assert window_queries(sequence, whole, size=40, overlap=10) == (whole,)
    (answer,) = esm.run([whole])
    assert merge([whole], [answer]) is answer


def test_contacts_are_not_known_across_windows() -> None:
    sequence = drawn_sequence(41)
    whole = Query(sequence.tokens)
    for asked in (replace(whole, contacts=True), replace(whole, kept=range(3))):
        with pytest.raises(ValueError, match="up to 40 residues only"):
            window_queries(sequence, asked, size=40, overlap=10)
