"""What is checked before a start."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.errors import StartupError
from serve_app.local.preflight import (
    check_disk,
    check_open_files,
    check_ports,
    data_folder_lock,
    free_ports,
    lock_file,
    running_server,
)
from tests.support import ROOT


def test_free_ports_pass() -> None:
    check_ports(dict.fromkeys(free_ports(3), "a test"))


def test_a_taken_port_is_named_with_its_purpose() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(StartupError, match=rf"^port {port} is taken by process \d+ .*the dashboard$"):
            check_ports({port: "the dashboard"})


def test_the_data_folder_is_made(tmp_path: Path) -> None:
    check_disk(tmp_path / "a" / "b", 1)
    assert list((tmp_path / "a" / "b").iterdir()) == []
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_a_low_limit_of_open_files_is_told() -> None:
    check_open_files(1024)
    with pytest.raises(StartupError, match="have 1023 files open here, 1024 are needed; raise the hard limit"):
        check_open_files(1023)


def test_a_full_disk_is_told_in_figures(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"has \d+ MB free, 900000000 MB are needed"):
        check_disk(tmp_path, 900_000_000)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot write in the data folder"):
        check_disk(tmp_path / "file" / "data", 0)


def test_one_data_folder_has_one_server(tmp_path: Path) -> None:
    with data_folder_lock(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())
        with (
            pytest.raises(StartupError, match=rf"another server \(process {os.getpid()}\)"),
            data_folder_lock(tmp_path),
        ):
            pass
    assert not (tmp_path / "lock").exists()
    with data_folder_lock(tmp_path):
        pass


def test_the_lock_of_a_killed_server_does_not_hold(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, os, signal\n"
        "from serve_app.local.preflight import data_folder_lock\n"
        "with data_folder_lock(pathlib.Path(sys.argv[1])):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = str(ROOT)
    subprocess.run([sys.executable, "-c", code, tmp_path], env={**os.environ, "PYTHONPATH": root})
    assert (tmp_path / "lock").exists()
    with data_folder_lock(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_the_server_of_a_data_folder_is_found_without_its_lock(tmp_path: Path) -> None:
    assert running_server(tmp_path) is None
    with data_folder_lock(tmp_path):
        found = running_server(tmp_path)
        assert found is not None and found.pid == os.getpid()
        lock_file(tmp_path).write_text("no number")
        assert running_server(tmp_path) is None
    lock_file(tmp_path).write_text(str(os.getpid()))
    os.utime(lock_file(tmp_path), (1, 1))
    assert running_server(tmp_path) is None, "this process was started after the one that wrote it"
