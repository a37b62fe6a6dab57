import asyncio
import json
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import pytest
import typer
from sqlalchemy import Connection
from typer.testing import CliRunner, Result

from serve_app.access.tenants import key_hash
from serve_app.cli.keys import keys, tenants
from serve_app.database import access as access_sql
from serve_app.database.connection import Database
from tests.support import ROOT

P = ParamSpec("P")
T = TypeVar("T")
DAY_S = 86_400
DATA = "MOCHI_SERVE__DATA_DIR"

app = typer.Typer(pretty_exceptions_enable=False)
app.add_typer(keys, name="keys")
app.add_typer(tenants, name="tenants")


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder of the commands, run where the included configuration is."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("MOCHI_SERVE_CONFIG", raising=False)
    monkeypatch.setenv(DATA, str(tmp_path / "data"))
    return tmp_path / "data"


def run(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, done.output
    return done


def answer(*arguments: str) -> Any:
    """The JSON that a command prints."""
    return json.loads(run(*arguments, "--json").stdout)


def test_a_key_is_printed_once_and_kept_as_its_hash(data: Path) -> None:
    done = run("keys", "create", "--tenant", "acme", "--label", "ci")
    key = done.stdout.strip()
    assert re.fullmatch(r"ms-[A-Za-z0-9_-]{43}", key)
    assert "not shown again" in done.stderr and key not in done.stderr
    with closing(sqlite3.connect(data / "jobs.db")) as connection:
        assert connection.execute("SELECT tenant, label, hash FROM api_keys").fetchall() == [
            ("acme", "ci", key_hash(key))
        ]
    assert all(key.encode() not in path.read_bytes() for path in data.iterdir())
    listed = run("keys", "list").stdout
    assert key[:8] in listed and key not in listed and key_hash(key) not in listed
    assert "acme" in listed and "ci" in listed and "valid" in listed


def test_as_json() -> None:
    made = answer("keys", "create", "--tenant", "acme", "--label", "[ci]", "--expires-days", "1.5")
    assert made["expires_at"] == pytest.approx(time.time() + 1.5 * DAY_S, abs=60)
    plain = made.pop("key")
    assert plain.startswith(made["hint"])
    assert key_hash(plain) not in json.dumps(made)
    assert answer("keys", "list") == [made] == answer("keys", "list", "--tenant", "acme")
    assert answer("keys", "list", "--tenant", "other") == []
    assert "[ci]" in run("keys", "list").stdout
    revoked = answer("keys", "revoke", made["id"])
    assert revoked == {**made, "revoked_at": pytest.approx(time.time(), abs=60)}
    assert "revoked 20" in run("keys", "list").stdout


def test_a_note_says_when_keys_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "access.mode is auto" in run("keys", "create", "--tenant", "acme").stderr
    monkeypatch.setenv("MOCHI_SERVE__ACCESS__MODE", "keys")
    assert "access.mode" not in run("keys", "create", "--tenant", "acme").stderr


def test_a_tenant_is_set_piece_by_piece() -> None:
    limits = {"weight": "2.5", "requests-per-minute": "60", "videos-per-minute": "5", "max-queued": "9"}
    arguments = [word for name, value in limits.items() for word in (f"--{name}", value)]
    first = answer("tenants", "set", "acme", "--tier", "interactive", *arguments, "--gpu-seconds-per-day", "0")
    assert first == {
        "name": "acme",
        "max_tier": "interactive",
        "created_at": pytest.approx(time.time(), abs=60),
        "weight": 2.5,
        "requests_per_minute": 60,
        "videos_per_minute": 5,
        "max_queued": 9,
        "gpu_seconds_per_day": 0.0,
    }
    second = answer("tenants", "set", "acme", "--videos-per-minute", "none", "--tier", "batch")
    assert second == {**first, "videos_per_minute": None, "max_tier": "batch"}
    assert answer("tenants", "list") == [second]
    assert "batch" in run("tenants", "list").stdout


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--weight", "0"),
        ("--weight", "nan"),
        ("--weight", "1001"),
        ("--requests-per-minute", "0"),
        ("--requests-per-minute", "1.5"),
        ("--videos-per-minute", "-1"),
        ("--max-queued", "many"),
        ("--max-queued", "10000000000"),
        ("--gpu-seconds-per-day", "-1"),
        ("--gpu-seconds-per-day", "inf"),
        ("--tier", "urgent"),
    ],
)
def test_a_limit_out_of_bounds_is_refused(data: Path, option: str, value: str) -> None:
    done = run("tenants", "set", "acme", option, value, code=2)
    assert option in done.stderr
    assert not data.exists()


