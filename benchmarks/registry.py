"""How many jobs a second the registry makes durable, and how fast it lists them: with a thousand and a million stored.

    python benchmarks/registry.py
    python benchmarks/registry.py --stored 100000 --seconds 5 --out benchmarks/results/registry.json

The registry as it is served: the detached actor in a Ray of its own, on SQLite and on a Postgres of its own. There are
no replicas, so that nothing but submits happens. Prints a table and, last, one line of JSON.
"""

import argparse
import asyncio
import logging
import os
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    String,
    cast,
    create_engine,
    delete,
    event,
    func,
    insert,
    literal,
    select,
    text,
)

from serve_app.registry_api import RegistryApi, RegistryClient

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common.machine import describe_machine, publish
from benchmarks.dispatch import whole_number, yes
from deployments.messages import Stage, VideoSpec
from deployments.replica.registry_link import RegistryLink
from serve_app.app import REGISTRY, ensure_registry, with_storage
from serve_app.config import AppSettings, DatabaseSettings, load_settings
from serve_app.database.engine import migrate
from serve_app.database.schema import job_moves, jobs
from serve_app.jobs import JobFilter, JobState, Submission, Tier
from serve_app.local.preflight import LOOPBACK
from serve_app.local.ray_environment import LOOPBACK_ONLY
from serve_app.local.store.seaweed import ACTOR_NAME as STORAGE_ACTOR
from tests.support import ROOT
from tests.support.servers.ports import free_block
from tests.support.servers.postgres import fresh_database, postgres_server

CALLERS = 64
FEW = 1000
ROUNDS = 3
WARM_UP_S = 3.0
PAGE = 20
PAGES = 100
TENANTS = 4
SPAN_S = 20 * 86_400.0
SUBMITS_BAR = {"sqlite": 500.0, "postgres": 300.0}
P99_BAR_S = 0.25
RATIO_BAR = 0.8

SPEC = VideoSpec("a red circle moving right, seen from above", "", 64, 64, 25, 24, 20, 3.0, 1)
QUEUED = JobState.QUEUED
FAILED = JobState.FAILED
SHARES = {JobState.COMPLETED: 0.85, JobState.FAILED: 0.12, JobState.CANCELLED: 0.03}
_BEGIN = [(JobState.ENCODING, Stage.ENCODING, "claimed"), (QUEUED, Stage.SAMPLING, "encoding done")]
_SAMPLED = [(JobState.SAMPLING, Stage.SAMPLING, "claimed"), (QUEUED, Stage.DECODING, "sampling done")]
_MADE = [(JobState.DECODING, Stage.DECODING, "claimed"), (JobState.COMPLETED, Stage.DECODING, "done")]
HISTORIES = {
    JobState.COMPLETED: [*_BEGIN, *_SAMPLED, *_MADE],
    JobState.FAILED: [*_BEGIN, _SAMPLED[0], (FAILED, Stage.SAMPLING, "storage_refused")],
    JobState.CANCELLED: [*_BEGIN, (JobState.CANCELLED, Stage.SAMPLING, "cancelled")],
}
MOVE_S = 1.5


def main() -> None:
    arguments = _arguments()
    with _databases(arguments.folder, arguments.stored) as (databases, disk), _registry_settings() as settings:
        measured = take_turns(settings, databases, arguments)
    sections = {kind: summarise(kind, measured[kind]) for kind in SUBMITS_BAR}
    for table in (submits_table(sections), pages_table(sections)):
        Console().print(table)
    setting = {name: getattr(arguments, name) for name in ("callers", "processes", "seconds", "rounds", "stored")}
    machine = describe_machine(torch.device("cpu")) | disk
    publish({"benchmark": "registry", "machine": machine, **setting, **sections}, arguments.out)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stored", type=whole_number, default=1_000_000, help="jobs of the large databases")
    parser.add_argument("--seconds", type=whole_number, default=10, help="of each measurement, after a warm-up")
    parser.add_argument("--rounds", type=whole_number, default=ROUNDS)
    parser.add_argument("--callers", type=whole_number, default=CALLERS)
    parser.add_argument("--processes", type=whole_number, default=1, help="processes that the callers are in")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    arguments = parser.parse_args()
    if arguments.stored % FEW or arguments.stored == FEW:
        parser.error(f"--stored must be a multiple of {FEW} and more than that")
    return arguments


# Databases, filled


