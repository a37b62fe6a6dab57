"""The forms of a text in which a word is looked for, whatever it was dressed up as. Pure.

fold("Ｖérboten")                         verboten
forms("v.e.r.b.0.t.e.n")                 v.e.r.b.0.t.e.n, verb0ten, verboten
words("a verboten-word")                 a, verboten, word
"""

import unicodedata
from collections.abc import Iterable

import regex  # type: ignore[import-untyped]

_IGNORED = regex.compile(r"[\p{Cf}\p{Default_Ignorable_Code_Point}]+")
# Combining diacritics, Hebrew points, Arabic vowel signs: what writers leave out. Vowel signs of Indic scripts stay.
_ACCENTS = regex.compile(
    r"[\u0300-\u036F\u0591-\u05BD\u05BF\u05C1\u05C2\u05C4\u05C5\u05C7\u064B-\u065F\u0670\u1AB0-\u1AFF\u1DC0-\u1DFF"
    r"\u20D0-\u20FF\uFE20-\uFE2F]+"
)
_SPACE = regex.compile(r"\s+")
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
_LATIN = regex.compile(r"\p{Latin}")
_SIGNS = "@$!|€"
_DRESSED = regex.compile(rf"[\p{{L}}\p{{M}}\p{{N}}{_SIGNS}]++")
# Separators are never signs: so there is one way to read a run, and no backtracking.
_SPELLED = regex.compile(
    rf"(?<![\p{{L}}\p{{M}}\p{{N}}])[\p{{L}}\p{{N}}{_SIGNS}]"
    rf"(?:[^\p{{L}}\p{{M}}\p{{N}}{_SIGNS}]{{1,3}}+[\p{{L}}\p{{N}}{_SIGNS}]){{2,}}(?![\p{{L}}\p{{M}}\p{{N}}])"
)
_SPELLING = regex.compile(rf"[^\p{{L}}\p{{N}}{_SIGNS}]+")
_LONG_RUN = regex.compile(r"(\p{L})\1{2,}+")

_LATIN_VARIANTS = str.maketrans(
    "ıɑɡɩʟøđħŧłƅᴀʙᴄᴅᴇꜰɢʜɪᴊᴋᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ",
    "iagilodhtlbabcdefghijkmnoprstuvwyz",
)
# Letters of flags, and white letters on black circles and squares, which NFKC leaves alone.
_ENCLOSED = {first + i: chr(ord("a") + i) for first in (0x1F1E6, 0x1F150, 0x1F170) for i in range(26)}
_LOOKALIKES = str.maketrans(
    "авекмнопрстухіѕјһԁԛԝү" + "αβεηικνορτυχγ" + "օսհոց",
    "abekmhonpctyxisjhdqwy" + "abenikvoptuxy" + "ouhng",
)
_OTHER_LETTER = regex.compile(
    rf"[[\p{{Cyrillic}}\p{{Greek}}\p{{Armenian}}&&\p{{L}}]--[{''.join(map(chr, _LOOKALIKES))}]]", regex.V1
)
_DIGITS_AND_SIGNS = str.maketrans("0345789@$€", "oeastbgase")
_ONES = ("i", "l")


def fold(text: str) -> str:
    """One form for all ways to write the same: no case, no accents, no invisible characters, single spaces.

    Compatibility forms (full width, mathematical, circled letters) become the letters that they stand for.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = unicodedata.normalize("NFD", _IGNORED.sub("", text))
    text = unicodedata.normalize("NFKC", _ACCENTS.sub("", text))
    spaced: str = _SPACE.sub(" ", text.translate(_LATIN_VARIANTS).translate(_ENCLOSED))
    return spaced.strip()


def words(folded: str) -> list[str]:
    """The runs of letters and digits, in order."""
    found: list[str] = _WORD.findall(folded)
    return found


def forms(text: str) -> list[str]:
    """All forms in which a word may hide, each once, the folded text first.

    With letters of other alphabets that look like Latin ones, l3tters written as digits or signs, s p e l l e d words
    and looong letters undone, one after the other. A plain text has a single form; no text has more than 36.
    """
    found = [fold(text)]
    found = _unique(f for form in found for f in (form, _unmasked(form)))
    found = _unique(f for form in found for f in (form, _SPELLED.sub(_joined, form)))
    found = _unique(f for form in found for f in (form, *(_read(form, one) for one in _ONES)))
    return _unique(f for form in found for f in (form, *(_LONG_RUN.sub(short, form) for short in (r"\1", r"\1\1"))))


def _unique(found: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(found))


def _unmasked(form: str) -> str:
    """Look-alikes become Latin in words that also have Latin letters, and everywhere in a text that has no letters of
    those alphabets but look-alikes: a Russian text does, so that its own words stay what they are.
    """
    if not _OTHER_LETTER.search(form):
        return form.translate(_LOOKALIKES)
    unmasked: str = _WORD.sub(lambda m: m[0].translate(_LOOKALIKES) if _LATIN.search(m[0]) else m[0], form)
    return unmasked


def _joined(match: "regex.Match[str]") -> str:
    """A spelled word in one piece; as what begins with "a" may be an article and a word, without it too."""
    joined: str = _SPELLING.sub("", match[0])
    return f"{joined} {joined[1:]}" if joined.startswith("a") else joined


def _read(form: str, one: str) -> str:
    """Digits and signs read as letters, with 1, ! and | as `one`."""
    table = _DIGITS_AND_SIGNS | str.maketrans("1!|", 3 * one)
    read: str = _DRESSED.sub(lambda m: _read_word(m[0], table), form)
    return read


def _read_word(word: str, table: dict[int, int]) -> str:
    """In a word with more digits than letters (455, a55, 1080p) they are digits; ! and | at its ends are marks."""
    core = word.strip("!|")
    if sum(c.isdigit() for c in core) > sum(c.isalpha() for c in core):
        return word
    return word.replace(core, core.translate(table)) if core else word
