import signal
import subprocess
import sys
from pathlib import Path

from deployments.storage.scratch import LOCK, scratch_folder


def test_a_folder_is_the_owners_and_goes_at_the_end(tmp_path: Path) -> None:
    with scratch_folder("mochi-x-", tmp_path) as folder:
        (folder / "file").write_text("text")
        assert folder.parent == tmp_path and folder.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next_one(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from deployments.storage.scratch import scratch_folder\n"
        "with scratch_folder('mochi-x-', Path(sys.argv[1])) as folder: print(folder, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        with scratch_folder("mochi-x-", tmp_path):
            assert left.exists(), "its process lives"
        process.send_signal(signal.SIGKILL)
    assert left.exists()
    with scratch_folder("mochi-x-", tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder]


def test_folders_of_others_stay(tmp_path: Path) -> None:
    for name in ("mochi-y-abcdefgh", "mochi-x-abcdefghi", "mochi-x-abcdefgh"):
        (tmp_path / name).mkdir()
    (tmp_path / "mochi-y-abcdefgh" / LOCK).touch()
    with scratch_folder("mochi-x-", tmp_path):
        assert len(list(tmp_path.iterdir())) == 4