@dataclass(frozen=True, slots=True)
class Stored:
    """A database with ended jobs."""

    kind: str  # sqlite or postgres
    jobs: int  # how many
    url: str


@contextmanager
def _databases(folder: Path, many: int) -> Iterator[tuple[list[Stored], dict[str, Any]]]:
    """Each kind with few jobs and with many, in a new folder below `folder`; and what the folder lies on."""
    with tempfile.TemporaryDirectory(prefix="mochi-bench-", dir=folder) as path:
        # Postgres, started by root, runs as a user of its own.
        Path(path).chmod(0o755)
        disk = {"file_system": file_system(Path(path)), "fsync_ms": round(fsync_s(Path(path)) * 1e3, 2)}
        (Path(path) / "postgres").mkdir()
        with (
            postgres_server(Path(path) / "postgres") as uri,
            fresh_database(uri) as few_url,
            fresh_database(uri) as many_url,
        ):
            _check_durable(few_url)
            databases = [
                Stored("sqlite", FEW, f"sqlite:///{path}/few.db"),
                Stored("postgres", FEW, few_url),
                Stored("sqlite", many, f"sqlite:///{path}/many.db"),
                Stored("postgres", many, many_url),
            ]
            disk["fill_s"] = {f"{one.kind} {one.jobs}": round(fill(one.url, one.jobs), 1) for one in databases}
            yield databases, disk


def file_system(path: Path) -> str:
    """Its type. Raises SystemExit for one in memory, where nothing is durable."""
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    kind = next(mounts[parent] for parent in [path.resolve(), *path.resolve().parents] if parent in mounts)
    if kind in ("tmpfs", "ramfs"):
        raise SystemExit(f"{path} lies in memory ({kind}); name a folder on a disk with --folder")
    return kind


def fsync_s(folder: Path, count: int = 50) -> float:
    """Median seconds to append 4 KiB to a file and have the disk keep them."""
    seconds = []
    with (folder / "probe").open("wb", buffering=0) as file:
        for _ in range(count):
            begun = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def _check_durable(url: str) -> None:
    with _connected(url) as connection:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            if (value := connection.execute(text(f"SHOW {name}")).scalar_one()) != "on":
                raise SystemExit(f"this Postgres runs with {name} = {value}: its commits are not durable")


