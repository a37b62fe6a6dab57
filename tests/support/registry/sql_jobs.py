"""Jobs in SQL, moved along by the functions of `serve_app.database`."""

from collections.abc import Mapping

from deployments.messages import VIDEO_STAGES, Stage, VideoSpec
from serve_app.config import DAY_S
from serve_app.database.connection import Database
from serve_app.database.jobs import cancellation as cancellation_sql
from serve_app.database.jobs import claims as claims_sql
from serve_app.database.jobs import stage_ends as ends_sql
from serve_app.database.jobs.intake import insert_job
from serve_app.jobs import Acceptance, Job, JobError, JobState, Submission, Usage

SPEC = VideoSpec("a red circle", "", 64, 64, 25, 24, 20, 3.0, 2**53 - 1)
LEASE_S = 30.0


async def accept(database: Database, submission: Submission, now: float) -> Acceptance:
    return await database.run(insert_job, submission, now=now, keep_keys_s=DAY_S)


async def claim(database: Database, stage: Stage, now: float = 100.0, owner: str = "here", **leases: str) -> list[Job]:
    """Claims jobs; `leases` has the lease of each by its id."""
    return await claim_all(database, stage, leases, now=now, owner=owner)


async def claim_all(
    database: Database, stage: Stage, leases: Mapping[str, str], *, now: float = 100.0, owner: str = "here"
) -> list[Job]:
    return await database.run(claims_sql.claim, stage=stage, leases=leases, owner=owner, now=now, lease_s=LEASE_S)


async def end_job(database: Database, job_id: str, state: JobState, at: float) -> None:
    """Takes a job that was accepted to its end."""
    if state is JobState.CANCELLED:
        await database.run(cancellation_sql.cancel, job_id, now=at)
        return
    for stage in VIDEO_STAGES:
        await claim_all(database, stage, {job_id: "lease"}, now=1.0)
        if state is JobState.FAILED:
            await database.run(ends_sql.fail, job_id, "lease", now=at, error=JobError("x", "y"), used=Usage())
            return
        await database.run(ends_sql.finish_stage, job_id, "lease", seconds={}, now=at, used=Usage(device_s=1.0))
