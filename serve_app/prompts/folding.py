"""The forms of a text in which the block list looks for a word. Pure.

fold("Ｖérboten")                         verboten
forms("vеrbоten")                        vеrbоten (with Cyrillic е and о), verboten
words("a verboten-word")                 a, verboten, word

Case, accents, invisible characters, compatibility forms and letters of other alphabets that look like Latin ones make
no difference. A word that is written otherwise than it is spelled (l33t, s p e l l e d, looong) is another word here:
such prompts are left to the classifier.
"""

import unicodedata

import regex  # type: ignore[import-untyped]

from serve_app.prompts.cleaning import INVISIBLE

_IGNORED = regex.compile(rf"[\p{{Cf}}{INVISIBLE}]+")
# Combining diacritics, Hebrew points, Arabic vowel signs: what writers leave out. Vowel signs of Indic scripts stay.
_ACCENTS = regex.compile(
    r"[\u0300-\u036F\u0591-\u05BD\u05BF\u05C1\u05C2\u05C4\u05C5\u05C7\u064B-\u065F\u0670\u1AB0-\u1AFF\u1DC0-\u1DFF"
    r"\u20D0-\u20FF\uFE20-\uFE2F]+"
)
_SPACE = regex.compile(r"\s+")
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
_LATIN = regex.compile(r"\p{Latin}")

_LATIN_VARIANTS = str.maketrans(
    "ıɑɡɩʟøđħŧłƅᴀʙᴄᴅᴇꜰɢʜɪᴊᴋᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ",
    "iagilodhtlbabcdefghijkmnoprstuvwyz",
)
# Letters of flags, and white letters on black circles and squares, which NFKC leaves alone.
_ENCLOSED = {first + i: chr(ord("a") + i) for first in (0x1F1E6, 0x1F150, 0x1F170) for i in range(26)}
# Cyrillic, Greek and Armenian letters, and the Latin ones that they look like.
_LOOKALIKES = str.maketrans(
    "авекмнопрстухіѕјһԁԛԝү" + "αβεηικνορτυχγ" + "օսհոց",
    "abekmhonpctyxisjhdqwy" + "abenikvoptuxy" + "ouhng",
)
_OTHER_LETTER = regex.compile(
    rf"[[\p{{Cyrillic}}\p{{Greek}}\p{{Armenian}}&&\p{{L}}]--[{''.join(map(chr, _LOOKALIKES))}]]", regex.V1
)


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
    """The folded text, and if it is another, the one with Latin letters in place of those that look like them.

    A text with other letters of those alphabets, such as a Russian one, keeps its own words: there, look-alikes are
    replaced only in words that have Latin letters too.
    """
    folded = fold(text)
    if _OTHER_LETTER.search(folded):
        latin = _WORD.sub(lambda m: m[0].translate(_LOOKALIKES) if _LATIN.search(m[0]) else m[0], folded)
    else:
        latin = folded.translate(_LOOKALIKES)
    return list(dict.fromkeys((folded, latin)))
