"""Whether files are byte for byte what a list of SHA-256 says.

Hashing 30 GB takes half a minute or more, so the hash of a large file is kept with the size and the times of the file
that it was taken of, and taken again only when one of them differs, or on demand.
"""

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from deployments.atomic_write import write_atomically
from deployments.errors import PermanentError
from deployments.storage.models.weight_files import CHECKSUMS

KEPT_FROM_BYTES = 64 * 1024 * 1024
HASHES_AT_ONCE = 4
READ_BYTES = 4 * 1024 * 1024
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class HashRecord:
    """The hashes of large files, one small JSON file for each of them.

    Where the folder cannot be written they are taken at each start.
    """

    folder: Path
    again: bool = False  # whether every hash is taken again
    kept_from_bytes: int = KEPT_FROM_BYTES  # smaller files are hashed each time

    def sha256(self, path: Path) -> str:
        """Of the file as it is now. Raises OSError."""
        real = path.resolve()
        if real.stat().st_size < self.kept_from_bytes:
            return file_sha256(real)
        known = None if self.again else self._known(real).get("sha256")
        if isinstance(known, str):
            return known
        state, taken = _state(real), file_sha256(real)
        self._keep(real, state, {"sha256": taken})
        return taken

    def unread_bytes(self, path: Path) -> int:
        """How much `sha256` would read of the file; 0 where its hash is known. Raises OSError."""
        real = path.resolve()
        size = real.stat().st_size
        is_known = size >= self.kept_from_bytes and not self.again and "sha256" in self._known(real)
        return 0 if is_known else size

    def chunks(self, path: Path, chunk_bytes: int) -> tuple[str, ...]:
        """SHA-256 of each chunk of the file as it is now; several are taken at once. Raises OSError."""
        real = path.resolve()
        size = real.stat().st_size
        known = None if self.again or size < self.kept_from_bytes else self._known(real).get("chunks")
        if isinstance(known, list) and known[:1] == [chunk_bytes]:
            return tuple(map(str, known[1:]))
        state = _state(real)
        with ThreadPoolExecutor(HASHES_AT_ONCE) as pool:
            taken = tuple(pool.map(lambda start: range_sha256(real, start, chunk_bytes), range(0, size, chunk_bytes)))
        if size >= self.kept_from_bytes:
            self._keep(real, state, {"chunks": [chunk_bytes, *taken]})
        return taken

    def keep(self, path: Path, chunk_bytes: int, chunks: tuple[str, ...], sha256: str | None = None) -> None:
        """Keep what is known of a file that has just been written; it need not be read for that.

        Args:
            sha256: of the whole file, if that follows from its chunks.
        """
        real = path.resolve()
        if real.stat().st_size >= self.kept_from_bytes:
            whole = {} if sha256 is None else {"sha256": sha256}
            self._keep(real, _state(real), {"chunks": [chunk_bytes, *chunks], **whole})

    def forget_missing(self) -> None:
        """Remove the notes of files that are not there any more."""
        for note in self.folder.glob("*.json"):
            path = _read_note(note).get("path")
            if isinstance(path, str) and not Path(path).exists():
                note.unlink(missing_ok=True)

    def _known(self, real: Path) -> dict[str, object]:
        """What is noted of a file, if it is as it was then."""
        kept = _read_note(self._note(real))
        return kept if kept.get("state") == _state(real) else {}

    def _note(self, real: Path) -> Path:
        return self.folder / f"{hashlib.sha256(str(real).encode()).hexdigest()[:32]}.json"

    def _keep(self, real: Path, state: list[int], found: Mapping[str, object]) -> None:
        note, content = self._note(real), {**self._known(real), "path": str(real), "state": state, **found}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(note, json.dumps(content).encode())
        except OSError as error:
            _logger.warning("the hash of %s cannot be kept (%s): it is taken at each start", content["path"], error)


def _state(real: Path) -> list[int]:
    stat = real.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def range_sha256(path: Path, offset: int, length: int) -> str:
    """Of a part of a file, shorter where the file ends. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while length and (data := file.read(min(length, READ_BYTES))):
            digest.update(data)
            length -= len(data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_hashes(folder: Path, expected: Mapping[str, str], record: HashRecord) -> None:
    """Compare files with their SHA-256.

    Args:
        expected: by name relative to the folder.

    Raises:
        PermanentError: `model_incomplete`; names the first file that differs or cannot be read.
    """
    with ThreadPoolExecutor(HASHES_AT_ONCE) as pool:
        taken = {name: pool.submit(record.sha256, folder / name) for name in expected}
    for name, future in taken.items():
        try:
            found = future.result()
        except OSError as error:
            raise PermanentError("model_incomplete", f"{folder / name} cannot be read: {error.strerror}") from error
        if found != expected[name]:
            raise PermanentError(
                "model_incomplete",
                f"{folder / name} is damaged: its SHA-256 is {found[:12]}..., it should be {expected[name][:12]}...; "
                "fetch or copy it again",
            )


def listed_hashes(text: str) -> dict[str, str]:
    """Names and SHA-256 of a file that `sha256sum` wrote; lines of another form are left out."""
    lines = (_LINE.fullmatch(line) for line in text.splitlines())
    return {match[2].removeprefix("./"): match[1].lower() for match in lines if match}


def known_hashes(folder: Path, names: list[str]) -> dict[str, str]:
    """What these files of a folder should be: by its SHA256SUMS, and by the names in the hub's cache.

    The cache of the hub keeps a large file under its SHA-256, with a link to it.
    """
    known = {}
    for name in names:
        target = (folder / name).resolve().name
        if (folder / name).is_symlink() and _SHA256.fullmatch(target):
            known[name] = target
    with contextlib.suppress(FileNotFoundError):
        listed = listed_hashes((folder / CHECKSUMS).read_text(errors="replace"))
        known |= {name: listed[name] for name in names if name in listed}
    return known


def _read_note(note: Path) -> dict[str, object]:
    try:
        content = json.loads(note.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
