"""Which models of the cache go to make room for another: the least recently used, and never one that is in use.

A model in use is held by a lock on a file in its folder, which the kernel releases with the process.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from deployments.errors import PermanentError

USED = ".used"
LOCK = ".lock"
_held: dict[Path, int] = {}


def free_bytes(folder: Path) -> int:
    """On the disk of a folder, for this user."""
    return shutil.disk_usage(folder).free


@dataclass(frozen=True, slots=True)
class CachedModel:
    """The folder of one state of a model."""

    folder: Path
    nbytes: int  # on the disk
    used: float  # when it was used last


@dataclass(frozen=True, slots=True)
class Room:
    """The bounds of a cache."""

    free: int  # bytes on its disk
    used: int  # bytes of all models in it
    limit: int | None  # of `used`

    def lacking(self, needed: int) -> int:
        """How many bytes must go for so many to come."""
        over = 0 if self.limit is None else self.used + needed - self.limit
        return max(0, over, needed - self.free)


def make_room(own: Path, needed: int, limit: int | None, free: Callable[[Path], int], what: str) -> list[CachedModel]:
    """Have room for so many bytes in a folder, the lock of whose parent is held. Returns what was removed for it.

    Args:
        own: folder of the state that is fetched, `cache/model/state`.
        limit: bytes that all models of the cache may take; without one nothing is removed.
        free: bytes on the disk of a folder.
        what: is fetched, for errors.

    Raises:
        PermanentError: `cache_unusable`: there is too little, or the rest is in use.
    """
    others = [model for model in cached_models(own.parent.parent) if model.folder != own]
    removed: list[CachedModel] = []

    def room() -> Room:
        kept = sum(model.nbytes for model in others if model not in removed)
        return Room(free(own), kept + disk_bytes(own), limit)

    if limit is not None:
        for model in sorted(others, key=lambda model: model.used):
            if room().lacking(needed) and _evict(model, own.parent):
                removed.append(model)
    if room().lacking(needed):
        raise _no_room(own.parent, needed, room(), what)
    return removed


def cached_models(cache: Path) -> list[CachedModel]:
    """All states of all models that are there."""
    found = []
    for used in cache.glob(f"*/*/{USED}"):
        with suppress(FileNotFoundError):
            found.append(CachedModel(used.parent, disk_bytes(used.parent), used.stat().st_mtime))
    return found


def disk_bytes(folder: Path) -> int:
    """What the files of a folder take on the disk; those with other names elsewhere, too, by their share."""
    return sum(stat.st_blocks * 512 // stat.st_nlink for stat in _stats(folder))


def hold(folder: Path) -> None:
    """Mark a state of a model as used now, and in use until this process ends, releases it or uses another state."""
    release(folder.parent)
    file = os.open(folder / USED, os.O_RDWR | os.O_CREAT, 0o666)
    fcntl.flock(file, fcntl.LOCK_SH)
    os.utime(file)
    _held[folder.parent] = file


def release(home: Path) -> None:
    """Undo `hold`. home: of the model, in which its states lie."""
    if home in _held:
        os.close(_held.pop(home))


def is_held(folder: Path) -> bool:
    """Whether any process holds a model."""
    try:
        file = os.open(folder / USED, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(file)


def _evict(model: CachedModel, own_home: Path) -> bool:
    """Whether it could be removed. A model that is being fetched or looked at is in use, too."""
    home = model.folder.parent
    if home == own_home:  # whose lock is held
        return _remove(model.folder)
    with suppress(Timeout), FileLock(home / LOCK, blocking=False):
        return _remove(model.folder)
    return False


def _remove(folder: Path) -> bool:
    if is_held(folder):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def _stats(folder: Path) -> Iterator[os.stat_result]:
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file() and not path.is_symlink():
                yield path.stat()


def _no_room(home: Path, needed: int, room: Room, what: str) -> PermanentError:
    bound = f"{room.free / 1e9:.1f} GB free"
    if room.limit is not None and room.used + needed > room.limit:
        bound = f"{room.used / 1e9:.1f} GB that are in use of the {room.limit / 1e9:.1f} GB of model.cache_max_gb"
    return PermanentError(
        "cache_unusable",
        f"the cache of models {home} has {bound}, and {needed / 1e9:.1f} GB of {what} are missing; make room, or name "
        "another folder with MOCHI_SERVE_MODEL_CACHE",
    )
