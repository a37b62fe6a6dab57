"""Scores, compared with what follows from transformers' logits for one sequence at a time."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor

from deployments.proteins.alphabet import AMINO_ACIDS, MASK, MASKED, VOCABULARY, ProteinSequence, SequenceError
from deployments.proteins.batches import group_by_tokens, in_order
from deployments.proteins.esm2 import Esm2
from deployments.proteins.mutations import read_variant
from deployments.proteins.queries import Answer, Query
from deployments.proteins.scores import (
    Method,
    Plan,
    pseudo_perplexity,
    substitution_table,
    together,
    variant_scores,
)
from tests.support.proteins.sequences import alone, drawn_sequence

METHODS: tuple[Method, ...] = ("wild_type_marginals", "masked_marginals")
SEQUENCE = drawn_sequence(24, seed=3)

Result = TypeVar("Result")


def result_of(esm: Esm2, plan: Plan[Result]) -> Result:
    """As a server has it: in groups, wherever they are computed."""
    groups = group_by_tokens([len(query.tokens) for query in plan.queries], 100)
    return plan.finish(in_order(groups, [esm.run([plan.queries[i] for i in group]) for group in groups]))


def stock_log_probabilities(stock: Any, sequence: ProteinSequence, masked: Sequence[int] = ()) -> Tensor:
    """[L, 33] float64, with these positions masked, from 0."""
    residues = "".join(MASKED if i in masked else residue for i, residue in enumerate(sequence.residues))
    return alone(stock, ProteinSequence(residues))[1].double().log_softmax(1)


def gain(found: Tensor, position: int, mutant: str) -> float:
    """log p(mutant) - log p(wild type) at a position, from 0."""
    wild_type = VOCABULARY.index(SEQUENCE.residues[position])
    return float(found[position, VOCABULARY.index(mutant)] - found[position, wild_type])


def test_pseudo_perplexity_masks_each_known_residue(esm: Esm2, stock: Any) -> None:
    sequence = ProteinSequence("MXKU#BWZO")
    found = result_of(esm, pseudo_perplexity(sequence))
    assert found.positions == (0, 2, 3, 6, 8)
    expected = torch.tensor(
        [stock_log_probabilities(stock, sequence, [i])[i, sequence.tokens[i + 1]] for i in found.positions]
    )
    np.testing.assert_allclose(found.log_probabilities, expected, atol=2e-5)
    assert found.value == pytest.approx(float((-expected.mean()).exp()), rel=1e-4)


def test_a_sequence_without_a_known_residue_has_no_perplexity() -> None:
    with pytest.raises(SequenceError, match="no known residue"):
        pseudo_perplexity(ProteinSequence("XB#Z"))


def test_by_chance_it_is_the_number_of_tokens() -> None:
    plan = pseudo_perplexity(ProteinSequence("MKT"))
    answers = [Answer(logits=np.full((1, 33), 2000, np.float32)) for _ in plan.queries]
    assert plan.finish(answers).value == pytest.approx(33)


def variants(*texts: str) -> list[str]:
    """Numbers of positions, from 1, with a new residue: "3G:9W"."""
    return [":".join(f"{SEQUENCE.residues[int(one[:-1]) - 1]}{one}" for one in text.split(":")) for text in texts]


def test_wild_type_marginals_take_one_pass(esm: Esm2, stock: Any) -> None:
    read = [read_variant(text, SEQUENCE) for text in variants("3G", "9W", "3G:9W", "24A:1C:9Y")]
    plan = variant_scores(SEQUENCE, read, "wild_type_marginals")
    assert plan.queries == (Query(SEQUENCE.tokens, logits_at=(0, 2, 8, 23)),)
    found = stock_log_probabilities(stock, SEQUENCE)
    three, nine = gain(found, 2, "G"), gain(found, 8, "W")
    others = gain(found, 23, "A") + gain(found, 0, "C") + gain(found, 8, "Y")
    np.testing.assert_allclose(result_of(esm, plan), [three, nine, three + nine, others], atol=1e-4)


def test_masked_marginals_mask_all_positions_of_a_variant_at_once(esm: Esm2, stock: Any) -> None:
    read = [read_variant(text, SEQUENCE) for text in variants("3G", "3W", "3G:9W", "9Y:3A")]
    plan = variant_scores(SEQUENCE, read, "masked_marginals")
    assert [query.tokens.count(MASK) for query in plan.queries] == [1, 2]
    one, two = (stock_log_probabilities(stock, SEQUENCE, masked) for masked in ([2], [2, 8]))
    expected = [
        gain(one, 2, "G"),
        gain(one, 2, "W"),
        gain(two, 2, "G") + gain(two, 8, "W"),
        gain(two, 2, "A") + gain(two, 8, "Y"),
    ]
    np.testing.assert_allclose(result_of(esm, plan), expected, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_wild_type_itself_scores_nothing(esm: Esm2, method: Method) -> None:
    sequence = ProteinSequence("MKT")
    assert result_of(esm, variant_scores(sequence, [read_variant("K2K", sequence)], method)) == [0.0]
    assert result_of(esm, variant_scores(sequence, [], method)) == []


@pytest.mark.parametrize("method", METHODS)
def test_the_table_has_the_scores_of_single_mutants(esm: Esm2, method: Method) -> None:
    table = result_of(esm, substitution_table(SEQUENCE, method))
    assert table.shape == (len(SEQUENCE), 20) and table.dtype == np.float32
    texts = variants("1A", "7K", "24Y")
    scores = result_of(esm, variant_scores(SEQUENCE, [read_variant(text, SEQUENCE) for text in texts], method))
    places = [(0, "A"), (6, "K"), (23, "Y")]
    np.testing.assert_allclose([table[i, AMINO_ACIDS.index(letter)] for i, letter in places], scores, atol=1e-4)
    same = [table[i, AMINO_ACIDS.index(one)] for i, one in enumerate(SEQUENCE.residues) if one in AMINO_ACIDS]
    assert same == [0.0] * len(same) != []


def test_a_table_needs_all_residues() -> None:
    with pytest.raises(SequenceError, match="position 2 is <mask>"):
        substitution_table(ProteinSequence("M#K"), "masked_marginals")


def test_what_two_scores_ask_is_asked_once(esm: Esm2) -> None:
    sequence = drawn_sequence(9, seed=1)
    plans: list[Plan[Any]] = [pseudo_perplexity(sequence), substitution_table(sequence, "masked_marginals")]
    both = together(plans)
    assert len(both.queries) == len(sequence)
    perplexity, table = result_of(esm, both)
    assert perplexity.value == pytest.approx(result_of(esm, plans[0]).value, rel=1e-4)
    np.testing.assert_allclose(table, result_of(esm, plans[1]), atol=1e-4)


def test_answers_to_other_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="no logits"):
        substitution_table(ProteinSequence("MK"), "wild_type_marginals").finish([Answer()])
