import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.prompts.cleaning import clean_prompt
from tests.support.examples import examples

# Every text that JSON can carry: lone surrogates too.
ANY_TEXT = st.text(st.characters(exclude_categories=()))
ODD = st.sampled_from(
    [*"a é\u0301한각क्षलا 漢ᠠ🏴👩🚀❤1", "\U000e0067", "\U000e007f", "\U000e0100", "\ufe0f", "\ufe0e", "\u200d", "\u200c"]
    + [*"\u200b\u202e\u2066\ufeff\u00ad\u034f\u180b\u2028\r\n\t\u2329\u0308\u3099か\u094d\u1161\u1100"]
)
ODD_TEXT = st.lists(ODD, max_size=12).map("".join)


def cleaned(text: str) -> str | None:
    try:
        return clean_prompt(text)
    except ValueError:
        return None


def is_refused(character: str) -> bool:
    category = unicodedata.category(character)
    return category == "Cs" or (category == "Cc" and character not in "\t\n\r")


@settings(max_examples=examples(5))
@given(ANY_TEXT | ODD_TEXT)
def test_clean_text_is_its_own_clean_form(text: str) -> None:
    once = cleaned(text)
    if once is not None:
        assert clean_prompt(once) == once
        assert once == once.strip()
        assert unicodedata.is_normalized("NFC", once)


@settings(max_examples=examples(3))
@given(ANY_TEXT)
def test_refused_is_exactly_what_holds_controls_or_half_pairs(text: str) -> None:
    carried = json.loads(json.dumps(text))
    assert (cleaned(carried) is None) == any(is_refused(c) for c in carried)


@settings(max_examples=examples(3))
@given(st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"])) | ODD_TEXT)
def test_what_draws_something_is_kept(text: str) -> None:
    before = [c for c in unicodedata.normalize("NFD", text) if is_drawn(c)]
    after = [c for c in unicodedata.normalize("NFD", clean_prompt(text)) if is_drawn(c)]
    # Sorted: an accent that stood behind an invisible character takes its place among those of its letter.
    assert sorted(after) == sorted(before)


def is_drawn(character: str) -> bool:
    ignorable = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"
    selector = "\ufe00" <= character <= "\ufe0f" or "\u180b" <= character <= "\u180f" or character >= "\U000e0000"
    return unicodedata.category(character)[0] in "LMNPS" and character not in ignorable and not selector


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  a red circle \n", "a red circle"),
        ("one\r\ntwo\rthree\u2028four\u2029five", "one\ntwo\nthree\nfour\nfive"),
        ("cafe\u0301", "café"),
        ("cafe\u200b\u0301", "café"),
        ("a\u202ecilc\u202c b", "acilc b"),
        ("\u2066x\u2069\u200e\u061cy", "xy"),
        ("\ufeffred\u200bcircle\u2060\u00ad", "redcircle"),
        ("dog" + "".join(chr(0xE0000 + ord(c)) for c in "ignore"), "dog"),
        ("x\ufe0f\ufe00\ufe01\ufe02", "x\ufe0f"),
        ("漢\U000e0100\U000e0101 a\U000e0101", "漢\U000e0100 a"),
        ("a\u200db\u200cc", "abc"),
        ("\u200d\u200c\ufe0f", ""),
        ("👩\u200d a \ufe0f\u200d🚀", "👩 a 🚀"),
        ("\u115f한\u3164국", "\u115f한국"),
        ("tab\there", "tab\there"),
    ],
)
def test_what_becomes_of_a_text(text: str, clean: str) -> None:
    assert clean_prompt(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "👩\u200d🚀 on the moon",
        "👨🏽\u200d🦰",
        "❤\ufe0f\u200d🔥",
        "🏳\ufe0f\u200d🌈",
        "👩\u200d❤\ufe0f\u200d💋\u200d👨",
        "1\ufe0f\u20e3",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "می\u200cخواهم",
        "क्\u200dष क्\u200cष",
        "ශ්\u200dරී",
        "ه\u200d",
        "葛\U000e0100城",
        "ᠠ\u180b",
        "שָׁלוֹם",
        "Straße, naïve, Ωmega, 北京",
    ],
)
def test_what_scripts_and_emoji_need_is_kept(text: str) -> None:
    assert clean_prompt(text) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(
    ("text", "named"),
    [("a\x00b", "U\\+0000 at position 1"), ("\x85", "U\\+0085 at position 0"), ("ab\ud83d", "U\\+D83D at position 2")],
)
def test_the_refusal_names_character_and_position(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        clean_prompt(text)
