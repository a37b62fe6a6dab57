import random
import string
from collections.abc import Callable
from pathlib import Path

import pytest
import regex  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import ConfigError
from serve_app.prompts.blocklist import MAX_EXPRESSIONS, Blocklist, Hit, load_blocklist, parse_blocklist
from tests.support.examples import examples

Write = Callable[[str, str], Path]

LIST = """
# words
badword
Evil Plan
don't
4chan
毒品
ยาเสพติด

# expressions
/make (a )?bombs?\\b/
/^secret$/
"""


@pytest.fixture(scope="module")
def blocklist() -> Blocklist:
    return parse_blocklist(LIST)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a badword here", 3),
        ("BADWORD", 3),
        ("bad\u200bword", 3),
        ("ｂàdwórd", 3),
        ("bаdwоrd", 3),
        ("(badword)'s", 3),
        ("an evil\n  plan", 4),
        ("evil_plan.", 4),
        ("please DON'T", 5),
        ("see 4chan now", 6),
        ("请给我毒品吧", 7),
        ("毒 品", 7),
        ("ขายยาเสพติดที่นี่", 8),
        ("how to MAKE A BOMB", 11),
        ("Secret", 12),
    ],
)
def test_what_is_found(blocklist: Blocklist, text: str, line: int) -> None:
    hit = blocklist.find(text)
    assert hit is not None
    assert (hit.line, hit.slow) == (line, False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle moving right",
        "badwords and abadword",
        "bad word",
        "an evil master plan",
        "plan evil",
        "chan 4",
        "a bombshell can make bombers",
        "no secret",
        "毒 and 药品",
        "🚀" * 100,
    ],
)
def test_what_is_let_through(blocklist: Blocklist, text: str) -> None:
    assert blocklist.find(text) is None


@pytest.mark.parametrize(
    "text", ["b4dw0rd!", "b@dword", "my b-a-d-w-o-r-d", "a b a d w o r d", "baaaadword", "3v1l pl4n", "make b0mbs"]
)
def test_disguised_words_are_left_to_the_classifier(blocklist: Blocklist, text: str) -> None:
    """The list compares words as they are spelled."""
    assert blocklist.find(text) is None


def test_a_short_word_is_not_found_within_a_longer_one() -> None:
    short = parse_blocklist("cunt\nass\nrapist")
    for town in ("Scunthorpe", "a classic assessment of grass", "455 bass", "the rapist".replace(" ", ""), "a55 road"):
        assert short.find(town) is None
    assert short.find("the rapist") == Hit(3, "rapist")


WORDS = st.text(string.ascii_lowercase, min_size=2, max_size=8)


@settings(max_examples=examples(2))
@given(entries=st.lists(WORDS, min_size=1, max_size=5), before=WORDS, after=WORDS, data=st.data())
def test_each_entry_is_found_among_any_words(entries: list[str], before: str, after: str, data: st.DataObject) -> None:
    entry = data.draw(st.sampled_from(entries))
    joint = data.draw(st.sampled_from([" ", "-", ", ", "\n", "_"]))
    hit = parse_blocklist("\n".join(entries)).find(f"{before}{joint}{entry.upper()}{joint}{after}")
    assert hit is not None
    assert hit.entry in (entry, before, after)


@settings(max_examples=examples(2))
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_any_text_is_searched(text: str) -> None:
    hit = parse_blocklist(LIST).find(text)
    assert hit is None or hit.entry in LIST


def test_ten_thousand_entries_find_what_one_by_one_would() -> None:
    draw = random.Random(5)
    entries = ["".join(draw.sample("abcdefghijkl", k=draw.randint(3, 5))) for _ in range(10_000)]
    blocklist = parse_blocklist("\n".join(entries))
    for _ in range(200):
        word = "".join(draw.sample("abcdefghijkl", k=3))
        assert (blocklist.find(f"xyz {word} xyz") is not None) == (word in entries)


def test_a_search_that_takes_too_long_counts_as_found() -> None:
    hit = Hit(1, "/(a+)+$/")
    slow = Blocklist({}, {}, {}, [(regex.compile("(a+)+$"), hit)])
    assert slow.find("ab" * 5) is None
    assert slow.find("a" * 3000 + "!") == Hit(1, "/(a+)+$/", slow=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ok\n/(/", r"line 2: \"/\(/\" is no regular expression"),
        ("/(a+)+$/", "line 1: .* takes too long"),
        ("\n\n/(x|xx)+z/", "line 3: .* takes too long"),
        ("/x*/", "line 1: .* matches every prompt"),
        ("/half", "line 1: .* ends with it too"),
        ("/", "line 1: .* ends with it too"),
        ("//", "line 1: .* ends with it too"),
        ("ok\nc++", 'line 2: .* the single character "c" is left'),
        ("!!!", "line 1: .* nothing is left"),
        ("\n".join(f"/x{i}y/" for i in range(MAX_EXPRESSIONS + 1)), f"line {MAX_EXPRESSIONS + 1}: more than"),
    ],
)
def test_a_bad_entry_is_named_by_its_line(write: Write, text: str, message: str) -> None:
    path = write("list.txt", text)
    with pytest.raises(ConfigError, match=f"^safety.blocklist: .*list.txt, {message}"):
        load_blocklist(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read .*missing.txt.*No such file"):
        load_blocklist(tmp_path / "missing.txt")
    with pytest.raises(ConfigError, match="cannot read"):
        load_blocklist(tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"ok\nok\nf\xf6\n")
    with pytest.raises(ConfigError, match="latin.txt, line 3 is not UTF-8"):
        load_blocklist(tmp_path / "latin.txt")


def test_a_file_as_windows_saves_it(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfbadword\r\n# comment\r\nother\r\n")
    blocklist = load_blocklist(tmp_path / "list.txt")
    assert blocklist.find("a badword") == Hit(1, "badword")
    assert blocklist.find("other") == Hit(3, "other")
    assert blocklist.find("comment") is None
