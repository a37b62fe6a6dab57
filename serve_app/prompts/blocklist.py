"""The block list: words, phrases and regular expressions that no prompt may hold. It is read once, at the start.

    # one entry a line
    forbidden
    a forbidden phrase
    /forbidden (thing|matter)s?/

Words and phrases match whole words of the folded text, so `Fórbidden` is found too: `serve_app.prompts.folding` says
what makes no difference, and what is left to the classifier. They do not match within a longer word, except in scripts
that put no spaces between words. Regular expressions are searched in the same folded text, which has no capitals and no
accents.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex  # type: ignore[import-untyped]

from serve_app.errors import ConfigError, quote
from serve_app.prompts.folding import fold, forms, words

MAX_EXPRESSIONS = 500
SEARCH_S = 0.5  # longest time of one search
CHECK_S = 2.0  # longest time of all searches of one text
PROBE_CHARS = 4000  # length of a text that an expression is tried on
_PROBED_LITERALS = 12

_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]")


@dataclass(frozen=True, slots=True)
class Hit:
    """An entry that was found in a text."""

    line: int  # of the entry in its file
    entry: str
    slow: bool = False  # whether its search ran out of time, which counts as found


@dataclass(frozen=True)
class Blocklist:
    """Compiled entries, each with the hit that it makes."""

    phrases: Mapping[str, Hit]  # by their words, joined by single spaces
    lengths: Mapping[str, set[int]]  # by the first word of a phrase: how many words the phrases have
    inner: Mapping[str, Hit]  # by their letters: what is looked for within words too
    expressions: Sequence[tuple[Any, Hit]] = ()

    def find(self, text: str) -> Hit | None:
        """The first entry that is found in the text, if there is one.

        The regular expressions are searched for at most CHECK_S seconds in all, outside of Python's lock. A search that
        is not done by then counts as found: no text gets through by being hard to search.
        """
        all_forms = forms(text)
        for form in all_forms:
            found = words(form)
            hit = self._find_phrase(found) or self._find_inner("".join(found))
            if hit is not None:
                return hit
        return self._search(all_forms)

    def _find_phrase(self, found: list[str]) -> Hit | None:
        for start, word in enumerate(found):
            for length in self.lengths.get(word, ()):
                hit = self.phrases.get(" ".join(found[start : start + length]))
                if hit is not None:
                    return hit
        return None

    def _find_inner(self, letters: str) -> Hit | None:
        for length in {len(key) for key in self.inner}:
            for start in range(len(letters) - length + 1):
                hit = self.inner.get(letters[start : start + length])
                if hit is not None:
                    return hit
        return None

    def _search(self, all_forms: list[str]) -> Hit | None:
        end = time.monotonic() + CHECK_S
        for expression, hit in self.expressions:
            for form in all_forms:
                left_s = min(SEARCH_S, end - time.monotonic())
                try:
                    if left_s <= 0:
                        raise TimeoutError
                    if expression.search(form, timeout=left_s, concurrent=True):
                        return hit
                except TimeoutError:
                    return Hit(hit.line, hit.entry, slow=True)
        return None


def load_blocklist(path: Path) -> Blocklist:
    """Read and compile the file.

    Raises:
        ConfigError: it cannot be read, or an entry is wrong; names the file and the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"safety.blocklist: cannot read {str(path)!r} ({error.strerror}); name a text file") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"safety.blocklist: {path}, line {line} is not UTF-8; save the file as UTF-8") from None
    try:
        return parse_blocklist(text)
    except ConfigError as error:
        raise ConfigError(f"safety.blocklist: {path}, {error}") from None


def parse_blocklist(text: str) -> Blocklist:
    """Compile the lines of a block list. Raises ConfigError, which names the line."""
    phrases: dict[str, Hit] = {}
    lengths: dict[str, set[int]] = {}
    inner: dict[str, Hit] = {}
    expressions: list[tuple[Any, Hit]] = []
    for number, line in enumerate(text.split("\n"), 1):
        hit = Hit(number, line.strip())
        if not hit.entry or hit.entry.startswith("#"):
            continue
        if hit.entry.startswith("/"):
            expressions.append((_compile(hit), hit))
        elif _UNSPACED.search(hit.entry):
            inner.setdefault("".join(words(fold(hit.entry))), hit)
        else:
            phrase = _phrase(hit)
            phrases.setdefault(" ".join(phrase), hit)
            lengths.setdefault(phrase[0], set()).add(len(phrase))
    if len(expressions) > MAX_EXPRESSIONS:
        line_number = expressions[MAX_EXPRESSIONS][1].line
        raise ConfigError(
            f"line {line_number}: more than {MAX_EXPRESSIONS} regular expressions; join some, or write words"
        )
    return Blocklist(phrases, lengths, inner, expressions)


def _phrase(hit: Hit) -> list[str]:
    """The words of the entry.

    An entry that would match far more than was meant is refused: `c++` is folded to `c`, and would refuse every `c`.
    """
    found = words(fold(hit.entry))
    letters = "".join(found)
    if len(letters) < 2:
        rest = f"the single character {quote(letters)}" if letters else "nothing"
        raise ConfigError(
            f"line {hit.line}: of {quote(hit.entry)} {rest} is left to look for; write it as a /regular expression/"
        )
    return found


def _compile(hit: Hit) -> Any:
    if len(hit.entry) < 3 or not hit.entry.endswith("/"):
        raise ConfigError(
            f"line {hit.line}: {quote(hit.entry)} begins with '/'; a /regular expression/ ends with it too"
        )
    try:
        expression = regex.compile(hit.entry[1:-1], regex.IGNORECASE)
    except regex.error as error:
        raise ConfigError(f"line {hit.line}: {quote(hit.entry)} is no regular expression: {error}") from None
    try:
        _probe(expression)
    except TimeoutError:
        raise ConfigError(
            f"line {hit.line}: {quote(hit.entry)} takes too long to search for; avoid repeats within repeats, (a+)+"
        ) from None
    if expression.search(""):
        raise ConfigError(f"line {hit.line}: {quote(hit.entry)} matches every prompt, the empty one too; narrow it")
    return expression


def _probe(expression: Any) -> None:
    """Search texts on which repeats within repeats take for ever: the pattern's own characters again and again."""
    own = dict.fromkeys(c for c in expression.pattern if c.isalnum())
    for character in [*own][:_PROBED_LITERALS] + ["a", "0", "-"]:
        for repeated in (character, f"{character} "):
            expression.search(repeated * (PROBE_CHARS // len(repeated)) + "\0", timeout=SEARCH_S)
