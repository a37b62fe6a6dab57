"""The folder of embeddings: shards of the file's sequences, each written whole or not at all.

A shard is a part of the server's job, and holds sequences that follow each other in the file:

    embeddings-00000.safetensors   for each layer and pooling, `LAYER.POOLING`, [sequences, hidden size]; for
                                   per_residue an array a sequence, `INDEX.LAYER.per_residue`, [residues, hidden size]
    embeddings-00000.jsonl         a line a sequence: its index in the file, id, length, notes, and `row` in the arrays,
                                   or its error

A shard whose list is there is done: the list is written last. `job.json` says what they were made of, so that a folder
is never filled from two files, or in two ways.
"""

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors.numpy import save

from deployments.atomic_write import write_atomically
from serve_app.client.errors import LocalFileError, UsageError

JOB = "job.json"
KEY = "idempotency_key"
PARTS = ".parts"
LOCK = ".mochi-serve-proteins.lock"
Row = dict[str, Any]


class ShardFolder:
    """The folder while a run has it for itself."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, job: Mapping[str, Any]) -> str:
        """What the shards are made of; the name under which the server knows the request, the same in each run.

        Raises:
            UsageError: those in the folder are of something else.
        """
        file = self._path / JOB
        wanted = json.loads(json.dumps(job))
        if not file.exists():
            write_atomically(file, json.dumps({**job, KEY: uuid.uuid4().hex}, indent=2).encode() + b"\n")
        found = json.loads(file.read_bytes())
        if differing := [name for name in wanted if wanted[name] != found.get(name)]:
            raise UsageError(
                f"{str(self._path)!r} holds embeddings that were made otherwise ({', '.join(differing)} differ, see "
                f"{JOB}); name another folder with -o"
            )
        return str(found[KEY])

    def check_parts(self, parts: int) -> None:
        """Raises UsageError: the shards that are here are of a job that was cut otherwise, which is gone by now."""
        file = self._path / PARTS
        if not file.exists():
            write_atomically(file, f"{parts}\n".encode())
        elif int(file.read_text()) != parts:
            raise UsageError(
                f"the job that {str(self._path)!r} was begun with is gone, and the server cuts files otherwise now; "
                "name another folder with -o"
            )

    def is_done(self, number: int) -> bool:
        return self._list(number).exists()

    def rows(self, number: int) -> list[Row]:
        """The list of a shard that is done."""
        return [json.loads(line) for line in self._list(number).read_text().splitlines()]

    def write(self, number: int, rows: Sequence[Row], arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """A shard is whole."""
        write_atomically(self._path / f"{_name(number)}.safetensors", save(dict(arrays)))
        write_atomically(self._list(number), "".join(f"{json.dumps(row)}\n" for row in rows).encode())

    def _list(self, number: int) -> Path:
        return self._path / f"{_name(number)}.jsonl"


@contextmanager
def shard_folder(path: Path) -> Iterator[ShardFolder]:
    """The folder, made if need be, for this process alone.

    Raises:
        UsageError: another run works in it.
        LocalFileError: it cannot be made, read or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with FileLock(path / LOCK, timeout=0):
            yield ShardFolder(path)
    except Timeout:
        raise UsageError(f"another run works in {str(path)!r}; wait for its end or stop it") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LocalFileError(f"cannot work in the folder {str(path)!r}: {reason}") from None


def sha256_of(path: Path) -> str:
    """Of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(number: int) -> str:
    return f"embeddings-{number:05}"