def fill(url: str, count: int) -> float:
    """Bring the schema and so many ended jobs with their moves into an empty database; seconds it took.

    FEW jobs are written and then copied within the database, each time with new ids and a little earlier. Indexes are
    built at the end.
    """
    begun = time.perf_counter()
    engine = _fill_engine(url)
    migrate(engine)
    with engine.begin() as connection:
        indexes = [*jobs.indexes, *job_moves.indexes]
        for index in indexes:
            index.drop(connection)
        connection.execute(insert(jobs), ended_jobs(FEW, SPAN_S / (count / FEW), time.time()))
        _copy_jobs(connection, count // FEW)
        for state, moves in HISTORIES.items():
            for number, move in enumerate(moves, 1):
                _add_move(connection, state, MOVE_S * number, move)
        for index in indexes:
            index.create(connection)
    _settle(engine)
    return time.perf_counter() - begun


def _fill_engine(url: str) -> Engine:
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _fast(connection: Any, _record: Any) -> None:
            for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -1000000"):
                connection.execute(f"PRAGMA {pragma}")

    return engine


def _settle(engine: Engine) -> None:
    """Leave nothing for later that belongs to the filling."""
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
            connection.execute(text("CHECKPOINT"))
    engine.dispose()
    os.sync()


def ended_jobs(count: int, span_s: float, now: float) -> list[dict[str, Any]]:
    """Rows of jobs of several tenants and tiers, created in the last span_s seconds before `now`."""
    chance = random.Random(0)
    states = chance.choices(list(SHARES), list(SHARES.values()), k=count)
    return [_ended_job(chance, state, now - chance.uniform(0, span_s)) for state in states]


def _ended_job(chance: random.Random, state: JobState, created_at: float) -> dict[str, Any]:
    stage = HISTORIES[state][-1][1]
    done = SPEC.num_inference_steps if state is JobState.COMPLETED else 0
    error = None if state is JobState.COMPLETED else HISTORIES[state][-1][2]
    return {
        "id": f"video_{chance.getrandbits(128):032x}",
        "model": "mochi-1",
        "spec": asdict(SPEC),
        "state": state,
        "stage": stage,
        "attempt": 1,
        "step": done,
        "steps_run": done,
        "progress": 1.0 if done else 0.02,
        "tenant": f"tenant-{chance.randrange(TENANTS)}",
        "tier": chance.choice(list(Tier)),
        "device_s": 4.2,
        "has_work_files": False,
        "created_at": created_at,
        "started_at": created_at + MOVE_S,
        "completed_at": created_at + MOVE_S * len(HISTORIES[state]),
        "available_at": created_at,
        "error_code": error,
        "error_message": error and "the store refused the object: access denied",
        "seconds": {"encoding.encode": 0.02, "sampling.denoise": 4.1, "decoding.decode": 0.2, "decoding.mp4": 0.1},
    }


def _copy_jobs(connection: Connection, copies: int) -> None:
    """Each job that is there so often in all; each copy lies one part of SPAN_S before the last."""
    number = select(literal(1).label("n")).where(literal(copies) > 1).cte("numbers", recursive=True)
    number = number.union_all(select(number.c.n + 1).where(number.c.n + 1 < copies))
    new: dict[str, ColumnElement[Any]] = dict(jobs.c.items())
    new["id"] = literal("video_").concat(_random_hex(connection))
    for name in ("created_at", "started_at", "completed_at", "available_at"):
        new[name] = jobs.c[name] - number.c.n * (SPAN_S / copies)
    rows = select(*new.values()).select_from(jobs.join(number, literal(1) == 1))
    connection.execute(insert(jobs).from_select(list(new), rows))


def _random_hex(connection: Connection) -> ColumnElement[str]:
    """32 random hexadecimal digits, others in each row."""
    if connection.dialect.name == "sqlite":
        return func.lower(func.hex(func.randomblob(16)))
    return func.replace(cast(func.gen_random_uuid(), String), "-", "")


def _add_move(connection: Connection, ended: JobState, after_s: float, move: tuple[JobState, Stage, str]) -> None:
    """The same move for every job that ended so, after_s after its creation."""
    state, stage, note = move
    values = {"state": state, "stage": stage, "attempt": 1, "note": note}
    rows = select(jobs.c.id, jobs.c.created_at + after_s, *map(literal, values.values())).where(jobs.c.state == ended)
    connection.execute(insert(job_moves).from_select(["job_id", "at", *values], rows))


@contextmanager
def _connected(url: str) -> Iterator[Connection]:
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


# The actor and its callers


@contextmanager
def _registry_settings() -> Iterator[AppSettings]:
    """Starts Ray and a local object store. The settings of a registry whose queue is never full and that keeps all."""
    os.environ.update(LOOPBACK_ONLY | {"RAY_AUTH_MODE": "disabled"})
    with tempfile.TemporaryDirectory(prefix="mochi-bench-") as folder:
        environ = {
            "MOCHI_SERVE__DATA_DIR": folder,
            "MOCHI_SERVE__NAMESPACE": "bench",
            "MOCHI_SERVE__STORAGE__LOCAL_PORT": f"{free_block()}",
            "MOCHI_SERVE__JOBS__MAX_QUEUED": "100000000",
            "MOCHI_SERVE__JOBS__MAX_QUEUED_PER_TENANT": "100000000",
            "MOCHI_SERVE__RETENTION__COMPLETED_DAYS": "",
            "MOCHI_SERVE__RETENTION__FAILED_DAYS": "",
        }
        ray.init(
            address="local",
            _node_ip_address=LOOPBACK,
            include_dashboard=False,
            object_store_memory=100_000_000,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
        try:
            yield with_storage(load_settings(str(ROOT / "configs/shapes.yaml"), environ))
            ray.get(ray.get_actor(STORAGE_ACTOR, namespace="bench").stop.remote())
        finally:
            ray.shutdown()


@contextmanager
def registry_on(settings: AppSettings, stored: Stored) -> Iterator[str]:
    """The actor on this database; gives the namespace it is in, and kills it in the end."""
    namespace = f"bench-{uuid.uuid4().hex}"
    database = DatabaseSettings(url=SecretStr(stored.url))
    ensure_registry(settings.model_copy(update={"namespace": namespace, "database": database}))
    try:
        yield namespace
    finally:
        ray.kill(ray.get_actor(REGISTRY, namespace=namespace))


class Callers:
    """A process with callers that submit one job after another through the link that the ingress uses."""

    def __init__(self, namespace: str, count: int) -> None:
        self._registry = RegistryClient(RegistryLink(REGISTRY, namespace))
        self._count = count
        self._seconds: list[float] = []

    async def submit_for(self, seconds: float) -> list[float]:
        """Seconds of each submit that was answered in a span of `seconds` after the warm-up."""
        begin = time.perf_counter() + WARM_UP_S
        await asyncio.gather(*(self._caller(n, begin, begin + seconds) for n in range(self._count)))
        return self._seconds

    async def _caller(self, number: int, begin: float, end: float) -> None:
        tenant = f"tenant-{number % TENANTS}"
        tier = list(Tier)[number % len(Tier)]
        answered = time.perf_counter()
        while answered < end:
            asked = answered
            submission = Submission(f"video_{uuid.uuid4().hex}", "mochi-1", SPEC, tenant, tier)
            await self._registry.submit(submission)
            answered = time.perf_counter()
            if begin <= answered < end:
                self._seconds.append(answered - asked)


@dataclass(frozen=True, slots=True)
class Measured:
    """One round on one database."""

    over_s: float  # seconds of submitting
    submits: list[float]  # seconds of each
    pages: dict[str, list[float]]  # seconds of each page, by listing


def take_turns(
    settings: AppSettings, databases: Sequence[Stored], arguments: argparse.Namespace
) -> dict[str, dict[int, list[Measured]]]:
    """Every database once in each round, by kind and by jobs stored; who is first moves on from round to round."""
    measured: dict[str, dict[int, list[Measured]]] = defaultdict(lambda: defaultdict(list))
    for turn in range(arguments.rounds):
        for stored in [*databases[turn % 4 :], *databases[: turn % 4]]:
            measured[stored.kind][stored.jobs].append(measure(settings, stored, arguments))
    return measured


def measure(settings: AppSettings, stored: Stored, arguments: argparse.Namespace) -> Measured:
    """List, then submit; what was submitted is deleted, so that every round finds the same."""
    with registry_on(settings, stored) as namespace:
        pages = asyncio.run(list_pages(namespace, _middle(stored)))
        counts = shares_of(arguments.callers, arguments.processes)
        callers = [ray.remote(Callers).options(num_cpus=0).remote(namespace, count) for count in counts]
        answered = ray.get([one.submit_for.remote(arguments.seconds) for one in callers])
    _delete_queued(stored, at_least=sum(map(len, answered)))
    return Measured(arguments.seconds, [seconds for one in answered for seconds in one], pages)


def shares_of(total: int, parts: int) -> list[int]:
    """`total` in `parts` whole numbers as equal as can be."""
    return [total // parts + (n < total % parts) for n in range(parts)]


def _middle(stored: Stored) -> tuple[str, float]:
    """The job in the middle of the stored ones by time: its id and when it was created."""
    ordered = select(jobs.c.id, jobs.c.created_at).order_by(jobs.c.created_at, jobs.c.id)
    with _connected(stored.url) as connection:
        job_id, created_at = connection.execute(ordered.offset(stored.jobs // 2).limit(1)).one()
    return job_id, created_at


def _delete_queued(stored: Stored, at_least: int) -> None:
    """Raises SystemExit if fewer jobs are stored than were answered: one of them was not durable."""
    queued = select(jobs.c.id).where(jobs.c.state == QUEUED)
    with _connected(stored.url) as connection:
        connection.execute(delete(job_moves).where(job_moves.c.job_id.in_(queued)))
        deleted = connection.execute(delete(jobs).where(jobs.c.state == QUEUED)).rowcount
    if deleted < at_least:
        raise SystemExit(f"{at_least} submits were answered and {deleted} jobs are in the database")


async def list_pages(namespace: str, middle: tuple[str, float]) -> dict[str, list[float]]:
    """Seconds of each of PAGES calls for every kind of page."""
    registry = RegistryClient(RegistryLink(REGISTRY, namespace))
    job_id, created_at = middle
    asked: dict[str, tuple[str | None, JobFilter]] = {
        "first page": (None, JobFilter()),
        "from the middle": (job_id, JobFilter()),
        "failed": (None, JobFilter(states=(FAILED,))),
        "failed or cancelled": (None, JobFilter(states=(FAILED, JobState.CANCELLED))),
        "of a tenant": (None, JobFilter(tenant="tenant-3")),
        "failed, of a tenant": (None, JobFilter(states=(FAILED,), tenant="tenant-3")),
        "before a time": (None, JobFilter(created_before=created_at)),
    }
    return {name: await _time_pages(registry, *query) for name, query in asked.items()}


async def _time_pages(registry: RegistryApi, after: str | None, wanted: JobFilter) -> list[float]:
    seconds = []
    for _ in range(PAGES):
        begun = time.perf_counter()
        page = await registry.list_jobs(PAGE, after, "desc", wanted)
        seconds.append(time.perf_counter() - begun)
        if len(page.jobs) != PAGE:
            raise SystemExit(f"a page held {len(page.jobs)} jobs of {PAGE}: {wanted}")
    return seconds


# What came out


def summarise(kind: str, measured: dict[int, list[Measured]]) -> dict[str, Any]:
    """Of one kind of database. ratio: the median of the rounds' ratios, many stored jobs against few."""
    few, many = (measured[stored] for stored in sorted(measured))
    ratio = statistics.median(rate(b) / rate(a) for a, b in zip(few, many, strict=True))
    return {
        "few": submits_section(few, SUBMITS_BAR[kind]),
        "many": submits_section(many, RATIO_BAR * SUBMITS_BAR[kind]),
        "ratio": round(ratio, 3),
        "ratio_bar": RATIO_BAR,
        "ratio_holds": ratio >= RATIO_BAR,
        "pages": {name: pages_section(few, many, name) for name in few[0].pages},
    }


def rate(measured: Measured) -> float:
    """Submits a second."""
    return len(measured.submits) / measured.over_s


def submits_section(rounds: Sequence[Measured], bar: float) -> dict[str, Any]:
    """Medians over the rounds."""
    ranked = [sorted(one.submits) for one in rounds]
    p50, p99 = (statistics.median(one[int(share * len(one))] for one in ranked) for share in (0.5, 0.99))
    rates = [rate(one) for one in rounds]
    return {
        "submits_per_s": round(statistics.median(rates), 1),
        "rounds": [round(one, 1) for one in rates],
        "p50_ms": round(p50 * 1e3, 1),
        "p99_ms": round(p99 * 1e3, 1),
        "max_ms": round(max(one[-1] for one in ranked) * 1e3, 1),
        "bar_per_s": bar,
        "holds": statistics.median(rates) >= bar,
        "p99_bar_ms": P99_BAR_S * 1e3,
        "p99_holds": p99 <= P99_BAR_S,
    }


def pages_section(few: Sequence[Measured], many: Sequence[Measured], name: str) -> dict[str, float]:
    """Medians of all calls for one kind of page."""
    seconds = [statistics.median(s for one in rounds for s in one.pages[name]) for rounds in (few, many)]
    return {
        "few_ms": round(seconds[0] * 1e3, 2),
        "many_ms": round(seconds[1] * 1e3, 2),
        "ratio": round(seconds[1] / seconds[0], 2),
    }


def submits_table(sections: dict[str, Any]) -> Table:
    columns = ("", "submits/s", "bar", "p50, ms", "p99, ms", "bar", "of few", "bar", "holds")
    table = Table(*columns, title="durable submits, with few and with many jobs stored")
    for kind, section in sections.items():
        for name in ("few", "many"):
            one = section[name]
            speed = (f"{one['submits_per_s']:.0f}", f"{one['bar_per_s']:.0f}")
            waits = (f"{one['p50_ms']:.0f}", f"{one['p99_ms']:.0f}", f"{one['p99_bar_ms']:.0f}")
            ratio = (f"{section['ratio']:.2f}", f"{RATIO_BAR}") if name == "many" else ("", "")
            holds = one["holds"] and one["p99_holds"] and (name == "few" or section["ratio_holds"])
            table.add_row(f"{kind}, {name}", *speed, *waits, *ratio, yes({"holds": holds}))
    return table


def pages_table(sections: dict[str, Any]) -> Table:
    table = Table("ms", title=f"pages of {PAGE} jobs, with few and with many stored")
    for kind in sections:
        for column in (f"{kind}, few", "many", "ratio"):
            table.add_column(column)
    for name in next(iter(sections.values()))["pages"]:
        found = [section["pages"][name] for section in sections.values()]
        cells = [f"{one[key]:.2f}" for one in found for key in ("few_ms", "many_ms", "ratio")]
        table.add_row(name, *cells)
    return table


if __name__ == "__main__":
    main()
