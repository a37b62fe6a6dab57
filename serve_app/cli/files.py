"""The files that commands write: their names, and where they may go."""

import errno
import re
import stat
import sys
import unicodedata
from pathlib import Path

from serve_app.client.errors import UsageError

STDOUT = Path("-")
"""As a target: the standard output."""

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
    if target == STDOUT:
        return target
    name = file_name(prompt, video_id, suffix)
    if target is None:
        return Path(name)
    return target / name if target.is_dir() else target


def check_target(target: Path, force: bool) -> None:
    """Raises UsageError where a file must not, or cannot, be written; folders, devices and pipes are accepted."""
    if target == STDOUT:
        if sys.stdout.isatty():
            raise UsageError("a video is nothing for a terminal; give a name, or pipe the output into a program")
        return
    mode = _mode(target)
    if stat.S_ISSOCK(mode):
        raise UsageError(f"{str(target)!r} is a socket; give the name of a file")
    if (stat.S_ISREG(mode) or stat.S_ISBLK(mode)) and not force:
        raise UsageError(f"{str(target)!r} is there already; give another name, or --force to overwrite it")
    folder = target.resolve().parent
    if not mode and not folder.is_dir():
        raise UsageError(f"there is no folder {str(folder)!r}; make it first")


def check_stdout_is_free(target: Path | None, as_json: bool) -> None:
    """Raises UsageError where a video and JSON would share stdout."""
    if target == STDOUT and as_json:
        raise UsageError("-o - and --json both take stdout; leave one of them out")


def _mode(target: Path) -> int:
    """What the path leads to, 0 for nothing. Raises UsageError if it leads in a circle."""
    try:
        return target.stat().st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UsageError(f"{str(target)!r} is a link that leads in a circle") from None
        return 0
