"""The folder of a batch: what runs write down, so that the next one goes on where they were.

`results.jsonl` is for people and programs: one line for each line of the file that has come to its end. The hidden
state file holds what is under way. Both are written line by line, to disk, and made anew with each start; a torn last
line, of a run that was killed, is dropped then.
"""

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from deployments.atomic_write import write_atomically
from serve_app.cli.batch.plan import COMPLETED, LineState, OpenLine, PromptLine
from serve_app.client.errors import LocalFileError, UsageError

RESULTS = "results.jsonl"
STATE = ".mochi-serve-batch.jsonl"
LOCK = ".mochi-serve-batch.lock"


class BatchFolder:
    """The folder while a run has it for itself."""

    id: str
    """Drawn when the folder was first used; the same prompts in another folder are other videos."""
    states: dict[str, LineState]
    """How far each line is, by its key."""
    results: dict[str, dict[str, Any]]
    """The results of lines, by their keys; of earlier runs only those that are completed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        rows = _read_rows(path / STATE)
        self.id = next((str(row["folder"]) for row in rows if "folder" in row), secrets.token_hex(16))
        self.states = {
            row["key"]: LineState(row["attempt"], row["video_id"], row["bytes"]) for row in rows if "key" in row
        }
        self.results = {row["key"]: row for row in _read_rows(path / RESULTS) if row.get("status") == COMPLETED}
        self._files = ExitStack()

    def open_files(self, lines: Iterable[OpenLine]) -> None:
        """Write both files anew, without results of the lines that are open, and keep them open."""
        for open_line in lines:
            self.results.pop(open_line.line.key, None)
        states = [{"folder": self.id}, *(_state_row(key, state) for key, state in self.states.items())]
        write_atomically(self.path / STATE, b"".join(map(_encode, states)))
        write_atomically(self.path / RESULTS, b"".join(map(_encode, self.results.values())))
        self._state_file = self._files.enter_context((self.path / STATE).open("ab"))
        self._results_file = self._files.enter_context((self.path / RESULTS).open("ab"))

    def sizes(self) -> dict[str, int]:
        """The visible files in the folder, with their sizes in bytes."""
        files = (entry for entry in os.scandir(self.path) if entry.is_file() and not entry.name.startswith("."))
        return {entry.name: entry.stat().st_size for entry in files}

    def record_state(self, line: PromptLine, state: LineState) -> None:
        """Write down how far a line is, before the next thing is done for it."""
        self.states[line.key] = state
        _append(self._state_file, _state_row(line.key, state))

    def record_result(self, line: PromptLine, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write down the result of a line; returns it as it was written."""
        row = {"key": line.key, "line": line.number, "id": line.id, "prompt": line.fields["prompt"], **result}
        self.results[line.key] = row
        _append(self._results_file, row)
        return row

    def close(self) -> None:
        self._files.close()


@contextmanager
def batch_folder(path: Path) -> Iterator[BatchFolder]:
    """The folder, made if need be, for this process alone.

    Raises:
        UsageError: another batch works in it.
        LocalFileError: it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with FileLock(path / LOCK, timeout=0):
            folder = BatchFolder(path)
            try:
                yield folder
            finally:
                folder.close()
    except Timeout:
        raise UsageError(f"another batch works in {str(path)!r}; wait for its end or stop it") from None
    except BrokenPipeError:
        # Of stdout, whose reader has ended.
        raise
    except OSError as error:
        raise LocalFileError(f"cannot write in the folder {str(path)!r}: {error.strerror or error}") from None


def _state_row(key: str, state: LineState) -> dict[str, Any]:
    return {"key": key, **asdict(state)}


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, if it is there."""
    rows: list[dict[str, Any]] = []
    if not path.exists():
        return rows
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            # Torn: the run that wrote it was killed.
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _append(file: BinaryIO, row: Mapping[str, Any]) -> None:
    file.write(_encode(row))
    file.flush()
    os.fsync(file.fileno())


def _encode(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row).encode("ascii") + b"\n"
