"""Fetches a file of a video to where a command was told: a file, a link, a device, a pipe, or stdout."""

import os
from pathlib import Path

from serve_app.cli.files import STDOUT
from serve_app.client.download import OnBytes, Variant, download, download_through
from serve_app.client.http import Client

_STDOUT_DESCRIPTOR = 1


async def fetch(client: Client, video_id: str, path: Path, variant: Variant, on_bytes: OnBytes) -> int:
    """Returns the size in bytes.

    Raises:
        BrokenPipeError: who read stdout has ended.
        RefusedError, UnreachableError, LocalFileError: as of `download`.
    """
    if path == STDOUT:
        return await download_through(client, video_id, lambda: os.dup(_STDOUT_DESCRIPTOR), variant, on_bytes)
    return await download(client, video_id, path, variant, on_bytes)


def shown_path(path: Path) -> tuple[str, ...]:
    """What stdout tells of the file: its name, and nothing if it is the file itself."""
    return () if path == STDOUT else (str(path),)
