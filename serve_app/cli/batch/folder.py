"""The folder of a batch: what runs write down, so that the next one goes on where they were.

`results.jsonl` is for people and programs: one line for each line of the file that has come to its end. The hidden
state file holds what is under way. Both are written line by line, to disk, and made anew with each start; a torn last
line, of a run that was killed, is dropped then.
"""

import fcntl
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from deployments.atomic_write import write_atomically
from serve_app.cli.batch.plan import COMPLETED, Known, Line, Todo
from serve_app.client.errors import LocalFileError, UsageError

RESULTS = "results.jsonl"
STATE = ".mochi-serve-batch.jsonl"
LOCK = ".mochi-serve-batch.lock"


class BatchFolder:
    """The folder while a run has it for itself.

    id: drawn when the folder was first used; the same prompts in another folder are other videos.
    known, results: by the key of a line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        state = _read(path / STATE)
        self.id = next((str(row["folder"]) for row in state if "folder" in row), secrets.token_hex(16))
        self.known = {row["key"]: _known(row) for row in state if "key" in row}
        self.results = {row["key"]: row for row in _read(path / RESULTS) if row.get("status") == COMPLETED}
        self._open = ExitStack()

    def begin(self, todo: Iterable[Todo]) -> None:
        """Make the files ready for the results of these lines."""
        for one in todo:
            self.results.pop(one.line.key, None)
        state = [{"folder": self.id}, *(_row(key, known) for key, known in self.known.items())]
        write_atomically(self.path / STATE, b"".join(map(_encoded, state)))
        write_atomically(self.path / RESULTS, b"".join(map(_encoded, self.results.values())))
        self._state = self._open.enter_context((self.path / STATE).open("ab"))
        self._results = self._open.enter_context((self.path / RESULTS).open("ab"))

    def sizes(self) -> dict[str, int]:
        """The visible files in the folder, with their sizes in bytes."""
        found = (entry for entry in os.scandir(self.path) if entry.is_file() and not entry.name.startswith("."))
        return {entry.name: entry.stat().st_size for entry in found}

    def note(self, line: Line, known: Known) -> None:
        """Write down how far a line is, before the next thing is done for it."""
        self.known[line.key] = known
        _append(self._state, _row(line.key, known))

    def finish(self, line: Line, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write down the result of a line; returns it as it was written."""
        row = {"key": line.key, "line": line.number, "id": line.id, "prompt": line.fields["prompt"], **result}
        self.results[line.key] = row
        _append(self._results, row)
        return row

    def close(self) -> None:
        self._open.close()


@contextmanager
def batch_folder(path: Path) -> Iterator[BatchFolder]:
    """The folder, made if need be, for this process alone.

    Raises:
        UsageError: another batch works in it.
        LocalFileError: it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with (path / LOCK).open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"another batch works in {str(path)!r}; wait for its end or stop it") from None
            folder = BatchFolder(path)
            try:
                yield folder
            finally:
                folder.close()
    except BrokenPipeError:
        # Of stdout, whose reader has gone.
        raise
    except OSError as error:
        raise LocalFileError(f"cannot write in the folder {str(path)!r}: {error.strerror or error}") from None


def _row(key: str, known: Known) -> dict[str, Any]:
    return {"key": key, **asdict(known)}


def _known(row: Mapping[str, Any]) -> Known:
    return Known(row["attempt"], row["video_id"], row["bytes"])


def _read(path: Path) -> list[dict[str, Any]]:
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
    file.write(_encoded(row))
    file.flush()
    os.fsync(file.fileno())


def _encoded(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row).encode("ascii") + b"\n"
