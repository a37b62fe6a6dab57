"""How the local store is started."""

import json
import os
import socket
from pathlib import Path

import pytest
from pydantic import SecretStr

from deployments.settings import StorageSettings
from serve_app.errors import StartupError
from serve_app.local.store.seaweed_command import (
    MAX_SOCKET_FOLDER,
    command,
    environment,
    load_or_make_keys,
    ports,
    remove_dead_sockets,
    sockets_folder,
)


def test_every_port_is_given() -> None:
    assert list(ports(8333).values()) == list(range(8333, 8341))
    line = command(Path("/d/objects"), Path("/d/sockets"), 8333, 40000)
    for flag in ("s3.port=8333", "s3.port.grpc=8334", "master.port=8335", "filer.port.grpc=8340"):
        assert f"-{flag}" in line


def test_nothing_is_sent_out_and_nothing_but_loopback_listens() -> None:
    line = command(Path("/d/objects"), Path("/d/sockets"), 8333, 40000)
    for flag in ("master.telemetry=false", "ip=127.0.0.1", "ip.bind=127.0.0.1", "webdav=false"):
        assert f"-{flag}" in line


def test_keys_are_made_once_and_are_private(tmp_path: Path) -> None:
    path = tmp_path / "objects-keys.json"
    keys = load_or_make_keys(path)
    assert load_or_make_keys(path) == keys
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(set(keys)) == 2 and all(len(key) >= 16 for key in keys)
    assert load_or_make_keys(tmp_path / "other.json") != keys
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".json"] == []


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"access_key": "only"})])
def test_a_broken_file_of_keys_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "objects-keys.json"
    path.write_text(text)
    with pytest.raises(StartupError, match="objects-keys.json"):
        load_or_make_keys(path)


def test_the_environment_of_the_user_does_not_reach_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_BUCKET", "theirs")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "theirs")
    settings = StorageSettings(access_key=SecretStr("a"), secret_key=SecretStr("s"))
    given = environment(settings, Path("/home"))
    assert (given["AWS_ACCESS_KEY_ID"], given["AWS_SECRET_ACCESS_KEY"], given["HOME"]) == ("a", "s", "/home")
    assert "theirs" not in given.values()


def test_sockets_have_short_paths() -> None:
    assert sockets_folder(Path("/data")) == Path("/data/sockets")
    deep = Path("/" + "x" * 200)
    assert len(str(sockets_folder(deep))) <= MAX_SOCKET_FOLDER
    assert sockets_folder(deep) == sockets_folder(deep) != sockets_folder(deep / "y")


def test_sockets_that_nobody_listens_on_are_removed(tmp_path: Path) -> None:
    names = ("seaweedfs-s3-grpc-1", "seaweedfs-s3-grpc-2", "seaweedfs-s3-grpc-3", "other")
    dead, live, fresh, other = (tmp_path / f"{name}.sock" for name in names)
    with socket.socket(socket.AF_UNIX) as listener:
        for path in (dead, fresh, other):
            with socket.socket(socket.AF_UNIX) as ended:
                ended.bind(str(path))
        listener.bind(str(live))
        listener.listen(1)
        for path in (dead, live, other):
            os.utime(path, (0, 0))
        remove_dead_sockets(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([live, fresh, other])
