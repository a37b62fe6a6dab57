"""Folders: the data folder is the server's alone and can be written, disks have room."""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from serve_app.access.exposure import check_exposure
from serve_app.doctor.finding import Finding, fault, ok, skipped, split_fault, warning
from serve_app.doctor.surroundings import Surroundings
from serve_app.errors import ConfigError, StartupError
from serve_app.local.plan import app_port, needed_ports
from serve_app.local.preflight import check_disk, check_ports, listener
from serve_app.local.private_files import open_to_others, temp_base

# SQLite's shared memory, and its locks, do not work on them.
NETWORK_FILESYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "glusterfs", "lustre", "9p", "afs")
# Ray's logs and sockets, and what a replica writes before it is stored.
MIN_TEMP_MB = 500


def check_exposed(s: Surroundings) -> Iterator[Finding]:
    """Who can reach the app."""
    try:
        check_exposure(s.plan.host, s.settings.access.mode)
    except ConfigError as error:
        told, _, advice = str(error).partition(". ")
        yield fault("exposure", told, advice)
        return
    if s.settings.access.mode == "open-to-anyone":
        yield warning(
            "exposure",
            "access.mode is open-to-anyone: whoever reaches the port may use it and see everything",
            "set access.mode: keys, unless that is meant",
        )
    else:
        yield ok("exposure", f"{s.plan.address}, access.mode {s.settings.access.mode}")


def check_data_folder(s: Surroundings) -> Iterator[Finding]:
    """Whether it can be written and has room, and whom it is open to. One that is not there is not made."""
    folder = s.plan.data_dir
    there = _nearest(folder)
    try:
        check_disk(there, s.settings.min_free_disk_mb)
    except StartupError as error:
        name = "disk_data" if "MB free" in str(error) else "data_folder"
        yield split_fault(name, str(error))
        if name == "data_folder":
            return
    else:
        free = shutil.disk_usage(there).free
        yield ok("disk_data", f"{free / 1e9:.1f} GB are free for {folder}, which may fill: videos are kept there")
    if there != folder:
        yield ok("data_folder", f"{folder} is not there yet and can be made")
        return
    if os.getuid() != folder.stat().st_uid:
        told = f"{folder} belongs to user {folder.stat().st_uid}, and this is {os.getuid()}"
        yield warning("data_folder", told, "run as its owner, or name another folder with --data")
    elif opened := open_to_others(folder):
        names = ", ".join(path.name for path in opened)
        yield warning("data_folder", f"in {folder}, others can reach {names}", "start the server: it closes them")
    else:
        yield ok("data_folder", f"{folder} can be written, and nobody else can reach it")


def check_temporary_folder(s: Surroundings) -> Iterator[Finding]:
    """Where Ray's sockets and logs go."""
    base = temp_base()
    free_mb = shutil.disk_usage(base).free // 1_000_000
    if not os.access(base, os.W_OK):
        yield fault("disk_temporary", f"{base} cannot be written", "mend it, or name another folder with TMPDIR")
    elif free_mb < MIN_TEMP_MB:
        told = f"{base} has {free_mb} MB free, about {MIN_TEMP_MB} are needed for logs and sockets"
        yield warning("disk_temporary", told, "free some space, or name another folder with TMPDIR (10 characters)")
    else:
        yield ok("disk_temporary", f"{free_mb / 1000:.1f} GB are free in {base}")


def check_all_ports(s: Surroundings) -> Iterator[Finding]:
    """Ports that a start needs. None is bound for longer than a moment, and none of a server that runs."""
    if s.ray_address:
        yield skipped("ports", "the cluster's Ray has its own")
        return
    needed = {**needed_ports(s.plan, dict(s.environ)), **app_port(s.plan)}
    taken = []
    for port, purpose in needed.items():
        if _is_own(s, port):
            continue
        try:
            check_ports({port: purpose}, s.plan.bound_host if port == s.plan.port else "127.0.0.1")
        except StartupError as error:
            taken.append(str(error))
    if taken:
        yield split_fault("ports", "; ".join(taken))
    elif s.server is not None:
        yield ok("ports", f"{len(needed)} are the running server's, or free")
    else:
        yield ok("ports", f"{len(needed)} are free")


def filesystem_type(path: Path, root: Path = Path("/")) -> str:
    """As the kernel names that of the mount that holds the path; empty where it does not tell."""
    try:
        lines = (root / "proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    real, best, found = path.resolve(), -1, ""
    for line in lines:
        before, _, after = line.partition(" - ")
        mount = Path(before.split()[4].replace("\\040", " "))
        if real.is_relative_to(mount) and len(mount.parts) >= best:
            best, found = len(mount.parts), after.split()[0]
    return found


def _nearest(folder: Path) -> Path:
    """The folder, or the first above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _is_own(s: Surroundings, port: int) -> bool:
    """Whether a process of the running server listens there."""
    if s.server is None or (process := listener(port)) is None:
        return False
    with suppress(psutil.Error):  # it has ended meanwhile
        return s.server.pid in {process.pid, *(parent.pid for parent in process.parents())}
    return False
