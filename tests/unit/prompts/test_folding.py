import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.prompts.folding import fold, forms, words
from tests.support.examples import examples

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
MIXED = st.lists(st.sampled_from([*"ab1!$@0 .-aаоя\u200b\u0301ſıﬀ"]), max_size=30).map("".join)


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("Ｖérboten", "verboten"),
        ("𝓫𝓪𝓭 🅱🅰🅳 ⓑⓐⓓ 🇧🇦🇩", "bad bad bad bad"),
        ("b\u200ba\u00add\ufeff", "bad"),
        ("Zalg\u0336\u0335\u0353o", "zalgo"),
        ("straße \t\n STRASSE", "strasse strasse"),
        ("İıIi", "iiii"),
        ("ʙᴀᴅ", "bad"),
        ("שָׁלוֹם", "שלום"),
        ("مُحَمَّد", "محمد"),
        ("が", "が"),
        ("한국어", "한국어"),
        ("किताब", "किताब"),
    ],
)
def test_fold(text: str, folded: str) -> None:
    assert fold(text) == unicodedata.normalize("NFKC", folded)


@pytest.mark.parametrize(
    ("text", "latin"),
    [("bаd", "bad"), ("ѕех", "sex"), ("сосаіпе", "cocaine"), ("привет, bаd", "bad"), ("νεtο", "veto"), ("ցսո", "gun")],
)
def test_a_word_of_lookalikes_has_its_latin_form(text: str, latin: str) -> None:
    assert latin in {word for form in forms(text) for word in words(form)}


@pytest.mark.parametrize(
    "text",
    ["a red circle", "455 geese", "the a55 at 1080p", "секс и рот, большой кот", "kill!", "100%", "北京 烤鸭", "x y"]
    + ["k1ll", "b a d", "b.a.d", "baaaad", "$h1p"],
)
def test_a_plain_text_has_one_form(text: str) -> None:
    assert forms(text) == [fold(text)]


@settings(max_examples=examples(3))
@given(TEXT | MIXED)
def test_forms_are_few_distinct_and_begin_with_the_folded_text(text: str) -> None:
    found = forms(text)
    assert found[0] == fold(text)
    assert len(found) == len(set(found)) <= 2


@settings(max_examples=examples(3))
@given(TEXT)
def test_case_and_invisible_characters_do_not_count(text: str) -> None:
    assert fold(text.casefold()) == fold(text) == fold("\u200b".join(text) if text.isascii() else text)
    assert words(fold(text)) == words(fold(f" {text}\u00ad "))
