"""From an asked sequence to the queries for it, and from their answers to its result. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from deployments.errors import PermanentError
from deployments.proteins.alphabet import MAX_RESIDUES, ProteinSequence, SequenceError, read_sequence
from deployments.proteins.mutations import read_variant
from deployments.proteins.queries import Answer, Floats, Query
from deployments.proteins.scores import Plan, pseudo_perplexity, substitution_table, together, variant_scores
from deployments.proteins.windows import merge, window_queries
from serve_app.proteins.requests import AskedSequence, Options


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """What became of a sequence: its answers, or why there are none."""

    id: str | None
    length: int | None = None  # residues; None: it could not be read
    notes: tuple[str, ...] = ()
    answer: Answer | None = None  # embeddings, contacts, logits
    masked: tuple[int, ...] = ()  # the positions of the logits, from 0
    pseudo_perplexity: float | None = None
    mutations: tuple[tuple[str, float], ...] = ()  # as they were asked for, with their scores
    substitutions: Floats | None = None  # [residues, 20]
    error: PermanentError | None = None


@dataclass(frozen=True, slots=True)
class SequenceWork:
    """A sequence that can be computed."""

    asked: AskedSequence
    sequence: ProteinSequence
    plan: Plan[list[Any]]
    parts: tuple[str, ...] = field(default=())  # what the plan's results are, in order

    @property
    def tokens(self) -> int:
        """Of all its passes."""
        return sum(len(query.tokens) for query in self.plan.queries)

    def numbers(self, options: Options, hidden_size: int) -> int:
        """How many numbers the answer has, about."""
        return count_numbers(len(self.sequence), options, hidden_size)

    def finish(self, answers: Sequence[Answer]) -> SequenceResult:
        """The result. answers: to the plan's queries, in their order."""
        found = dict(zip(self.parts, self.plan.finish(answers), strict=True))
        perplexity = found.get("pseudo_perplexity")
        return SequenceResult(
            id=self.asked.id,
            length=len(self.sequence),
            notes=self.sequence.notes,
            answer=found.get("answer"),
            masked=self.sequence.masked,
            pseudo_perplexity=None if perplexity is None else perplexity.value,
            mutations=tuple(zip(self.asked.mutations, found.get("mutations", ()), strict=True)),
            substitutions=found.get("substitutions"),
        )


def count_numbers(length: int, options: Options, hidden_size: int) -> int:
    """How many numbers the answer about a sequence of so many residues has, about."""
    vectors = sum(length if pooling == "per_residue" else 1 for pooling in dict.fromkeys(options.pooling))
    embeddings = len(set(options.layers)) * vectors * hidden_size if options.wants_embeddings else 0
    return embeddings + (length**2 if options.contacts else 0) + (20 * length if options.substitutions else 0)


def count_tokens(length: int, options: Options) -> int:
    """How many tokens all passes for a sequence of so many residues have, about."""
    masked = int(options.pseudo_perplexity) + int(options.substitutions and options.scoring == "masked_marginals")
    return (length + 2) * (1 + length * masked)


def plan_work(asked: AskedSequence, options: Options) -> SequenceWork:
    """What to compute.

    Raises:
        SequenceError: the sequence, or what is asked of it, is not what a model can read.
    """
    sequence = read_sequence(asked.text, options.remove_gaps, None if options.windows else MAX_RESIDUES)
    is_cut = len(sequence) > MAX_RESIDUES
    scores = {
        "contacts": options.contacts,
        "pseudo_perplexity": options.pseudo_perplexity,
        "mutations": bool(asked.mutations),
        "substitutions": options.substitutions,
    }
    if is_cut and (wanted := [name for name, is_wanted in scores.items() if is_wanted]):
        raise SequenceError(
            "sequence_too_long",
            f"the sequence has {len(sequence)} residues, and {', '.join(wanted)} are known of {MAX_RESIDUES} at most; "
            "cut it into domains",
        )
    plans: dict[str, Plan[Any]] = {}
    if (query := _query(sequence, options)) is not None:
        plans["answer"] = _answer_plan(sequence, query, options.overlap)
    if options.pseudo_perplexity:
        plans["pseudo_perplexity"] = pseudo_perplexity(sequence)
    if asked.mutations:
        variants = [read_variant(text, sequence) for text in asked.mutations]
        plans["mutations"] = variant_scores(sequence, variants, options.scoring)
    if options.substitutions:
        plans["substitutions"] = substitution_table(sequence, options.scoring)
    return SequenceWork(asked, sequence, together(list(plans.values())), tuple(plans))


def _query(sequence: ProteinSequence, options: Options) -> Query | None:
    masked = sequence.masked if options.logits is not False else ()
    if options.logits and not masked:
        raise SequenceError("sequence_without_mask", "logits are of residues that are <mask>, and there is none")
    embeds = options.wants_embeddings
    if not (embeds or options.contacts or masked):
        return None
    return Query(
        sequence.tokens,
        layers=tuple(options.layers) if embeds else (),
        poolings=tuple(dict.fromkeys(options.pooling)) if embeds else (),
        contacts=options.contacts,
        logits_at=masked,
    )


def _answer_plan(sequence: ProteinSequence, query: Query, overlap: int) -> Plan[Answer]:
    queries = window_queries(sequence, query, overlap=overlap)
    return Plan(queries, lambda answers: merge(queries, answers))
