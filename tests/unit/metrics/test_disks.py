"""How full a disk is, as df says."""

import shutil
from pathlib import Path

import pytest

from deployments.metrics import names
from deployments.metrics.disks import count_disk
from deployments.metrics.recorder import Recorder

SERIES = (names.DISK_USED.name, ("data",))


def test_the_used_part_is_told(tmp_path: Path) -> None:
    recorder = Recorder()
    count_disk("data", tmp_path, recorder)
    usage = shutil.disk_usage(tmp_path)
    assert recorder.snapshot("x").values == {SERIES: pytest.approx(usage.used / (usage.used + usage.free), abs=0.05)}


def test_what_is_away_tells_nothing(tmp_path: Path) -> None:
    recorder = Recorder()
    count_disk("data", tmp_path / "away", recorder)
    assert recorder.snapshot("x").values == {}
