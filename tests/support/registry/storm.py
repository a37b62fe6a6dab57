"""A world without Ray for the registry: real workers' shells, simulated stages, and faults everywhere, all drawn from
one seed.

The registry, its database and `StageWorker` are the real ones. The stages sleep instead of computing and note what
really happened, so that a test can compare it with what the registry tells.
"""

import asyncio
import logging
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Concatenate

from sqlalchemy import Connection

from deployments.errors import PermanentError, RegistryUnavailableError, StoppedError, TransientError
from deployments.messages import (
    STEPPED,
    VIDEO_STAGES,
    Checkpointed,
    Event,
    Parked,
    ProteinSpec,
    ReplicaInfo,
    Spec,
    Stage,
    StageTask,
)
from deployments.metrics import names
from deployments.replica.registry_link import Method, P, T, WorkerRegistryClient
from deployments.replica.running_task import RunningTask, Timing
from deployments.replica.stage_worker import StageWorker
from serve_app.config import JobSettings, SchedulingSettings
from serve_app.database.connection import Database
from serve_app.database.jobs import moves as moves_sql
from serve_app.database.jobs import overview as overview_sql
from serve_app.database.jobs.listing import newest_jobs
from serve_app.errors import NoReplicaError, ReplicaDiedError
from serve_app.feed.read_leases import FeedTiming, PresenceTiming
from serve_app.jobs import Job, JobFilter, JobState, Submission, Tier
from serve_app.registry.actor import JobRegistry
from serve_app.registry.timing import DispatchTiming, RegistryTiming
from serve_app.registry_api import RegistryApi
from serve_app.scheduling.scaling.capacity import StageState
from tests.support.registry.world import SPEC

STEPS = 6
STEP_S = 0.004
LEASE_S = 1.5
MAX_FAULTS = 120  # a storm of seconds sees some 30; on a machine so slow that faults outrun the work, it calms down
DOOMED = "doomed"
SETTINGS = JobSettings(retry_pause_s=0.01, max_retry_pause_s=0.2, max_attempts=1000).model_copy(
    update={"lease_s": LEASE_S}
)
SCHEDULING = SchedulingSettings(weights={"a": 3}, promote_after_s=2)
# The same machinery at a pace that fits steps of milliseconds.
WORKER_TIMING = Timing(
    announce_retry_s=0.05, report_every_s=0.005, heartbeat_s=0.2, end_retry_s=0.02, drain_poll_s=0.02
)
TIMING = RegistryTiming(
    dispatch=DispatchTiming(tick_s=0.1, reconcile_s=0.3, takeover_s=LEASE_S, retry_s=0.1),
    feed=FeedTiming(valid_s=0.2, hold_s=0.1),
    presence=PresenceTiming(beat_every_s=0.1, exclusive_s=0.3, silent_s=1.5),
    directive_hold_s=0.2,
    forget_replica_s=1.0,
    outage_pause_s=0.02,
)
# Where nothing fails no lease lapses, and nothing is to be mended: memory agrees with SQL by itself.
CALM_SETTINGS = SETTINGS.model_copy(update={"lease_s": 60.0})
CALM_TIMING = replace(TIMING, dispatch=replace(TIMING.dispatch, reconcile_s=1000.0))


@dataclass(frozen=True)
class Weather:
    """What goes wrong. Numbers below 1 are chances: of each step, call of the registry or operation of the database."""

    jobs: int = 24
    clusters: int = 1
    cancels: float = 0.15
    doomed: float = 0.0
    transient: float = 0.0
    out_of_memory: float = 0.0
    unheard: float = 0.0
    repeated: float = 0.0
    refused: float = 0.0
    uncommitted: float = 0.0
    untold_commits: float = 0.0
    faults: tuple[str, ...] = ()
    fault_every_s: float = 0.15


@dataclass
class Truth:
    """What really happened to the jobs, noted by the workers; `working` and `together` by lease."""

    steps: Counter[str] = field(default_factory=Counter)
    saved: dict[str, int] = field(default_factory=dict)
    working: defaultdict[tuple[str, Stage], set[str]] = field(default_factory=lambda: defaultdict(set))
    together: set[str] = field(default_factory=set)
    disturbed: set[str] = field(default_factory=set)
    deaths: Counter[str] = field(default_factory=Counter)
    cancelled: set[str] = field(default_factory=set)
    waited: int = 0


