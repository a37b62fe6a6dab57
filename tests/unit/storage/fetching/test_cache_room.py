"""Which models of a cache go, and which stay."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from deployments.errors import PermanentError
from deployments.storage.fetching.cache_room import Room, cached_models, hold, is_held, make_room, release
from tests.support import ROOT

MB = 1_000_000


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """Three models of a megabyte; `old` was used first."""
    for number, name in enumerate(("old", "middle", "new")):
        folder = tmp_path / name / "state"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(bytes(MB))
        (folder / ".used").touch()
        os.utime(folder / ".used", (number, number))
    yield tmp_path
    for home in tmp_path.iterdir():
        release(home)


def removed(cache: Path, needed: int, limit: int | None, free: int = 100 * MB) -> list[str]:
    own = cache / "own" / "state"
    own.mkdir(parents=True, exist_ok=True)
    return [model.folder.parent.name for model in make_room(own, needed, limit, lambda folder: free, "s3://b/m")]


def left(cache: Path) -> set[str]:
    return {model.folder.parent.name for model in cached_models(cache)}


def test_the_least_recently_used_goes_first_and_no_more_than_must(cache: Path) -> None:
    assert removed(cache, MB, limit=5 * MB) == []
    assert removed(cache, MB, limit=3_100_000) == ["old"]
    assert left(cache) == {"middle", "new"}
    assert removed(cache, 2 * MB, limit=3_100_000) == ["middle"]


def test_a_model_in_use_stays_also_if_another_process_uses_it(cache: Path) -> None:
    hold(cache / "old" / "state")
    os.utime(cache / "old" / "state" / ".used", (0, 0))
    code = "import pathlib, sys; from deployments.storage.fetching.cache_room import hold; "
    code += "hold(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    other = cache / "middle" / "state"
    with subprocess.Popen(
        [sys.executable, "-c", code, other], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        assert is_held(other)
        with pytest.raises(PermanentError, match=r"2\.0 GB of s3://b/m are missing") as caught:
            removed(cache, 2000 * MB, limit=2001 * MB)
        assert caught.value.code == "cache_unusable" and "model.cache_max_gb" in str(caught.value)
        assert left(cache) == {"old", "middle"}
        process.kill()
    assert not is_held(other)
    assert removed(cache, MB, limit=2_100_000) == ["middle"]


def test_a_model_that_is_being_fetched_stays(cache: Path) -> None:
    with FileLock(cache / "old" / ".lock"):
        assert removed(cache, MB, limit=3_100_000) == ["middle"]


def test_without_a_bound_nothing_goes_and_a_disk_without_room_is_told(cache: Path) -> None:
    with pytest.raises(PermanentError, match=r"has 0\.0 GB free, and 0\.0 GB of s3://b/m are missing; make room"):
        removed(cache, 2 * MB, limit=None, free=MB)
    assert left(cache) == {"old", "middle", "new"}


def test_a_process_uses_one_state_of_a_model(cache: Path) -> None:
    first, second = cache / "old" / "state", cache / "old" / "later"
    second.mkdir()
    hold(first)
    hold(second)
    assert is_held(second) and not is_held(first)


def test_a_disk_that_is_full_is_a_bound_too() -> None:
    assert Room(free=10, used=0, limit=None).lacking(12) == 2
    assert Room(free=10, used=5, limit=100).lacking(12) == 2
    assert Room(free=50, used=95, limit=100).lacking(12) == 7
    assert Room(free=50, used=5, limit=100).lacking(12) == 0
