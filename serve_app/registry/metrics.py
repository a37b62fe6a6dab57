"""The registry's part in the metrics: it hears all processes, keeps what they counted, and answers with everything."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping

from deployments.background import run_forever
from deployments.errors import RegistryUnavailableError
from deployments.messages import Stage
from deployments.metrics import names
from deployments.metrics.disks import count_disk
from deployments.metrics.metric import Metric
from deployments.metrics.ray_page import RayPage
from deployments.metrics.recorder import RECORDER, Recorder, Series, Snapshot, Value
from serve_app.config import MetricsSettings
from serve_app.database.jobs.totals import read_totals
from serve_app.database.jobs.webhooks import read_backlog
from serve_app.database.metric_snapshots import ENDED, KeptSnapshot, read_snapshots, write_snapshots
from serve_app.jobs import TIERS, Job, JobState
from serve_app.metrics.job_values import job_values
from serve_app.metrics.processes import Processes, add_values
from serve_app.registry.state import RegistryState, log
from serve_app.scheduling.activity import Gpu
from serve_app.scheduling.estimates import RemainingCost

EVERY_S = 10.0  # between two times that counts are kept in SQL, and told to Ray
RETRY_S = 1.0
GOOD_S = 1.0  # how long what was read of SQL is good for: any number of scrapers costs as one
ROLE = "registry"
_OF_GPUS = frozenset(
    metric.name
    for metric in (
        names.GPU_MEMORY_TOTAL,
        names.GPU_MEMORY_USED,
        names.GPU_UTILIZATION,
        names.GPU_POWER,
        names.GPU_TEMPERATURE,
    )
)
MOST_FORECASTS = 100_000  # of jobs that are not completed yet; a job beyond has none


class RegistryMetrics:
    """What all processes counted, and all jobs come to.

    Args:
        state: shared with the other parts of the registry.
        settings: how many tenants are told apart.
        recorder: of this process.
    """

    def __init__(self, state: RegistryState, settings: MetricsSettings, recorder: Recorder = RECORDER) -> None:
        self._state = state
        self._settings = settings
        self._recorder = recorder
        self._processes = Processes()
        self._restored = False
        self._ended_number = 0  # of the row of the ended processes
        self._ray_page = RayPage()
        self._jobs: dict[Series, Value] = {}
        self._jobs_until = 0.0  # of a monotonic clock
        self._reading = asyncio.Lock()
        self._forecasts: dict[str, float] = {}  # seconds from acceptance to completion, by job id

    def hear(self, snapshot: Snapshot) -> None:
        """A process says what it has counted."""
        self._processes.hear(snapshot, time.monotonic())

    def note_forecast(self, job: Job) -> None:
        """The job was just accepted, with its place in the queue."""
        if job.place is not None and job.place.finishes_at is not None and len(self._forecasts) < MOST_FORECASTS:
            self._forecasts[job.id] = job.place.finishes_at - job.created_at

    def note_end(self, job: Job) -> None:
        """The job has ended."""
        forecast_s = self._forecasts.pop(job.id, 0.0)
        if forecast_s > 0 and job.state is JobState.COMPLETED and job.completed_at is not None:
            real_s = max(0.0, job.completed_at - job.created_at)
            self._recorder.observe(names.FORECAST_RATIO, real_s / forecast_s, job.tier)

    async def values(self) -> dict[Series, Value]:
        """All series. Raises RegistryUnavailableError: the database is away."""
        jobs = await self._job_values()
        now = time.monotonic()
        self._look(now)
        self._processes.hear(self._recorder.snapshot(ROLE), now)
        values = self._processes.values(now)
        add_values(values, {(names.PROCESSES.name, ()): self._processes.alive(now)})
        return values | jobs

    def gpus(self) -> tuple[Gpu, ...]:
        """Those that a process has told of within the last half minute."""
        values = self._processes.gauges(_OF_GPUS, time.monotonic())

        def gauge(metric: Metric, uuid: str) -> float | None:
            value = values.get((metric.name, (uuid,)))
            return value if isinstance(value, int | float) else None

        uuids = sorted(labels[0] for name, labels in values if name == names.GPU_MEMORY_TOTAL.name)
        return tuple(
            Gpu(
                uuid,
                memory_total=gauge(names.GPU_MEMORY_TOTAL, uuid),
                memory_used=gauge(names.GPU_MEMORY_USED, uuid),
                utilization=gauge(names.GPU_UTILIZATION, uuid),
                power_w=gauge(names.GPU_POWER, uuid),
                temperature_c=gauge(names.GPU_TEMPERATURE, uuid),
            )
            for uuid in uuids
        )

    async def run(self) -> None:
        """Keep what was counted, for ever."""
        await run_forever(self.keep, "the metrics", log, RETRY_S)

    async def keep(self) -> float:
        """Once; returns the pause until the next time. Raises RegistryUnavailableError: the database is away."""
        state, now = self._state, time.monotonic()
        if not self._restored:
            await self._restore(now)
        self._look(now)
        own = self._recorder.snapshot(ROLE)
        self._processes.hear(own, now)
        gone = self._processes.end_silent(now)
        unsaved = self._processes.unsaved()
        rows = [KeptSnapshot(state.owner, one.process, one.role, one.number, one.values) for one in unsaved]
        if gone:
            rows.append(self._ended_row())
        pairs = [(state.owner, process) for process in gone]
        await state.database.run(write_snapshots, rows, pairs, now=state.unix_time())
        self._processes.mark_saved(unsaved)
        told = await self._job_values() | own.values
        await asyncio.to_thread(self._ray_page.tell, told)
        return EVERY_S

    async def _restore(self, now: float) -> None:
        """Take over what a registry before this one kept; on a database of one cluster, what any did."""
        state = self._state
        kept = await state.database.run(read_snapshots, state.owner, alone=state.alone, now=state.unix_time())
        earlier = [row for row in kept if row.owner != state.owner]
        ended = dict(self._processes.ended)
        for row in kept:
            if row.process == ENDED or row in earlier:
                add_values(ended, row.values)
        self._ended_number = max((row.number for row in kept if row.process == ENDED), default=0)
        if earlier:
            self._processes.ended, before = ended, self._processes.ended
            try:
                pairs = [(row.owner, row.process) for row in earlier]
                await state.database.run(write_snapshots, [self._ended_row()], pairs, now=state.unix_time())
            except RegistryUnavailableError:
                self._processes.ended = before
                raise
        self._processes.ended = ended
        for row in kept:
            if row.owner == state.owner and row.process != ENDED:
                self._processes.restore(Snapshot(row.process, row.role, row.number, row.values), now)
        self._restored = True

    def _ended_row(self) -> KeptSnapshot:
        self._ended_number += 1
        return KeptSnapshot(self._state.owner, ENDED, "", self._ended_number, dict(self._processes.ended))

    async def _job_values(self) -> dict[Series, Value]:
        async with self._reading:
            if time.monotonic() >= self._jobs_until:
                database, now = self._state.database, self._state.unix_time()
                totals, (waiting, overdue_s) = await asyncio.gather(
                    database.run(read_totals), database.run(read_backlog, now=now)
                )
                self._recorder.set(names.WEBHOOKS_WAITING, waiting)
                self._recorder.set(names.WEBHOOK_OVERDUE, overdue_s)
                self._jobs = job_values(
                    totals,
                    self._waiting_gpu_s(),
                    now=now,
                    most_tenants=self._settings.tenants,
                )
                self._jobs_until = time.monotonic() + GOOD_S
            return self._jobs

    def _waiting_gpu_s(self) -> Mapping[tuple[str, str], float]:
        """Estimated GPU-seconds that waiting jobs still need, by tier and tenant."""
        remaining = RemainingCost(self._state.costs)
        needed: defaultdict[tuple[str, str], float] = defaultdict(float)
        for job in self._state.waiting.jobs():
            needed[job.tier, job.tenant] += remaining.of(job)
        return needed

    def _look(self, now: float) -> None:
        """Set the gauges of how things stand."""
        for stage in Stage:
            replicas = list(self._state.replicas.alive(stage, now))
            self._recorder.set(names.REPLICAS, len(replicas), stage)
            self._recorder.set(names.SLOTS, sum(info.slots for info in replicas), stage)
        for tier in TIERS:
            self._recorder.set(names.TARGET_WAIT, self._state.scheduling.target_wait_s.of(tier), tier)
        if self._state.database.path is not None:
            count_disk("data", self._state.database.path.parent, self._recorder)
