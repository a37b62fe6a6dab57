import torch
from hypothesis import given
from hypothesis import strategies as st

from deployments.prompts.kept_embeddings import KeptEmbeddings

ENTRY_BYTES = 4 * 2 * 4 + 4
MASK = torch.ones(4, dtype=torch.bool)


def embeds(text: str) -> torch.Tensor:
    return torch.full((4, 2), float(ord(text)))


def test_the_least_recently_used_goes_first() -> None:
    kept = KeptEmbeddings(2 * ENTRY_BYTES)
    for text in "ab":
        kept.put(text, embeds(text), MASK)
    assert kept.get("a") is not None
    kept.put("c", embeds("c"), MASK)
    assert [text for text in "abc" if kept.get(text)] == ["a", "c"]


def test_what_is_larger_than_the_bound_is_not_kept() -> None:
    kept = KeptEmbeddings(ENTRY_BYTES - 1)
    kept.put("a", embeds("a"), MASK)
    assert kept.get("a") is None


@given(st.integers(0, 5), st.lists(st.tuples(st.booleans(), st.sampled_from("abcdefgh")), max_size=40))
def test_the_last_used_texts_are_kept_with_their_own_embeddings(room: int, uses: list[tuple[bool, str]]) -> None:
    kept, expected = KeptEmbeddings(room * ENTRY_BYTES), list[str]()
    for is_put, text in uses:
        found = kept.get(text)
        assert (found is not None) == (text in expected)
        assert found is None or torch.equal(found[0], embeds(text))
        if is_put:
            kept.put(text, embeds(text), MASK)
        if is_put or found:
            expected = ([name for name in expected if name != text] + [text])[-room:] if room else []
