"""Random walks through all that happens to jobs: after every step the metrics equal what the rows say, to the unit."""

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from sqlalchemy import Connection, select

from deployments.messages import Stage
from deployments.metrics import names
from serve_app.database.connection import Database
from serve_app.database.jobs import cancellation as cancellation_sql
from serve_app.database.jobs import claims as claims_sql
from serve_app.database.jobs import stage_ends as ends_sql
from serve_app.database.jobs.deletion import delete_expired_jobs
from serve_app.database.jobs.intake import insert_job
from serve_app.database.jobs.rows import JOB, find_jobs
from serve_app.database.jobs.totals import read_totals
from serve_app.database.schema import jobs
from serve_app.jobs import FINAL, Job, JobError, JobState, Submission, Tier, Usage
from serve_app.metrics.job_values import job_values
from tests.support.registry.world import SPEC

STEPS = 150
TENANTS = ("a", "b", "c")


@dataclass
class Walk:
    """What a walk knows beside the database: the jobs that it deleted, and why others went back."""

    draw: random.Random
    now: float = 1000.0
    made: int = 0
    deleted: list[Job] = field(default_factory=list)
    retries: Counter[str] = field(default_factory=Counter)

    def step(self, connection: Connection) -> None:
        """Something happens to some job, or a new one comes."""
        self.now += self.draw.uniform(0, 5)
        found = find_jobs(connection, JOB.order_by(jobs.c.id))
        if not found or self.draw.random() < 0.25:
            return self._submit(connection)
        job = self.draw.choice(found)
        if job.final:
            self._delete(connection, job)
        elif job.lease is not None:
            self._held(connection, job, job.lease)
        elif self.draw.random() < 0.1:
            self._cancel_or_delete(connection, job)
        else:
            leases = {job.id: f"{job.id} {self.now}"}
            claims_sql.claim(connection, stage=job.stage, leases=leases, owner="o", now=self.now, lease_s=30.0)

    def _submit(self, connection: Connection) -> None:
        self.made += 1
        tenant, tier = self.draw.choice(TENANTS), self.draw.choice(list(Tier))
        submission = Submission(f"job-{self.made:04}", "m", SPEC, tenant=tenant, tier=tier)
        for _ in range(self.draw.choice((1, 1, 2))):  # repeated, it is the same job
            insert_job(connection, submission, now=self.now, keep_keys_s=60.0)

    def _delete(self, connection: Connection, job: Job) -> None:
        if self.draw.random() < 0.3:
            self.deleted.append(job)
            delete_expired_jobs(connection, [job.id])

    def _cancel_or_delete(self, connection: Connection, job: Job) -> None:
        used = Usage(device_s=0.25) if job.lease is not None else Usage()
        if self.draw.random() < 0.5:
            cancellation_sql.cancel(connection, job.id, now=self.now, lease=job.lease, used=used)
            return
        ended = cancellation_sql.delete(connection, job.id, tenant=None, now=self.now, lease=job.lease, used=used)
        assert isinstance(ended, Job)
        self.deleted.append(ended)

    def _held(self, connection: Connection, job: Job, lease: str) -> None:
        left = job.video.num_inference_steps - job.step
        steps = self.draw.randint(0, left) if job.stage is Stage.SAMPLING else 0
        used = Usage(steps=steps, device_s=self.draw.choice((0.25, 0.5, 1.0)))
        step = job.step + steps
        code = self.draw.choice(("replica_died", "replica_lost"))
        match self.draw.choice(
            ("finish",) * 4 + ("renew", "checkpoint", "retry", "back", "park", "fail", "end", "lapsed")
        ):
            case "renew":
                times = {"expires_at": self.now + 30, "step": step, "progress": 0.5}
                claims_sql.renew(connection, job.id, lease, **times, used=used)  # type: ignore[arg-type]
            case "checkpoint":
                claims_sql.keep_checkpoint(connection, job.id, lease, step=job.step)
            case "retry":
                self.retries[code] += 1
                again = {
                    "available_at": self.now + 1,
                    "note": "",
                    "attempt": job.attempt + 1,
                    "deaths": 0,
                    "died_at": None,
                }
                ends_sql.retry(connection, job.id, lease, now=self.now, code=code, used=used, **again)  # type: ignore[arg-type]
            case "back" if job.stage is not Stage.ENCODING:
                self.retries["input_unusable"] += 1
                ends_sql.go_back(connection, job.id, lease, now=self.now, available_at=self.now + 1, note="", used=used)
            case "park" if job.stage is Stage.SAMPLING:
                ends_sql.park(connection, job.id, lease, now=self.now, step=step, used=used, note="")
            case "fail":
                error = JobError(self.draw.choice(("broken", "bad_luck")), "")
                ends_sql.fail(connection, job.id, lease, now=self.now, error=error, used=used)
            case "end":
                self._cancel_or_delete(connection, job)
            case "lapsed":
                assert claims_sql.renew(connection, job.id, "old", expires_at=0, step=0, progress=0, used=used) is False
            case _:
                whole = Usage(left if job.stage is Stage.SAMPLING else 0, used.device_s)
                ends_sql.finish_stage(connection, job.id, lease, seconds={"store": 0.5}, now=self.now, used=whole)

    def check(self, connection: Connection) -> None:
        """The metrics are what can be counted by hand."""
        every = [*find_jobs(connection, select(JOB.subquery())), *self.deleted]
        found = job_values(read_totals(connection), {}, now=self.now, most_tenants=50)
        live = Counter(job.state for job in every if not job.final)
        accepted = Counter((job.tier, job.tenant) for job in every)
        ended = Counter((job.state, job.tier, job.tenant) for job in every if job.final)
        failed = Counter(job.error.code for job in every if job.state is JobState.FAILED and job.error)
        expected: dict[tuple[str, tuple[str, ...]], float] = {
            (names.JOBS_UNACCOUNTED.name, ()): 0,
            (names.PARKS.name, ()): sum(job.parks for job in every),
            (names.STEPS_REPEATED.name, ()): sum(max(0, job.steps_run - job.step) for job in every),
            **{(names.JOBS_LIVE.name, (state,)): count for state, count in live.items()},
            **{(names.JOBS_ACCEPTED.name, of): count for of, count in accepted.items()},
            **{(names.JOBS_ENDED.name, of): count for of, count in ended.items()},
            **{(names.JOBS_FAILED.name, (code,)): count for code, count in failed.items()},
            **{(names.RETRIES.name, (code,)): count for code, count in self.retries.items()},
        }
        for tenant in {job.tenant for job in every}:
            of_tenant = [job for job in every if job.tenant == tenant]
            expected[names.GPU_SECONDS.name, (tenant,)] = sum(job.device_s for job in of_tenant)
            expected[names.STEPS_RUN.name, (tenant,)] = sum(job.steps_run for job in of_tenant)
        # Quarters of seconds are whole in binary: their sums are exact in any order.
        assert {series: found.get(series, 0) for series in expected} == expected
        for metric in (names.JOBS_ACCEPTED, names.JOBS_LIVE, names.JOBS_FAILED, names.RETRIES):
            of_metric = {series: value for series, value in found.items() if series[0] == metric.name}
            assert {series for series, value in of_metric.items() if value} <= expected.keys()


@pytest.mark.parametrize("seed", range(3))
async def test_after_every_step_the_metrics_equal_the_rows(database_url: str, seed: int) -> None:
    walk = Walk(random.Random(seed))
    database = Database(database_url)
    highest: dict[tuple[str, tuple[str, ...]], float] = {}
    counters = {metric.name for metric in names.ALL if metric.kind == "counter"}
    for number in range(STEPS):
        await database.run(walk.step)
        await database.run(walk.check)
        totals = await database.run(read_totals)
        for series, value in job_values(totals, {}, now=walk.now, most_tenants=50).items():
            if series[0] in counters:
                assert isinstance(value, int | float) and value >= highest.get(series, 0), "a counter fell"
                highest[series] = value
        if number % 50 == 49:  # the registry is killed, and another one opens the database
            database.close()
            database = Database(database_url)
    assert {state for (_, labels) in highest for state in labels} >= {state.value for state in FINAL}
    database.close()
