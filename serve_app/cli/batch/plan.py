"""A batch as plain data: its lines, their keys, and what is left to do. Pure.

A line is known by what it asks for and not by its place in the file, so lines may be added, taken out and moved
between two runs.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from serve_app.cli.words import is_file_name, slug
from serve_app.client.errors import UsageError

SUFFIX = ".mp4"
COMPLETED = "completed"
_DIGEST_CHARS = 8
_SHOWN_MISTAKES = 5


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the file, read.

    number: its place, from 1. fields: of the request, with the defaults. id: the user's own, None if there is none.
    file: the name of its video. key: 64 hexadecimal digits that tell it from all other lines.
    """

    number: int
    fields: Mapping[str, Any]
    id: str | int | None
    file: str
    key: str


@dataclass(frozen=True, slots=True)
class Known:
    """What earlier runs wrote down of a line. bytes: of its file, once it was fetched whole."""

    attempt: int = 1
    video_id: str | None = None
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Todo:
    """A line that has no result yet. fetched: its file is there, only the result was not written down."""

    line: Line
    known: Known
    fetched: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What is left, in the file's order, and how many lines are done. conflicts: files that are not of this batch."""

    todo: tuple[Todo, ...]
    done: int
    conflicts: tuple[str, ...]


def read_lines(text: str, defaults: Mapping[str, Any]) -> list[Line]:
    """The lines of a file of prompts; those that are blank are left out.

    Args:
        defaults: fields of a request, for lines that do not have them.

    Raises:
        UsageError: names the first lines that are wrong, and why.
    """
    lines: list[Line] = []
    mistakes: list[str] = []
    seen: Counter[str] = Counter()
    for number, row in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if row.strip():
            try:
                lines.append(_line(number, row, defaults, seen))
            except UsageError as error:
                mistakes.append(f"line {number}: {error.message}")
    mistakes += _twice(lines)
    if mistakes:
        more = f"; and {len(mistakes) - _SHOWN_MISTAKES} more" if len(mistakes) > _SHOWN_MISTAKES else ""
        raise UsageError("; ".join(mistakes[:_SHOWN_MISTAKES]) + more)
    return lines


def idempotency_key(folder_id: str, todo: Todo) -> str:
    """The server's name for the request of a line: the same whenever the same folder asks for the same again."""
    asked = [folder_id, todo.line.key, todo.known.attempt, todo.line.fields]
    return f"batch-{_digest(asked)}"


def plan(
    lines: Sequence[Line],
    known: Mapping[str, Known],
    results: Mapping[str, Mapping[str, Any]],
    sizes: Mapping[str, int],
) -> Plan:
    """What is left to do.

    Args:
        known, results: by the key of a line, as earlier runs wrote them down.
        sizes: in bytes, of the files that are in the folder.
    """
    todo, conflicts, done = [], [], 0
    for line in lines:
        there, before = sizes.get(line.file), known.get(line.key, Known())
        made = results.get(line.key, {}).get("status") == COMPLETED
        fetched = there is not None and before.bytes == there
        if made and there is not None:
            done += 1
            continue
        if there is not None and not fetched:
            conflicts.append(line.file)
        todo.append(Todo(line, before, fetched))
    return Plan(tuple(todo), done, tuple(conflicts))


def _line(number: int, row: str, defaults: Mapping[str, Any], seen: Counter[str]) -> Line:
    given = _fields(row.strip())
    own_id, name = given.pop("id", None), given.pop("name", None)
    if isinstance(own_id, bool) or not isinstance(own_id, str | int | None):
        raise UsageError('"id" must be a text or an integer')
    fields = {**defaults, **given}
    if not isinstance(fields.get("prompt"), str):
        raise UsageError('"prompt" is missing, or no text')
    # The priority says when and not what: it may be another one for the rest of a batch.
    asked = _digest([{k: v for k, v in fields.items() if k != "priority"}, own_id, name])
    # The same line twice asks for two videos.
    seen[asked] += 1
    key = _digest([asked, seen[asked]])
    return Line(number, fields, own_id, _file(name, own_id, fields["prompt"], key), key)


def _fields(row: str) -> dict[str, Any]:
    """A JSON object, a JSON string, or a prompt as it stands."""
    if not row.startswith(("{", '"')):
        return {"prompt": row}
    try:
        value = json.loads(row, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        if row.startswith('"'):
            return {"prompt": row}
        raise UsageError(f"begins with {{ and is no JSON object ({error})") from None
    return {"prompt": value} if isinstance(value, str) else dict(value)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _file(name: object, own_id: str | int | None, prompt: str, key: str) -> str:
    """The line's own name, else its id where that can be one, else the prompt's words with a part of the key."""
    if name is not None:
        stem = name.removesuffix(SUFFIX) if isinstance(name, str) else ""
        if not is_file_name(stem):
            raise UsageError('"name" must be the name of a file, without a folder, not beginning with a dot')
        return stem + SUFFIX
    if own_id is not None and is_file_name(str(own_id)):
        return f"{own_id}{SUFFIX}"
    return f"{slug(prompt) or 'video'}-{key[:_DIGEST_CHARS]}{SUFFIX}"


def _twice(lines: Iterable[Line]) -> list[str]:
    first: dict[str, int] = {}
    mistakes = []
    for line in lines:
        # Some systems do not tell upper case from lower.
        number = first.setdefault(line.file.casefold(), line.number)
        if number != line.number:
            mistakes.append(
                f"line {line.number}: {line.file!r} is the file of line {number} already; give another name"
            )
    return mistakes


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()
