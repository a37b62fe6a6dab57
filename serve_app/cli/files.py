"""The files that commands write: their names, and where they may go."""

import re
import unicodedata
from pathlib import Path

from serve_app.client.errors import UsageError

SLUG_BYTES = 60
NAME_BYTES = 200
_ID_CHARS = 8
_FORBIDDEN = re.compile(r"[/\\\x00-\x1f\x7f]")


def slug(text: str) -> str:
    """Letters and digits of a text, lower case, in words joined by '-': 0 to SLUG_BYTES bytes of UTF-8."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(char if char.isalnum() else " " for char in folded).split()
    return "-".join(words).encode("utf-8", "ignore")[:SLUG_BYTES].decode("utf-8", "ignore").rstrip("-")


def file_name(prompt: str, video_id: str, suffix: str) -> str:
    """A name from the prompt and from the end of the id, the part that is drawn at random."""
    start = slug(prompt)
    return f"{start}-{video_id[-_ID_CHARS:]}{suffix}" if start else f"{video_id}{suffix}"


def is_file_name(name: str) -> bool:
    """Whether a name, to which a suffix comes, is one that stays in its folder and that every system takes."""
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return False
    return 0 < size <= NAME_BYTES and not name.startswith((".", " ")) and _FORBIDDEN.search(name) is None


def target_path(target: Path | None, prompt: str, video_id: str, suffix: str) -> Path:
    """Where a video's file goes: to the target, or by a name of its own into the target that is a folder."""
    name = file_name(prompt, video_id, suffix)
    if target is None:
        return Path(name)
    return target / name if target.is_dir() else target


def check_target(target: Path, force: bool) -> None:
    """Raises UsageError where a file must not, or cannot, be written; a folder is accepted."""
    if target.is_dir():
        return
    if target.exists() and not force:
        raise UsageError(f"{str(target)!r} is there already; give another name, or --force to overwrite it")
    if not target.parent.is_dir():
        raise UsageError(f"there is no folder {str(target.parent)!r}; make it first")
