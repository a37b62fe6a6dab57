"""How full the disks are that a process writes on."""

import shutil
from pathlib import Path

from deployments.metrics import names
from deployments.metrics.recorder import RECORDER, Recorder


def count_disk(disk: str, folder: Path, recorder: Recorder = RECORDER) -> None:
    """Set the gauge of one of `names.DISKS` by the file system of `folder`; a folder that is away changes nothing."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return
    # As df counts: what is kept for root is neither used nor free.
    recorder.set(names.DISK_USED, usage.used / max(1, usage.used + usage.free), disk)
