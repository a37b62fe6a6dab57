"""How a file is cut into parts: every sequence is in one, in its order, and none is larger than may be."""

from hypothesis import given
from hypothesis import strategies as st

from deployments.embedder.settings import ProteinSettings
from serve_app.proteins.fasta import FastaEntry
from serve_app.proteins.files.parts import FilePart, PartCutter
from serve_app.proteins.requests import FileRequest
from serve_app.proteins.work import count_numbers, count_tokens

HIDDEN = 320
OPTIONS = FileRequest(pooling=["mean", "per_residue"])


@given(
    st.lists(st.integers(0, 3_000), max_size=60),
    st.integers(1, 8),
    st.integers(2_048, 6_000),
    st.integers(1_000_000, 2_000_000),
)
def test_parts_are_whole_and_bounded(lengths: list[int], sequences: int, tokens: int, numbers: int) -> None:
    settings = ProteinSettings(source="tests", part_sequences=sequences, part_tokens=tokens, max_answer_numbers=numbers)
    cutter = PartCutter(settings, OPTIONS, HIDDEN)
    entries = [FastaEntry(f"p{n % 7}", "A" * length) for n, length in enumerate(lengths)]
    parts = [part for one in entries if (part := cutter.add(one)) is not None]
    parts += [part for part in (cutter.finish(),) if part is not None]
    assert [one for part in parts for one in part.entries] == entries
    assert [part.first for part in parts] == [sum(len(one.entries) for one in parts[:n]) for n in range(len(parts))]
    assert (cutter.parts, cutter.sequences) == (len(parts), len(entries))
    assert cutter.tokens == sum(part.tokens for part in parts)
    for part in parts:
        sizes = [len(one.sequence) for one in part.entries]
        assert part.tokens == sum(count_tokens(size, OPTIONS) for size in sizes)
        if len(sizes) > 1:
            assert len(sizes) <= sequences and part.tokens <= tokens
            assert sum(count_numbers(size, OPTIONS, HIDDEN) for size in sizes) <= numbers


@given(st.lists(st.tuples(st.text(max_size=5), st.text(max_size=9)), min_size=1), st.integers(0, 10**6))
def test_a_part_is_read_as_it_was_written(entries: list[tuple[str, str]], first: int) -> None:
    part = FilePart(first, tuple(FastaEntry(name, sequence) for name, sequence in entries), 12)
    assert FilePart.from_json(part.to_json()) == part


def test_scores_that_mask_each_residue_cost_a_pass_for_each() -> None:
    assert count_tokens(10, FileRequest()) == 12
    assert count_tokens(10, FileRequest(pseudo_perplexity=True)) == 12 * 11
    both = FileRequest(pseudo_perplexity=True, substitutions=True)
    assert count_tokens(10, both) == 12 * 21
    assert count_tokens(10, FileRequest(substitutions=True, scoring="wild_type_marginals")) == 12
