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
from deployments.storage.weight_files import CHECKSUMS

KEPT_FROM_BYTES = 64 * 1024 * 1024
HASHES_AT_ONCE = 4
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
        stat = real.stat()
        if stat.st_size < self.kept_from_bytes:
            return file_sha256(real)
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        note = self.folder / f"{hashlib.sha256(str(real).encode()).hexdigest()[:32]}.json"
        if not self.again and (kept := _read_note(note)).get("state") == state:
            return str(kept.get("sha256"))
        taken = file_sha256(real)
        self._keep(note, {"path": str(real), "state": state, "sha256": taken})
        return taken

    def _keep(self, note: Path, content: Mapping[str, object]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(note, json.dumps(content).encode())
        except OSError as error:
            _logger.warning("the hash of %s cannot be kept (%s): it is taken at each start", content["path"], error)


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