@pytest.mark.parametrize("name", ["", "a b", "a/b", "x" * 65, "ü", "a\n"])
def test_a_name_that_no_request_can_give_is_refused(data: Path, name: str) -> None:
    assert "must be 1 to 64" in run("tenants", "set", name, code=2).stderr.replace("\n", " ")
    run("keys", "create", "--tenant", name, code=2)
    assert not data.exists()


@pytest.mark.parametrize("arguments", [("--expires-days", "0"), ("--expires-days", "nan"), ("--label", "x" * 129)])
def test_a_key_out_of_bounds_is_refused(data: Path, arguments: tuple[str, ...]) -> None:
    assert arguments[0] in run("keys", "create", "--tenant", "acme", *arguments, code=2).stderr
    assert not data.exists()


def beside(data: Path, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a server does on the same database."""

    async def work() -> T:
        database = Database(f"sqlite:///{data / 'jobs.db'}")
        try:
            return await database.run(function, *args, **kwargs)
        finally:
            database.close()

    return asyncio.run(work())


def test_all_of_a_tenant_is_shown(data: Path) -> None:
    tenant = beside(data, access_sql.create_tenant, "acme", now=1.0)
    key = answer("keys", "create", "--tenant", "acme")
    beside(data, access_sql.record_usage, "acme", ended_at=time.time(), gpu_seconds=1.5)
    shown = answer("tenants", "show", "acme")
    assert shown["webhook_secret"] == tenant.webhook_secret
    assert [one["id"] for one in shown["keys"]] == [key["id"]]
    assert shown["used_today"] == {"gpu_seconds": 1.5, "videos": 1}
    text = run("tenants", "show", "acme").stdout
    assert all(part in text for part in (tenant.webhook_secret, key["id"], "1 videos, 1.5 GPU-seconds"))
    assert tenant.webhook_secret not in run("tenants", "list").stdout


def test_usage_by_day(data: Path) -> None:
    now = time.time()
    for tenant, ended_at, seconds in (("acme", now, 1.5), ("acme", now - 40 * DAY_S, 4.0), ("other", now, 2.0)):
        beside(data, access_sql.record_usage, tenant, ended_at=ended_at, gpu_seconds=seconds)
    today = datetime.fromtimestamp(now, UTC).date().isoformat()
    mine = {"tenant": "acme", "day": today, "gpu_seconds": 1.5, "videos": 1}
    assert answer("tenants", "usage", "acme") == [mine]
    assert [one["tenant"] for one in answer("tenants", "usage")] == ["acme", "other"]
    assert [one["gpu_seconds"] for one in answer("tenants", "usage", "acme", "--days", "60")] == [4.0, 1.5]
    assert today in run("tenants", "usage").stdout


def test_the_secret_of_webhooks_can_be_shown_and_replaced(data: Path) -> None:
    before = answer("tenants", "set", "acme") and answer("tenants", "show", "acme")["webhook_secret"]
    answer("tenants", "set", "acme", "--new-webhook-secret")
    after = answer("tenants", "show", "acme")["webhook_secret"]
    assert after.startswith("whsec_") and after != before
    own = run("tenants", "webhook-secret").stdout.strip()
    assert own == answer("tenants", "webhook-secret")["webhook_secret"]
    answer("tenants", "webhook-secret", "--new")
    assert own != run("tenants", "webhook-secret").stdout.strip()


def test_the_secrets_of_webhooks_are_kept_encrypted(data: Path) -> None:
    answer("tenants", "set", "acme")
    shown = [answer("tenants", "show", "acme")["webhook_secret"], answer("tenants", "webhook-secret")["webhook_secret"]]
    assert (data / "webhook-key").stat().st_mode & 0o777 == 0o600
    kept = b"".join(path.read_bytes() for path in data.glob("jobs.db*"))
    assert not any(secret.encode() in kept for secret in shown)


def test_a_lost_key_is_told_and_a_new_secret_can_be_drawn(data: Path) -> None:
    answer("tenants", "set", "acme")
    answer("tenants", "webhook-secret")
    (data / "webhook-key").unlink()
    assert answer("tenants", "show", "acme")["webhook_secret"] is None
    assert "encrypted with another key than that of webhook-key" in run("tenants", "show", "acme").stdout
    assert "another key" in run("tenants", "webhook-secret", code=1).stderr
    answer("tenants", "set", "acme", "--new-webhook-secret")
    assert answer("tenants", "show", "acme")["webhook_secret"].startswith("whsec_")
    assert answer("tenants", "webhook-secret", "--new")["webhook_secret"].startswith("whsec_")


def test_a_broken_key_stops_only_what_needs_it(data: Path) -> None:
    answer("keys", "create", "--tenant", "acme")
    (data / "webhook-key").write_text("no key")
    assert "webhook-key cannot be used" in run("tenants", "show", "acme").stdout
    assert [key["tenant"] for key in answer("keys", "list")] == ["acme"]
    assert "webhook-key cannot be used" in run("keys", "create", "--tenant", "new", code=1).stderr


def test_a_removed_tenant_is_gone_with_its_keys() -> None:
    answer("keys", "create", "--tenant", "acme")
    assert answer("tenants", "remove", "acme") == {"name": "acme", "removed": True}
    assert answer("tenants", "list") == answer("keys", "list") == []


@pytest.mark.parametrize("arguments", [("tenants", "show"), ("tenants", "remove"), ("keys", "revoke")])
def test_what_is_not_there_is_one_line_and_code_1(arguments: tuple[str, str]) -> None:
    error = run(*arguments, "nobody", code=1).stderr
    assert error.startswith("mochi-serve: there is no ") and "'nobody'" in error and error.count("\n") == 1


def test_it_works_beside_a_server_that_writes(data: Path) -> None:
    """A change waits for the transaction that is open, and the server sees it afterwards."""
    version = beside(data, access_sql.access_version)
    with closing(sqlite3.connect(data / "jobs.db", isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        end = threading.Timer(0.5, connection.rollback)
        end.start()
        run("keys", "create", "--tenant", "acme")
        end.join()
    assert beside(data, access_sql.access_version) > version


def test_a_database_that_does_not_work_is_one_line_and_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOCHI_SERVE__DATABASE__URL", "postgresql+psycopg://nobody:secret@127.0.0.1:9/none")
    done = run("keys", "list", code=1)
    assert done.stderr.startswith("mochi-serve: the job database does not work") and "secret" not in done.stderr


def test_a_wrong_config_is_one_line_and_code_2(tmp_path: Path) -> None:
    done = run("keys", "list", "--config", str(tmp_path / "none.yaml"), code=2)
    assert done.stderr.startswith("mochi-serve: cannot read") and done.stderr.count("\n") == 1


def test_the_data_folder_of_serve(tmp_path: Path) -> None:
    run("keys", "create", "--tenant", "acme", "--data", str(tmp_path / "elsewhere"))
    assert (tmp_path / "elsewhere" / "jobs.db").exists()


def test_the_profile_of_the_environment_is_enough(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster the Serve config lies in Kubernetes."""
    monkeypatch.chdir(tmp_path)
    run("keys", "list", code=2)
    monkeypatch.setenv("MOCHI_SERVE_CONFIG", str(ROOT / "configs" / "shapes.yaml"))
    run("keys", "create", "--tenant", "acme")
    assert (data / "jobs.db").exists()


@pytest.mark.parametrize("arguments", [(), ("create",), ("list",), ("revoke",)])
def test_help_of_keys(arguments: tuple[str, ...]) -> None:
    assert "key" in run("keys", *arguments, "--help").stdout


@pytest.mark.parametrize("arguments", [("list",), ("show",), ("set",), ("remove",), ("usage",), ("webhook-secret",)])
def test_help_of_tenants(arguments: tuple[str, ...]) -> None:
    assert "--json" in run("tenants", *arguments, "--help").stdout
