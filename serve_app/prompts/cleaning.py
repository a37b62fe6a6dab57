"""A prompt as the model is to see it: one form of the same text, without what nobody sees. Pure."""

import re
import unicodedata

import regex  # type: ignore[import-untyped]

# For a class of `regex`: what draws nothing, and the marks of interlinear annotation.
INVISIBLE = r"\p{Default_Ignorable_Code_Point}\uFFF9-\uFFFB"
# White space, and the empty braille pattern.
_BLANK = regex.compile(rf"[\s\u2800{INVISIBLE}]*")

_REFUSED = re.compile(r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F-\x9F\uD800-\uDFFF]")
_LINE_END = re.compile(r"\r\n?|[\u2028\u2029]")

# The flags of England, Scotland and Wales are the one use of tag characters; all others only hide text.
_FLAG = r"\U0001F3F4[\U000E0030-\U000E0039\U000E0061-\U000E007A]{3,6}\U000E007F"
# What scripts and emoji need: Hangul fillers and Khmer vowels within a syllable, and the joiners and selectors that
# stand in their place (see _MISPLACED).
_NEEDED = r"\u115F\u1160\u17B4\u17B5\u180B-\u180D\u180F\u200C\u200D\uFE00-\uFE0F\U000E0100-\U000E01EF"
_REMOVED = regex.compile(rf"({_FLAG})|[[{INVISIBLE}]--[{_NEEDED}]]", regex.VERSION1)

# Scripts whose letters join or stack by the zero-width joiner and non-joiner: Arabic, Syriac, N'Ko, Mandaic, the Indic
# ones, Tibetan, Myanmar, Khmer, Mongolian.
_JOINING = (
    r"\u0620-\u077F\u07C0-\u07FF\u0840-\u08FF\u0900-\u0DFF\u0F00-\u109F\u1780-\u180A\u1810-\u18AF\u1A20-\u1CFF"
    r"\uA8E0-\uA8FF\uA980-\uA9FF\uAA60-\uAA7F\uABC0-\uABFF\uFB50-\uFDFF\uFE70-\uFEFC\U00011000-\U00011FFF"
)
_PICTURE = (
    r"\u00A9\u00AE\u203C\u2049\u2122\u2139\u2190-\u21FF\u2300-\u2328\u232B-\u27BF\u2900-\u297F\u2B00-\u2BFF\u3030\u303D"
    r"\u3297\u3299\U0001F000-\U0001FAFF"
)
_HAN = r"\u3400-\u9FFF\uF900-\uFAFF\U00020000-\U0003FFFF"
_MONGOLIAN = r"\u1800-\u180A\u1810-\u18AF"
# One joiner after a letter of such a script or between two pictures, one selector after what it can select a form of.
_MISPLACED = re.compile(
    rf"(?<![{_JOINING}])(?:(?<![{_PICTURE}])(?<![{_PICTURE}]\uFE0F)\u200D|\u200D(?![{_PICTURE}])|\u200C)"
    rf"|(?<![^\s\uFE00-\uFE0F\u200C\u200D\U000E0100-\U000E01EF\u180B-\u180F])[\uFE00-\uFE0F]"
    rf"|(?<![{_HAN}])[\U000E0100-\U000E01EF]"
    rf"|(?<![{_MONGOLIAN}])[\u180B-\u180D\u180F]"
)


def clean_prompt(text: str) -> str:
    r"""The text in Unicode's form NFC with \n for line ends, trimmed, without what draws nothing.

    Removed are bidirectional controls, zero-width and tag characters and stray selectors: in a prompt they carry what a
    person who reads it does not see. Kept are the joiners and selectors that emoji and scripts need. Cleaned text is
    its own clean form; it may be empty.

    Raises:
        ValueError: names the first control character (tab, newline and carriage return are allowed) or half of a
            surrogate pair, and its position.
    """
    refused = _REFUSED.search(text)
    if refused is not None:
        raise ValueError(f"U+{ord(refused[0]):04X} at position {refused.start()}")
    text = _LINE_END.sub("\n", unicodedata.normalize("NFC", text))
    text = _REMOVED.sub(lambda match: match[1] or "", text)
    text = _MISPLACED.sub("", text)
    # Again: what was taken out may have stood between a letter and its accent.
    return unicodedata.normalize("NFC", text).strip()


def is_blank(text: str) -> bool:
    """Whether the text holds nothing but white space and invisible characters."""
    return _BLANK.fullmatch(text) is not None
