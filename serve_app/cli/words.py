"""Names of files, and what is told of a video in progress. Pure."""

import re
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from serve_app.client.errors import UsageError

SLUG_BYTES = 60
NAME_BYTES = 200
_ID_CHARS = 8
_FORBIDDEN = re.compile(r"[/\\\x00-\x1f\x7f]")
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def slug(text: str, longest: int = SLUG_BYTES) -> str:
    """Letters and digits of a text, lower case, in words joined by '-': 0 to `longest` bytes of UTF-8."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(char if char.isalnum() else " " for char in plain).split()
    return cut("-".join(words), longest).rstrip("-")


def cut(text: str, longest: int) -> str:
    """The beginning of a text, at most `longest` bytes of UTF-8; what cannot be encoded is left out."""
    return text.encode("utf-8", "ignore")[:longest].decode("utf-8", "ignore")


def file_name(prompt: str, video_id: str, suffix: str) -> str:
    """A file's name that tells the prompt and the end of the id, the part that is drawn at random."""
    told, own = slug(prompt), video_id[-_ID_CHARS:]
    return f"{told}-{own}{suffix}" if told else f"{video_id}{suffix}"


def is_file_name(name: str) -> bool:
    """Whether a name, to which a suffix comes, is one that stays in its folder and that every system takes."""
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return False
    return 0 < size <= NAME_BYTES and not name.startswith((".", " ")) and _FORBIDDEN.search(name) is None


def target_path(asked: Path | None, prompt: str, video_id: str, suffix: str) -> Path:
    """Where a video's file goes: a file as asked for, or by a name of its own into the folder that was asked for."""
    name = file_name(prompt, video_id, suffix)
    if asked is None:
        return Path(name)
    return asked / name if asked.is_dir() else asked


def short_time(seconds: float) -> str:
    """A length of time in its two largest units, rounded: 8 s, 3 min 20 s, 2 h 5 min."""
    left, parts = max(0, round(seconds)), []
    for unit, name in _UNITS:
        count, left = divmod(left, unit)
        if count:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2]) or "0 s"


def progress_words(view: Mapping[str, Any], now: float) -> str:
    """What is known of a video in progress, in words.

    Args:
        view: a Video, or an event of the type progress.
        now: by the server's clock, Unix seconds.
    """
    words = [str(view["state"])]
    if view.get("queue_position") is not None:
        words.append("next in the queue" if view["queue_position"] == 0 else f"{view['queue_position']} before it")
    if view["state"] == "sampling" or view.get("step"):
        words.append(f"step {view['step']}/{view['num_inference_steps']}")
    ready_at = view.get("estimated_completion_at")
    if ready_at is not None:
        words.append(f"about {short_time(ready_at - now)} left")
    return ", ".join(words)


def unix_seconds(text: str) -> float:
    """A time as Unix seconds or as ISO 8601; one without a zone is local.

    Raises:
        UsageError: it is neither.
    """
    try:
        return float(text) if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", text) else _iso(text)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{text!r} is no time; give Unix seconds or a date like 2026-11-21 or 2026-11-21T09:30"
        ) from None


def _iso(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
