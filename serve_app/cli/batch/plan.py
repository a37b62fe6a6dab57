"""A batch as plain data: its lines, their keys, and what is left to do. Pure.

A line is known by what it asks for and not by its place in the file, so lines may be added, taken out and moved
between two runs.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from serve_app.cli.files import is_file_name, slug
from serve_app.client.errors import UsageError

SUFFIX = ".mp4"
COMPLETED = "completed"
_DIGEST_CHARS = 8
_SHOWN_MISTAKES = 5
_LINE_END = re.compile(r"\r\n|\r|\n")  # of Windows, of old Macs, of all others


@dataclass(frozen=True, slots=True)
class PromptLine:
    """A line of the file of prompts, read."""

    number: int  # its place in the file, from 1
    fields: Mapping[str, Any]  # of the request, with the defaults
    id: str | int | None  # the user's own
    file: str  # the name of its video
    key: str  # 64 hexadecimal digits that no other line has


@dataclass(frozen=True, slots=True)
class LineState:
    """How far earlier runs came with a line."""

    attempt: int = 1
    video_id: str | None = None
    bytes: int | None = None  # of its file, once it was fetched whole


@dataclass(frozen=True, slots=True)
class OpenLine:
    """A line that has no result yet."""

    line: PromptLine
    state: LineState
    fetched: bool  # its file is there, only the result was not written down


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What is left to do of a batch."""

    open_lines: tuple[OpenLine, ...]  # in the order of the file
    done: int  # lines
    conflicts: tuple[str, ...]  # files in the folder that are not of this batch


def read_lines(text: str, defaults: Mapping[str, Any]) -> list[PromptLine]:
    """The lines of a file of prompts; those that are blank are left out.

    Args:
        defaults: fields of a request, for lines that do not have them.

    Raises:
        UsageError: names the first lines that are wrong, and why.
    """
    lines: list[PromptLine] = []
    mistakes: list[str] = []
    copies: Counter[str] = Counter()
    for number, row in enumerate(_LINE_END.split(text.removeprefix("\ufeff")), 1):
        if row.strip():
            try:
                lines.append(_read_line(number, row, defaults, copies))
            except UsageError as error:
                mistakes.append(f"line {number}: {error.message}")
    mistakes += _shared_files(lines)
    if mistakes:
        more = f"; and {len(mistakes) - _SHOWN_MISTAKES} more" if len(mistakes) > _SHOWN_MISTAKES else ""
        raise UsageError("; ".join(mistakes[:_SHOWN_MISTAKES]) + more)
    return lines


def idempotency_key(folder_id: str, open_line: OpenLine) -> str:
    """The server's name for the request of a line: the same whenever the same folder asks for the same again."""
    line = open_line.line
    return f"batch-{_digest([folder_id, line.key, open_line.state.attempt, line.fields])}"


def make_plan(
    lines: Sequence[PromptLine],
    states: Mapping[str, LineState],
    results: Mapping[str, Mapping[str, Any]],
    sizes: Mapping[str, int],
) -> BatchPlan:
    """What is left to do.

    Args:
        states: by the key of a line, as earlier runs wrote them down.
        results: by the key of a line, likewise.
        sizes: in bytes, of the files that are in the folder.
    """
    open_lines: list[OpenLine] = []
    conflicts: list[str] = []
    for line in lines:
        size = sizes.get(line.file)
        state = states.get(line.key, LineState())
        fetched = size is not None and state.bytes == size
        if size is not None and results.get(line.key, {}).get("status") == COMPLETED:
            continue
        if size is not None and not fetched:
            conflicts.append(line.file)
        open_lines.append(OpenLine(line, state, fetched))
    return BatchPlan(tuple(open_lines), len(lines) - len(open_lines), tuple(conflicts))


def _read_line(number: int, row: str, defaults: Mapping[str, Any], copies: Counter[str]) -> PromptLine:
    line_fields = _fields(row.strip())
    own_id = line_fields.pop("id", None)
    name = line_fields.pop("name", None)
    if isinstance(own_id, bool) or not isinstance(own_id, str | int | None):
        raise UsageError('"id" must be a text or an integer')
    fields = {**defaults, **line_fields}
    if not isinstance(fields.get("prompt"), str):
        raise UsageError('"prompt" is missing, or no text')
    # These say when and not what: they may be others for the rest of a batch.
    content = _digest([{k: v for k, v in fields.items() if k not in ("priority", "cancel_after")}, own_id, name])
    # The same line twice asks for two videos.
    copies[content] += 1
    key = _digest([content, copies[content]])
    return PromptLine(number, fields, own_id, _file(name, own_id, fields["prompt"], key), key)


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


def _shared_files(lines: Iterable[PromptLine]) -> list[str]:
    """A message for each line whose file is the file of an earlier one."""
    first: dict[str, int] = {}
    mistakes = []
    for line in lines:
        # Some systems do not distinguish upper case from lower.
        number = first.setdefault(line.file.casefold(), line.number)
        if number != line.number:
            mistakes.append(
                f"line {line.number}: {line.file!r} is the file of line {number} already; give another name"
            )
    return mistakes


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()
