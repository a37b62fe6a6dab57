"""Faults set by hand on a real machine, store and database: `doctor` names each, and says what to do."""

import asyncio
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, text

from deployments.settings import StorageSettings
from deployments.storage.object_store import ObjectStore
from serve_app.database.connection import Database
from serve_app.doctor.checks.database import check_database
from serve_app.doctor.checks.folders import check_all_ports, check_data_folder
from serve_app.doctor.checks.gpu import check_gpu
from serve_app.doctor.checks.model import check_loras, check_model, check_proteins
from serve_app.doctor.checks.store import OPERATIONS, PREFIX, check_store
from serve_app.doctor.finding import Finding, State
from tests.support import ROOT
from tests.support.doctor import SHAPES, by_name, only, patient
from tests.support.proteins.models import make_esm
from tests.support.servers.postgres import fresh_database
from tests.support.servers.store_filter import EMPTY_LIST, Answer, denied, store_filter

PARTS = ("scheduler", "tokenizer", "text_encoder", "transformer", "vae")


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs at the folder."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may mount nothing here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    s = patient(tmp_path)
    with socket.create_server(("127.0.0.1", s.plan.port)):
        found = only(check_all_ports(s))
    assert found.state is State.FAULT
    assert found.told.startswith(f"port {s.plan.port} is taken by process {os.getpid()} (")
    assert found.advice == "change http_options.port in the Serve config"


def test_a_data_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with mounted(tmp_path / "data", "ro,size=64k"):
        found = by_name(check_data_folder(patient(tmp_path)))["data_folder"]
    assert found.state is State.FAULT and "(Read-only file system)" in found.told
    assert found.advice == "name another one with --data"


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    with mounted(tmp_path / "data", "size=1m,mode=700"):
        found = by_name(check_data_folder(patient(tmp_path, {"min_free_disk_mb": 500})))
    assert found["disk_data"].state is State.FAULT and "has 1 MB free, 500 MB are needed" in found["disk_data"].told
    assert "free some space" in found["disk_data"].advice
    assert found["data_folder"].state is State.OK


def test_a_data_folder_that_others_can_read(tmp_path: Path) -> None:
    s = patient(tmp_path)
    assert by_name(check_data_folder(s))["data_folder"].told.endswith("is not there yet and can be made")
    assert not s.plan.data_dir.exists()
    s.plan.data_dir.mkdir()
    s.plan.data_dir.chmod(0o755)
    found = by_name(check_data_folder(s))["data_folder"]
    assert found.state is State.WARNING and "others can reach data" in found.told
    assert s.plan.data_dir.stat().st_mode & 0o777 == 0o755, "it only looks"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the included model, with its checksums."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model_index.json", "SHA256SUMS"):
        shutil.copy(SHAPES / name, folder)
    for part in PARTS:
        shutil.copytree(SHAPES / part, folder / part)
    return folder


def looked_at(tmp_path: Path, model: Path) -> dict[str, Finding]:
    return by_name(check_model(patient(tmp_path, {"model": {"source": str(model)}})))


def test_a_shard_that_is_cut_short(tmp_path: Path, model: Path) -> None:
    assert {one.state for one in looked_at(tmp_path, model).values()} == {State.OK}
    shard = model / "transformer" / "diffusion_pytorch_model.safetensors"
    os.truncate(shard, shard.stat().st_size - 1000)
    found = looked_at(tmp_path, model)["model"]
    assert found.state is State.FAULT and f"{shard} is damaged: it is cut short" in found.told
    assert found.advice == "fetch or copy it again"


def test_a_byte_that_was_flipped(tmp_path: Path, model: Path) -> None:
    shard = model / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    found = looked_at(tmp_path, model)
    assert found["model"].state is State.OK, "no header shows it"
    assert (
        found["model_hashes"].state is State.FAULT and f"{shard} is damaged: its SHA-256" in found["model_hashes"].told
    )
    assert found["model_hashes"].advice == "fetch or copy it again"


def test_a_lora_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    found = only(check_loras(patient(tmp_path, {"model": {"loras": {"anime": {"source": str(tmp_path / "lora")}}}})))
    assert found.state is State.FAULT and "model.loras.anime" in found.told


def test_a_protein_model_that_is_none(tmp_path: Path) -> None:
    def examined(source: Path) -> Finding:
        return only(check_proteins(patient(tmp_path, {"proteins": {"source": str(source)}})))

    assert list(check_proteins(patient(tmp_path))) == []
    folder = make_esm(tmp_path / "esm")
    assert examined(folder).state is State.OK
    (folder / "model.safetensors").write_bytes(b"cut off")
    found = examined(folder)
    assert found.state is State.FAULT and "model.safetensors is damaged" in found.told
    assert found.advice == "fetch or copy it again"