class StormDatabase(Database):
    """The database of a cluster, which is away at times, and at times does not tell that it has committed."""

    def __init__(self, url: str, storm: "Storm") -> None:
        super().__init__(url)
        self.storm = storm

    async def run(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        storm = self.storm
        if storm.database_away or storm.chance(storm.weather.uncommitted):
            raise RegistryUnavailableError("the storm took the database")
        result = await super().run(function, *args, **kwargs)
        if storm.chance(storm.weather.untold_commits):
            raise RegistryUnavailableError("the storm took the connection in the commit")
        return result


class Replica:
    """One replica of a stage: the real shell of a worker around work that only sleeps."""

    def __init__(self, cluster: "Cluster", stage: Stage, name: str) -> None:
        self.cluster, self.stage, self.name = cluster, stage, name
        self.slots = 2 if stage in STEPPED else 1
        self.died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.cut = self.leaving = False
        self.calls: dict[asyncio.Task[None], StageTask] = {}
        info = ReplicaInfo(name, stage, self.slots, "cpu", "mochi-1")
        self.worker = StageWorker(
            info, WorkerRegistryClient(self), is_draining=lambda: self.leaving, timing=WORKER_TIMING
        )

    async def call(self, method: Method[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The worker's way to the registry."""
        if self.cut or self.died.done():
            raise RegistryUnavailableError("this replica is cut off")
        return await self.cluster.call(method, *args, **kwargs)

    async def run(self, task: StageTask) -> None:
        """As Serve carries a call: it ends with the task, or with the replica. Who waits may go away."""
        if not self.died.done():
            call = asyncio.create_task(self.worker.run(task, self._work))
            self.calls[call] = task
            call.add_done_callback(self.calls.pop)
            await asyncio.wait({call, self.died}, return_when=asyncio.FIRST_COMPLETED)
        if self.died.done():
            raise ReplicaDiedError(self.name)

    def die(self) -> None:
        """As kill -9: nothing is told, and nothing more is done."""
        if self.died.done():
            return
        self.died.set_result(None)
        truth = self.cluster.storm.truth
        for task in self.calls.values():
            truth.disturbed.add(task.job_id)
            truth.deaths[task.job_id] += 1
            truth.working[task.job_id, task.stage].discard(task.lease)
        self.worker.close()

    async def _work(self, running: RunningTask) -> Event | None:
        task, truth = running.task, self.cluster.storm.truth
        at_work = truth.working[task.job_id, task.stage]
        at_work.add(task.lease)
        if len(at_work) > 1:
            truth.together.add(task.job_id)
        try:
            if task.stage in STEPPED:
                return await self._step(running)
            for frame in range(2):
                await self._pass_time(running)
                if task.stage is Stage.DECODING:
                    running.progress(frame + 1, 2)
            return None
        finally:
            at_work.discard(task.lease)

    async def _step(self, running: RunningTask) -> Event | None:
        task, storm = running.task, self.cluster.storm
        kept = storm.truth.saved.get(task.job_id, 0) if task.checkpoint_step or task.attempt > 1 else 0
        begun = 0 if storm.chance(storm.weather.refused) else kept
        if begun < task.checkpoint_step:
            storm.truth.disturbed.add(task.job_id)
        running.progress(begun, STEPS)
        for step in range(begun + 1, STEPS + 1):
            if running.park_reason is not None:
                storm.truth.saved[task.job_id] = step - 1
                return Parked(step - 1, running.park_reason, running.device_s)
            await self._pass_time(running)
            storm.truth.steps[task.job_id] += 1
            running.progress(step, STEPS)
            if storm.chance(0.3):
                storm.truth.saved[task.job_id] = step
                await self.worker.report_now(running, Checkpointed(step))
        return None

    async def _pass_time(self, running: RunningTask) -> None:
        """One step's time, after which it may have gone wrong."""
        storm, job_id = self.cluster.storm, running.task.job_id
        running.raise_if_stopped()
        await asyncio.sleep(STEP_S * storm.draw.uniform(0.5, 1.5))
        running.add_device_ns(int(STEP_S * 1e9))
        if self.died.done():
            raise StoppedError(f"{self.name} is dead")
        if is_doomed(running.task.spec) and running.task.stage in STEPPED:
            raise PermanentError(DOOMED, "as was asked")
        if storm.chance(storm.weather.transient):
            storm.truth.disturbed.add(job_id)
            raise TransientError("bad_luck", "as was drawn")
        if storm.chance(storm.weather.out_of_memory):
            storm.truth.disturbed.add(job_id)
            storm.truth.deaths[job_id] += 1
            raise MemoryError("as was drawn")


@dataclass
class Life:
    """One life of a registry; calls in flight end with it."""

    registry: JobRegistry
    database: StormDatabase
    ended: asyncio.Future[None]


class Cluster:
    """A registry that may be killed and started again, its replicas, and the ways between them."""

    def __init__(self, storm: "Storm", owner: str) -> None:
        self.storm, self.owner = storm, owner
        self.life: Life | None = None
        self.replicas: list[Replica] = []
        self._made = 0
        self._late: set[asyncio.Task[None]] = set()

    @property
    def registry(self) -> JobRegistry:
        assert self.life is not None
        return self.life.registry

    def start(self) -> None:
        storm = self.storm
        database = StormDatabase(storm.url, storm)
        registry = JobRegistry(
            database_url=storm.url,
            jobs=SETTINGS if storm.weather.faults else CALM_SETTINGS,
            scheduling=SCHEDULING,
            owner=self.owner,
            send=self._send,
            timing=TIMING if storm.weather.faults else CALM_TIMING,
            open_database=lambda url: database,
            unix_time=storm.unix_time,
        )
        self.life = Life(registry, database, asyncio.get_running_loop().create_future())

    async def kill(self) -> None:
        """Nothing in memory is left, and no call is answered; the replicas go on with what they have."""
        life, self.life = self.life, None
        if life is not None:
            life.ended.set_result(None)
            await life.registry.close()

    async def call(self, method: Method[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As RegistryLink does it: an answer, or RegistryUnavailableError, after which nobody knows."""
        storm, life = self.storm, self.life
        if life is None or storm.chance(storm.weather.unheard):
            raise RegistryUnavailableError("the storm took the call")
        asked = asyncio.ensure_future(getattr(life.registry, method.__name__)(*args, **kwargs))
        await asyncio.wait({asked, life.ended}, return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            asked.cancel()
            raise RegistryUnavailableError("the registry was killed")
        if method.__name__.startswith("report") and storm.chance(storm.weather.repeated):
            late = asyncio.create_task(self._repeat(method, *args, **kwargs))
            self._late.add(late)
            late.add_done_callback(self._late.discard)
        known = life.registry.snapshot().state
        if both := known.leases.keys() & known.waiting.job_ids:
            storm.surprises.append(f"{both} wait and hold a lease")
        result: T = asked.result()
        if storm.chance(storm.weather.unheard):
            raise RegistryUnavailableError("the storm took the answer")
        return result

    async def _repeat(self, method: Method[P, T], *args: P.args, **kwargs: P.kwargs) -> None:
        """The same once more, late and out of order."""
        await asyncio.sleep(self.storm.draw.uniform(0, 5 * STEP_S))
        if (life := self.life) is not None:
            again = asyncio.ensure_future(getattr(life.registry, method.__name__)(*args, **kwargs))
            await asyncio.wait({again, life.ended}, return_when=asyncio.FIRST_COMPLETED)
            if not again.done():
                again.cancel()
            elif not isinstance(again.exception(), RegistryUnavailableError | None):
                again.result()

    async def _send(self, task: StageTask, accept: Callable[[str], bool]) -> None:
        """As the router does it: a replica with room, waited for; it may be a dead one that nobody missed yet."""
        for attempt in range(30):
            alive = [r for r in self.replicas if r.stage is task.stage and not r.leaving and len(r.calls) < r.slots]
            for replica in sorted(alive, key=lambda r: len(r.calls)):
                if accept(replica.name):
                    return await replica.run(task)
            self.storm.truth.waited += attempt == 0
            await asyncio.sleep(0.01)
        raise NoReplicaError(task.stage)

    def add_replica(self, stage: Stage) -> None:
        self._made += 1
        self.replicas.append(Replica(self, stage, f"{self.owner}-{stage}-{self._made}"))

    async def keep_replicas(self) -> None:
        """As Serve does it: replace what died, what is sick and what has left."""
        for stage in (*Stage, Stage.SAMPLING):
            self.add_replica(stage)
        while True:
            await asyncio.sleep(0.03)
            for replica in list(self.replicas):
                if _is_sick(replica) or (replica.leaving and not replica.calls):
                    replica.die()
                if replica.died.done():
                    self.replicas.remove(replica)
                    self.add_replica(replica.stage)


def _is_sick(replica: Replica) -> bool:
    try:
        replica.worker.check_health()
    except RuntimeError:
        return True
    return False


def is_doomed(spec: Spec) -> bool:
    """Whether the job is to fail."""
    return (spec.options["prompt"] if isinstance(spec, ProteinSpec) else spec.prompt) == DOOMED


class Storm:
    """The whole: clusters on one database, clients, and what happens to them."""

    def __init__(self, url: str, weather: Weather, seed: int) -> None:
        self.url, self.weather = url, weather
        self.draw = random.Random(seed)
        self.truth = Truth()
        self.clock_shift_s = 0.0
        self.database_away = False
        self.clusters = [Cluster(self, f"cluster-{n}") for n in range(weather.clusters)]
        self.surprises: list[str] = []

    def chance(self, probability: float) -> bool:
        return probability > 0 and self.draw.random() < probability

    def unix_time(self) -> float:
        """A wall clock that may jump."""
        return time.time() + self.clock_shift_s

    async def blow(self, patience_s: float) -> dict[str, Job]:
        """From the first submission to the last end; the jobs as they ended. Raises TimeoutError if one is stuck."""
        watch = _Watch(self.surprises)
        logging.getLogger("ray.serve").addHandler(watch)
        beside: list[asyncio.Task[None]] = []
        try:
            for cluster in self.clusters:
                cluster.start()
                beside.append(asyncio.create_task(cluster.keep_replicas()))
            troubles = asyncio.create_task(self._troubles())
            beside.append(troubles)
            clients = [asyncio.create_task(self._client(n)) for n in range(self.weather.jobs)]
            async with asyncio.timeout(patience_s):
                ended = await _all(clients)
            troubles.cancel()
            await asyncio.gather(troubles, return_exceptions=True)
            await self._clear_sky()
            async with asyncio.timeout(patience_s):
                await self._calls_end()
            return {job.id: job for job in ended}
        finally:
            logging.getLogger("ray.serve").removeHandler(watch)
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            for replica in [replica for cluster in self.clusters for replica in cluster.replicas]:
                replica.die()

    async def close(self) -> None:
        for cluster in self.clusters:
            await cluster.kill()

    async def _clear_sky(self) -> None:
        self.database_away, self.weather = False, replace(self.weather, uncommitted=0, untold_commits=0, unheard=0)
        for cluster in self.clusters:
            if cluster.life is None:
                cluster.start()
            for replica in cluster.replicas:
                replica.cut = False

    async def _calls_end(self) -> None:
        """Each registry has seen that nothing waits and nothing runs."""
        for cluster in self.clusters:
            while not await _is_idle(cluster.registry) or any(r.calls for r in cluster.replicas):
                await asyncio.sleep(0.02)

    async def ask(self, method: Method[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As an ingress whose client is patient: any cluster, again until there is an answer."""
        while True:
            try:
                return await self.draw.choice(self.clusters).call(method, *args, **kwargs)
            except RegistryUnavailableError:
                await asyncio.sleep(0.02)

    async def _client(self, n: int) -> Job:
        await asyncio.sleep(self.draw.uniform(0, 0.5))
        prompt = DOOMED if self.chance(self.weather.doomed) else "a red circle"
        spec: Spec = replace(SPEC, prompt=prompt, num_inference_steps=STEPS)
        if self.chance(0.25):
            spec = ProteinSpec(STEPS, sequences=10, tokens=1_000, options={"prompt": prompt})
        asked = Submission(f"job-{n:03}", "mochi-1", spec, self.draw.choice("abc"), self.draw.choice(list(Tier)))
        if self.chance(0.3):
            asked = replace(asked, idempotency_key=f"key-{n}", fingerprint=prompt)
        job_id = (await self.ask(RegistryApi.submit, asked)).job.id
        if self.chance(0.2):
            asked = replace(asked, job_id=f"again-{n:03}") if asked.idempotency_key else asked
            again = await self.ask(RegistryApi.submit, asked)
            assert (again.job.id, again.repeated) == (job_id, True)
        if self.chance(self.weather.cancels):
            await asyncio.sleep(self.draw.uniform(0, 0.4))
            self.truth.cancelled.add(job_id)
            await self.ask(RegistryApi.cancel, job_id)
        return await self._follow(job_id)

    async def _follow(self, job_id: str) -> Job:
        while True:
            job: Job | None = await self.ask(RegistryApi.get, job_id)
            assert job is not None, f"{job_id} was accepted and is gone"
            if job.final:
                return job
            glance = self.draw.choice(("list", "health", "preview", "history", "capacity", "metrics", "park"))
            if glance == "list":
                await self.ask(
                    RegistryApi.list_jobs, 10, None, "asc", JobFilter(states=(JobState.QUEUED, JobState.SAMPLING))
                )
            elif glance == "health":
                await self.ask(RegistryApi.health)
            elif glance == "capacity":
                await self.ask(RegistryApi.capacity, StageState(self.draw.choice(VIDEO_STAGES), 1, 1, 0, 4))
            elif glance == "metrics":
                found = await self.ask(RegistryApi.metrics)
                if (lost := found[names.JOBS_UNACCOUNTED.name, ()]) != 0:
                    self.surprises.append(f"{lost} jobs are in no sum")
            elif glance in ("preview", "history"):
                await self.ask(RegistryApi.preview if glance == "preview" else RegistryApi.history, job_id)
            elif self.chance(0.1):
                await self.ask(RegistryApi.park, job_id)
            await asyncio.sleep(0.03)

    async def _troubles(self) -> None:
        faults: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "kill": self._kill,
            "absence": self._absence,
            "outage": self._outage,
            "jump": self._jump,
            "death": self._death,
            "silence": self._silence,
            "leave": self._leave,
        }
        for _ in range(MAX_FAULTS if self.weather.faults else 0):
            await asyncio.sleep(self.draw.uniform(0.5, 1.5) * self.weather.fault_every_s)
            await faults[self.draw.choice(self.weather.faults)]()

    async def _kill(self, for_s: float = 0.05) -> None:
        cluster = self.draw.choice(self.clusters)
        await cluster.kill()
        await asyncio.sleep(for_s)
        cluster.start()

    async def _absence(self) -> None:
        """So long that another registry takes its jobs over, or its replicas die meanwhile."""
        await self._kill(1.5 * LEASE_S)

    async def _outage(self) -> None:
        self.database_away = True
        await asyncio.sleep(self.draw.uniform(0.02, 0.3))
        self.database_away = False

    async def _jump(self) -> None:
        self.clock_shift_s = self.draw.choice((-3600.0, 0.0, 3600.0))

    async def _death(self) -> None:
        self._replica().die()

    async def _silence(self) -> None:
        """A replica that works on and is heard by nobody, longer than a lease."""
        replica = self._replica()
        replica.cut = True
        self.truth.disturbed |= {task.job_id for task in replica.calls.values()}
        await asyncio.sleep(self.draw.choice((0.1, 1.2 * LEASE_S)))
        replica.cut = False

    async def _leave(self) -> None:
        self._replica().leaving = True

    def _replica(self) -> Replica:
        return self.draw.choice([replica for cluster in self.clusters for replica in cluster.replicas])

    def left(self) -> Iterator[str]:
        """What each cluster still knows of, for whoever looks for what is stuck."""
        yield f"surprises: {self.surprises}"
        for cluster in self.clusters:
            if cluster.life is not None:
                yield f"{cluster.owner}: {cluster.registry.snapshot()}"
            for replica in cluster.replicas:
                held = [task.job_id for task in replica.calls.values()]
                yield f"{replica.name}: dead {replica.died.done()}, leaving {replica.leaving}, holds {held}"

    def sql(self, function: Callable[[Connection], T]) -> Coroutine[Any, Any, T]:
        """What the database itself says."""
        life = self.clusters[0].life
        assert life is not None
        return life.database.run(function)


class _Watch(logging.Handler):
    """Notes every exception that somebody logged and went on, but the one that the storm makes."""

    def __init__(self, surprises: list[str]) -> None:
        super().__init__()
        self._surprises = surprises

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, RegistryUnavailableError | MemoryError):
            self._surprises.append(f"{record.getMessage()}: {error!r}")


async def _all(tasks: list[asyncio.Task[Job]]) -> list[Job]:
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def everything(connection: Connection) -> tuple[dict[str, list[Any]], list[Any], list[Any]]:
    """The history of each job, and what waits and is leased."""
    jobs, _ = newest_jobs(connection, limit=1000)
    histories = {job.id: moves_sql.history(connection, job.id) for job in jobs}
    return histories, overview_sql.queued_ids(connection), overview_sql.leased_jobs(connection)


async def _is_idle(registry: JobRegistry) -> bool:
    """Whether nothing waits or runs, once the registry has taken over its jobs."""
    await registry.capacity(StageState(Stage.SAMPLING, 0, 1, 0, 1))
    state = registry.snapshot().state
    return not (state.leases or state.waiting.job_ids or state.waiting.in_claim)
