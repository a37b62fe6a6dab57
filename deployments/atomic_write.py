"""Files that are there whole or not at all."""

import os
import secrets
from pathlib import Path


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write or replace a file so that nobody, after a crash too, meets a part of it.

    Args:
        mode: the permissions, less the umask of the process.

    Raises:
        OSError: it cannot be written; a file that was there before is as it was.
    """
    # Two processes may write the same file at once, on machines that share a folder: each has a draft of its own.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