def storage_tree(settings: StorageSettings, **changes: Any) -> dict[str, Any]:
    tree = settings.model_copy(update=changes).model_dump()
    return {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in tree.items()
        if name in ("endpoint", "access_key", "secret_key", "secure", "bucket")
    }


def stored(tmp_path: Path, settings: StorageSettings, **changes: Any) -> dict[str, Finding]:
    return by_name(check_store(patient(tmp_path, {"storage": storage_tree(settings, **changes)})))


def test_a_store_that_is_well_keeps_nothing_of_ours(tmp_path: Path, storage_settings: StorageSettings) -> None:
    found = stored(tmp_path, storage_settings)
    assert {name: one.state for name, one in found.items()} == dict.fromkeys(
        ("store", *OPERATIONS, "store_clock"), State.OK
    )
    assert ObjectStore(storage_settings).list_objects(PREFIX) == []


def test_a_wrong_secret(tmp_path: Path, storage_settings: StorageSettings) -> None:
    found = stored(tmp_path, storage_settings, secret_key=SecretStr("wrong"))
    assert found["store"].state is State.FAULT and str(storage_settings.endpoint) in found["store"].told
    assert found["store"].advice == "check storage's keys, and the clock"
    assert "wrong" not in f"{found}" and {found[name].state for name in OPERATIONS} == {State.SKIPPED}


def test_a_bucket_that_is_not_there(tmp_path: Path, storage_settings: StorageSettings) -> None:
    found = stored(tmp_path, storage_settings, bucket="nobody-made-it")["store"]
    assert found.state is State.FAULT and found.told.endswith("has no bucket 'nobody-made-it'")
    assert found.advice == "make it"


def test_a_store_that_is_away(tmp_path: Path, storage_settings: StorageSettings) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        found = stored(tmp_path, storage_settings, endpoint=f"127.0.0.1:{nobody.getsockname()[1]}")["store"]
    assert found.state is State.FAULT and "see that the store runs" in found.advice


def _list_nothing(method: str, path: str) -> Answer:
    return (200, EMPTY_LIST) if method == "GET" and "list-type=2" in path else None


def _list_nonsense(method: str, path: str) -> Answer:
    return (200, b"<html/>") if method == "GET" and "list-type=2" in path else None


def _deny(method: str, part: str) -> Callable[[str, str], Answer]:
    return lambda asked, path: denied() if asked == method and part in path else None


@pytest.mark.parametrize(
    ("decide", "name", "told", "advice"),
    [
        (_list_nothing, "store_list", "is listed without the object", "need a store that lists"),
        (_list_nonsense, "store_list", "is not understood", "need a store that lists"),
        (_deny("GET", "list-type=2"), "store_list", "AccessDenied", "(s3:ListBucket)"),
        (_deny("DELETE", "/"), "store_delete", "stays: ", "(s3:DeleteObject)"),
        (_deny("PUT", "/"), "store_write", "AccessDenied", "(s3:PutObject)"),
        (_deny("GET", PREFIX), "store_read", "AccessDenied", "(s3:GetObject)"),
    ],
)
def test_a_store_that_refuses_one_thing(
    tmp_path: Path,
    storage_settings: StorageSettings,
    decide: Callable[[str, str], Answer],
    name: str,
    told: str,
    advice: str,
) -> None:
    assert storage_settings.endpoint is not None
    with store_filter(storage_settings.endpoint, decide) as endpoint:
        found = stored(tmp_path, storage_settings, endpoint=endpoint)
    faults = [one.name for one in found.values() if one.state is State.FAULT]
    assert faults == [name], found
    assert told in found[name].told and advice in found[name].advice
    store = ObjectStore(storage_settings)
    left = [entry.key for entry in store.list_objects(PREFIX)]
    asyncio.run(store.delete_many(left))
    assert bool(left) is (name == "store_delete"), "only what cannot be deleted stays"


async def test_the_object_of_another_doctor_stays(tmp_path: Path, storage_settings: StorageSettings) -> None:
    store = ObjectStore(storage_settings)
    await store.put(f"{PREFIX}young", b"x", "text/plain")
    try:
        found = by_name(check_store_in_thread(patient(tmp_path, {"storage": storage_tree(storage_settings)})))
        assert found["store_list"].state is State.OK
        assert await store.stat(f"{PREFIX}young") is not None, "another doctor may be at work with it"
    finally:
        await store.delete(f"{PREFIX}young")


