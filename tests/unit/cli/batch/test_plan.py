"""The lines of a batch and the plan of a run, as properties."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.cli.batch.plan import LineState, OpenLine, idempotency_key, make_plan, read_lines
from serve_app.cli.files import is_file_name
from serve_app.client.errors import UsageError

BATCH = {"priority": "batch"}

prompts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), min_size=1, max_size=40)
rows = st.lists(
    prompts.filter(lambda text: text.strip()).map(lambda text: json.dumps({"prompt": text})), min_size=1, max_size=12
)


@given(rows)
def test_lines_have_keys_of_their_own_and_keep_their_names_when_the_file_changes(file: list[str]) -> None:
    lines = read_lines("\n".join(file), BATCH)
    assert len({line.key for line in lines}) == len({line.file.casefold() for line in lines}) == len(file)
    assert all(is_file_name(line.file.removesuffix(".mp4")) for line in lines)
    moved = read_lines("\n\n".join([*reversed(file), '"one more"']), BATCH)
    assert {line.key: line.file for line in lines}.items() <= {line.key: line.file for line in moved}.items()


@given(rows, st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11)))
def test_the_plan_leaves_out_what_is_done_and_nothing_else(
    file: list[str], completed: set[int], written: set[int], fetched: set[int]
) -> None:
    lines = read_lines("\n".join(file), {})
    results = {line.key: {"status": "completed"} for n, line in enumerate(lines) if n in completed}
    sizes = {line.file: 7 for n, line in enumerate(lines) if n in written}
    states = {line.key: LineState(bytes=7, video_id="video_1") for n, line in enumerate(lines) if n in fetched}
    plan = make_plan(lines, states, results, sizes)
    done = completed & written & set(range(len(lines)))
    assert plan.done == len(done)
    assert [one.line.number for one in plan.open_lines] == [n + 1 for n in range(len(lines)) if n not in done]
    assert [one.line.number - 1 for one in plan.open_lines if one.fetched] == sorted(
        (written & fetched & set(range(len(lines)))) - done
    )
    assert set(plan.conflicts) == {lines[n].file for n in (written - completed - fetched) & set(range(len(lines)))}


def test_keys_differ_by_folder_line_attempt_and_request() -> None:
    first, second = read_lines("a red circle\na red circle", BATCH)
    (urgent,) = read_lines("a red circle", {"priority": "interactive"})
    open_lines = [OpenLine(line, LineState(attempt), False) for line in (first, second, urgent) for attempt in (1, 2)]
    keys = {idempotency_key(folder, one) for folder in ("1", "2") for one in open_lines}
    assert len(keys) == 12 and all(len(key) < 255 for key in keys)
    # Another priority or deadline is another request, but the same video.
    (late,) = read_lines("a red circle", BATCH | {"cancel_after": "1h"})
    assert (first.key, first.file) == (urgent.key, urgent.file) == (late.key, late.file)


def test_lines_are_text_or_json() -> None:
    text = (
        '\ufeffa red circle\r\n\n{"prompt": "a", "fps": 12, "id": 7}\n"b"\n"c" and d\n{"prompt": "e", "name": "x.mp4"}'
    )
    lines = read_lines(text, {"fps": 24})
    assert [(line.number, dict(line.fields)) for line in lines] == [
        (1, {"prompt": "a red circle", "fps": 24}),
        (3, {"prompt": "a", "fps": 12}),
        (4, {"prompt": "b", "fps": 24}),
        (5, {"prompt": '"c" and d', "fps": 24}),
        (6, {"prompt": "e", "fps": 24}),
    ]
    assert (lines[1].id, lines[1].file, lines[4].file) == (7, "7.mp4", "x.mp4")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "no JSON object"),
        ('{"prompt": NaN}', "NaN"),
        ('{"seed": 1}', '"prompt" is missing'),
        ('{"prompt": 3}', "no text"),
        ('{"prompt": "a", "id": [1]}', '"id" must be'),
        ('{"prompt": "a", "id": true}', '"id" must be'),
        ('{"prompt": "a", "name": "../a"}', '"name" must be'),
        ('{"prompt": "a", "name": 3}', '"name" must be'),
        ('{"prompt": "a", "name": ".mp4"}', '"name" must be'),
        ('{"prompt": ' + "[" * 100_000, "no JSON object"),
    ],
)
def test_wrong_lines_are_named(row: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"line 2: .*{message}"):
        read_lines(f"a red circle\n{row}", {})


def test_two_lines_have_no_file_in_common() -> None:
    with pytest.raises(UsageError, match=r"line 2: 'A.mp4' is the file of line 1"):
        read_lines('{"prompt": "x", "name": "a"}\n{"prompt": "y", "id": "A"}', {})


def test_many_mistakes_are_counted() -> None:
    with pytest.raises(UsageError, match="line 5: .*; and 3 more"):
        read_lines("\n".join(["{"] * 8), {})


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_any_system_ends_them(end: str) -> None:
    lines = read_lines(end.join(["a red circle", "", "a blue square", ""]), {})
    assert [(line.number, line.fields["prompt"]) for line in lines] == [(1, "a red circle"), (3, "a blue square")]
