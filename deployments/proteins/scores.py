"""How likely a protein or a mutation is to a masked language model: what to ask the model, and what follows.

A score is a plan: queries, which may be computed anywhere and in any order, and a function of their answers. Each
query is one pass; the whole vocabulary of 33 tokens shares the probability, as in fair-esm, and it is computed in
float64 from the logits.

- Pseudo-perplexity: exp of minus the mean log-probability of a residue that is masked while all others are seen
  (Salazar et al. 2020, https://arxiv.org/abs/1910.14659). One pass a residue.
- Wild-type marginals: log p(mutant) - log p(wild type) at the position, with the whole wild type seen. One pass.
- Masked marginals: the same with all positions of the variant masked at once, summed over them (Meier et al. 2021,
  https://doi.org/10.1101/2021.07.09.450648, equation 1). One pass for each set of positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from deployments.proteins.alphabet import AMINO_ACID_TOKENS, AMINO_ACIDS, MASK, ProteinSequence, SequenceError
from deployments.proteins.mutations import Variant
from deployments.proteins.queries import Answer, Floats, Query

Method = Literal["wild_type_marginals", "masked_marginals"]

KNOWN_RESIDUES = AMINO_ACIDS + "UO"
"""The letters that name one residue each."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Plan(Generic[Result]):
    """What to ask, and how the answers become the result."""

    queries: tuple[Query, ...]

    finish: Callable[[Sequence[Answer]], Result]
    """Takes the answers in the queries' order."""


@dataclass(frozen=True, slots=True)
class PseudoPerplexity:
    """How surprised the model is by a sequence: 1 is not at all, 20 as by chance."""

    value: float

    positions: tuple[int, ...]
    """The residues, from 0, that count."""

    log_probabilities: Floats
    """[positions], natural logarithm."""


def pseudo_perplexity(sequence: ProteinSequence) -> Plan[PseudoPerplexity]:
    """Of the residues that are known: X, B, Z and masked positions do not count.

    Raises:
        SequenceError: `sequence_unknown`, none is known.
    """
    positions = tuple(i for i, residue in enumerate(sequence.residues) if residue in KNOWN_RESIDUES)
    if not positions:
        raise SequenceError("sequence_unknown", "the sequence has no known residue, so none can be compared")

    def finish(answers: Sequence[Answer]) -> PseudoPerplexity:
        found = np.concatenate([_log_probabilities(answer) for answer in answers])
        true = found[np.arange(len(positions)), _tokens_at(sequence, positions)]
        return PseudoPerplexity(float(np.exp(-true.mean())), positions, true.astype(np.float32))

    return Plan(tuple(_masked_query(sequence, (position,)) for position in positions), finish)


def variant_scores(sequence: ProteinSequence, variants: Sequence[Variant], method: Method) -> Plan[list[float]]:
    """The score of each variant of the sequence; above 0 is likelier than the wild type."""
    places = [tuple(mutation.index for mutation in variant) for variant in variants]
    if method == "wild_type_marginals":
        asked = tuple(sorted({index for place in places for index in place}))
        queries = {place: Query(sequence.tokens, logits_at=asked) for place in places}
    else:
        asked = ()
        queries = {place: _masked_query(sequence, place) for place in places}
    passes = tuple(dict.fromkeys(queries.values()))

    def finish(answers: Sequence[Answer]) -> list[float]:
        by_query = {query: _log_probabilities(answer) for query, answer in zip(passes, answers, strict=True)}
        return [
            _score(sequence, variant, by_query[queries[place]], asked or place)
            for variant, place in zip(variants, places, strict=True)
        ]

    return Plan(passes, finish)


def substitution_table(sequence: ProteinSequence, method: Method) -> Plan[Floats]:
    """[L, 20]: the score of each residue replaced by each of AMINO_ACIDS alone; 0 where it is the same.

    Raises:
        SequenceError: `sequence_masked`, a residue is not given.
    """
    if sequence.masked:
        raise SequenceError(
            "sequence_masked",
            f"position {sequence.masked[0] + 1} is <mask>: a table of substitutions needs all residues",
        )
    everywhere = tuple(range(len(sequence)))
    if method == "wild_type_marginals":
        queries: tuple[Query, ...] = (Query(sequence.tokens, logits_at=range(len(sequence))),)
    else:
        queries = tuple(_masked_query(sequence, (position,)) for position in everywhere)

    def finish(answers: Sequence[Answer]) -> Floats:
        found = np.concatenate([_log_probabilities(answer) for answer in answers])
        wild_type = found[np.arange(len(sequence)), _tokens_at(sequence, everywhere)]
        table: Floats = (found[:, AMINO_ACID_TOKENS] - wild_type[:, None]).astype(np.float32)
        return table

    return Plan(queries, finish)


def together(plans: Sequence[Plan[Any]]) -> Plan[list[Any]]:
    """All results, in the order of the plans; what several of them ask is asked once."""
    queries = tuple(dict.fromkeys(query for plan in plans for query in plan.queries))

    def finish(answers: Sequence[Answer]) -> list[Any]:
        by_query = dict(zip(queries, answers, strict=True))
        return [plan.finish([by_query[query] for query in plan.queries]) for plan in plans]

    return Plan(queries, finish)


def _masked_query(sequence: ProteinSequence, positions: tuple[int, ...]) -> Query:
    """The sequence with these residues masked, from 0, asked about them."""
    tokens = bytearray(sequence.tokens)
    for position in positions:
        tokens[position + 1] = MASK
    return Query(bytes(tokens), logits_at=positions)


def _log_probabilities(answer: Answer) -> NDArray[np.float64]:
    """[positions asked, 33]."""
    if answer.logits is None:
        raise ValueError("the answer has no logits; give the answers in the order of the plan's queries")
    logits = answer.logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    found: NDArray[np.float64] = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return found


def _tokens_at(sequence: ProteinSequence, positions: Sequence[int]) -> list[int]:
    tokens = sequence.tokens
    return [tokens[position + 1] for position in positions]


def _score(sequence: ProteinSequence, variant: Variant, found: NDArray[np.float64], asked: tuple[int, ...]) -> float:
    """Of one variant.

    Args:
        found: [positions asked, 33] log-probabilities.
        asked: the positions, from 0.
    """
    rows = [asked.index(mutation.index) for mutation in variant]
    mutants = [AMINO_ACID_TOKENS[AMINO_ACIDS.index(mutation.mutant)] for mutation in variant]
    wild_types = _tokens_at(sequence, [mutation.index for mutation in variant])
    return float((found[rows, mutants] - found[rows, wild_types]).sum())
