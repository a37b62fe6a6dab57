"""What is known of the files of a model that were fetched: a small file in its folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deployments.atomic_write import write_atomically

MANIFEST = ".manifest.json"


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A file as it was fetched."""

    size: int  # bytes
    etag: str  # of the object
    chunk_bytes: int
    chunks: tuple[str, ...]  # SHA-256 of each


def read_kept(folder: Path) -> dict[str, KeptFile]:
    """By name; nothing where that cannot be read or is of an earlier release."""
    try:
        content = json.loads((folder / MANIFEST).read_text())
        return {
            str(name): KeptFile(int(size), str(etag), int(chunk_bytes), tuple(map(str, chunks)))
            for name, (size, etag, chunk_bytes, chunks) in content.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def note_kept(folder: Path, kept: Mapping[str, KeptFile]) -> None:
    """Add files to what is known. Raises OSError."""
    files = {**read_kept(folder), **kept}
    content = {name: [file.size, file.etag, file.chunk_bytes, file.chunks] for name, file in files.items()}
    write_atomically(folder / MANIFEST, json.dumps(content, indent=1).encode())