def check_store_in_thread(s: Any) -> Iterator[Finding]:
    """As the runner does: this thread has a loop."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return iter(pool.submit(lambda: list(check_store(s))).result())


def _age(connection: Connection) -> None:
    connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))


async def made(url: str) -> None:
    database = Database(url)
    await database.run(lambda connection: None)
    database.close()


async def make_newer(url: str) -> None:
    await made(url)
    database = Database(url)
    await database.run(_age)
    database.close()


async def test_a_database_of_a_newer_version(tmp_path: Path, postgres_uri: str) -> None:
    with fresh_database(postgres_uri) as url:
        s = patient(tmp_path, {"database": {"url": url}})
        assert {one.state for one in check_database(s)} == {State.OK}, "an empty one is well"
        await made(url)
        assert {one.state for one in check_database(s)} == {State.OK}
        await make_newer(url)
        found = by_name(check_database(s))["database_schema"]
    assert found.state is State.FAULT and "its schema is 9999, which this version does not know" in found.told
    assert found.advice.startswith("start the version of mochi-serve that used it last")


async def test_sqlite_of_a_newer_version(tmp_path: Path) -> None:
    s = patient(tmp_path)
    await make_newer(s.settings.database_url)
    found = by_name(check_database(s))
    assert found["database"].state in (State.OK, State.WARNING)  # a warning where /tmp lies in memory
    assert found["database_schema"].state is State.FAULT


def test_a_database_that_lets_nobody_in(tmp_path: Path, postgres_uri: str) -> None:
    with fresh_database(postgres_uri) as url:
        wrong = url.replace("/test_", "/none_")
        found = only(check_database(patient(tmp_path, {"database": {"url": wrong}})))
    assert found.state is State.FAULT and "does not exist" in found.told and "database.url" in found.advice


async def test_a_database_that_takes_no_write(tmp_path: Path, postgres_uri: str) -> None:
    with fresh_database(postgres_uri) as url:
        await made(url)
        s = patient(
            tmp_path,
            {"database": {"url": f"{url}{'&' if '?' in url else '?'}options=-c%20default_transaction_read_only%3Don"}},
        )
        found = only(check_database(s))
    assert found.state is State.FAULT and "read-only transaction" in found.told and "primary" in found.advice


async def test_a_sqlite_file_that_is_damaged(tmp_path: Path) -> None:
    s = patient(tmp_path)
    await made(s.settings.database_url)
    path = s.plan.data_dir / "jobs.db"
    data = bytearray(path.read_bytes())
    data[4096 : 4096 + 2048] = os.urandom(2048)
    path.write_bytes(data)
    found = only(check_database(s))
    assert found.state is State.FAULT and f"the database {path} is damaged" in found.told
    assert "put a backup in its place" in f"{found.told} {found.advice}"


async def test_sqlite_of_a_server_is_only_read(tmp_path: Path) -> None:
    """A lock file is enough: its process may be in another container."""
    s = patient(tmp_path)
    await made(s.settings.database_url)
    (s.plan.data_dir / "lock").write_text("1")
    with closing(sqlite3.connect(s.plan.data_dir / "jobs.db")) as server:
        server.execute("BEGIN IMMEDIATE")
        found = by_name(check_database(s))
    assert {one.state for one in found.values()} <= {State.OK, State.SKIPPED, State.WARNING}, "it waits for no lock"
    assert found["database_schema"].state is State.OK


async def test_sqlite_that_another_writer_holds(tmp_path: Path) -> None:
    s = patient(tmp_path)
    await made(s.settings.database_url)
    with closing(sqlite3.connect(s.plan.data_dir / "jobs.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        found = only(check_database(s))
    assert found.state is State.FAULT and "takes no write: database is locked" in found.told


def test_a_profile_that_wants_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("there is a GPU here")
    found = by_name(check_gpu(patient(tmp_path, {"sampler": {"num_gpus": 1}})))["gpus"]
    assert found.state is State.FAULT and found.told.endswith("the profile wants one for sampler")
    assert "configs/shapes.yaml" in found.advice


def test_a_low_limit_of_open_files_by_the_command_itself(tmp_path: Path) -> None:
    command = f"ulimit -n 512; exec {sys.executable} -m serve_app.cli.main doctor --json --data {tmp_path / 'data'}"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MOCHI_SERVE")}
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, env=environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    document = json.loads(done.stdout)
    found = {one["name"]: one for one in document["findings"]}
    assert done.returncode == 1 and document["fit"] is False, done.stderr
    assert found["open_files"]["state"] == "fault" and "have 512 files open here" in found["open_files"]["told"]
    assert "ulimit -Hn" in found["open_files"]["advice"]
    assert found["video_encoder"]["state"] == "ok", "ffmpeg has written a frame"
    assert not (tmp_path / "data").exists()
