"""Jobs to rows of SQL, and rows to jobs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, not_, or_, select, true

from deployments.messages import Stage, spec_from_json
from serve_app.database.schema import jobs
from serve_app.jobs import AS_MADE, DraftReason, Expiry, Job, JobError, JobState, Origin, Relation, Requested, Tier

MAX_IDS = 500  # in one statement: SQLite bounds its parameters

_OWN_COLUMNS = {field.name for field in fields(Job)} - {"error", "origin", "place", "preview_step", "last_move"}
_ERROR_AND_ORIGIN = {"error_code", "error_message", "origin_id", "origin_relation"}
JOB = select(*(column for column in jobs.c if column.name in _OWN_COLUMNS | _ERROR_AND_ORIGIN))
"""Selects what `job_from_row` needs."""


def new_row(job: Job) -> dict[str, Any]:
    """The values of a job that was just accepted; the columns left out begin with their defaults."""
    return {
        "id": job.id,
        "model": job.model,
        "kind": job.kind,
        "spec": job.spec.to_json(),
        "state": job.state,
        "stage": job.stage,
        "attempt": job.attempt,
        "step": job.step,
        "progress": job.progress,
        "tenant": job.tenant,
        "tier": job.tier,
        "created_at": job.created_at,
        "available_at": job.available_at,
        "seconds": job.seconds,
        "origin_id": None if job.origin is None else job.origin.video_id,
        "origin_relation": None if job.origin is None else job.origin.relation,
        "webhook_url": job.webhook_url,
        # As JSON; null for what most requests are.
        "requested": None if job.requested == AS_MADE else asdict(job.requested),
        "cancel_at": job.cancel_at,
        "traceparent": job.traceparent,
    }


def changed_columns(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values by column from values by field of Job."""
    columns = dict(changes)
    error: JobError | None = columns.pop("error", None)
    if error is not None:
        columns |= {"error_code": error.code, "error_message": error.message}
    return columns


def job_from_row(row: Mapping[Any, Any]) -> Job:
    """The job of a row that `JOB` selected."""
    values: dict[str, Any] = dict(row)
    code = values.pop("error_code")
    message = values.pop("error_message")
    origin_id = values.pop("origin_id")
    relation = values.pop("origin_relation")
    requested = values.pop("requested")
    values |= {
        "spec": spec_from_json(values["spec"]),
        "state": JobState(values["state"]),
        "stage": Stage(values["stage"]),
        "tier": Tier(values["tier"]),
        "error": None if code is None else JobError(code, message),
        "origin": None if origin_id is None else Origin(origin_id, Relation(relation)),
        "requested": AS_MADE if requested is None else _requested(requested),
    }
    return Job(**values)


def _requested(values: dict[str, Any]) -> Requested:
    draft = values.get("draft")
    return Requested(
        **values | {"ignored": tuple(values["ignored"]), "draft": None if draft is None else DraftReason(**draft)}
    )


def find_jobs(connection: Connection, query: Select[Any]) -> list[Job]:
    """The jobs that a query made from `JOB` finds."""
    return [job_from_row(row) for row in connection.execute(query).mappings()]


def get_job(connection: Connection, job_id: str) -> Job | None:
    jobs_found = find_jobs(connection, JOB.where(jobs.c.id == job_id))
    return jobs_found[0] if jobs_found else None


def read_job(connection: Connection, job_id: str, *, expiry: Expiry) -> Job | None:
    """The job as clients see it: None also if it has expired."""
    jobs_found = find_jobs(connection, JOB.where(jobs.c.id == job_id, is_kept(expiry)))
    return jobs_found[0] if jobs_found else None


def is_kept(expiry: Expiry) -> ColumnElement[bool]:
    """`Expiry.has_passed` in SQL, turned round: the job has not expired. All that clients read of SQL goes by it."""
    is_completed = jobs.c.state == JobState.COMPLETED
    expired = [
        and_(kind, jobs.c.completed_at.is_not(None), jobs.c.completed_at + kept_s < expiry.before)
        for kind, kept_s in ((is_completed, expiry.completed_s), (~is_completed, expiry.failed_s))
        if kept_s is not None
    ]
    return not_(or_(*expired)) if expired else true()


def lock_job(connection: Connection, job_id: str) -> Job | None:
    """As `get_job`, with its row locked until the end of the transaction."""
    jobs_found = find_jobs(connection, JOB.where(jobs.c.id == job_id).with_for_update())
    return jobs_found[0] if jobs_found else None


def get_jobs(connection: Connection, ids: Iterable[str]) -> list[Job]:
    """The jobs with these ids, in their order; unknown ones are left out."""
    ids = list(ids)
    jobs_by_id: dict[str, Job] = {}
    for batch in batches(ids):
        jobs_by_id |= {job.id: job for job in find_jobs(connection, JOB.where(jobs.c.id.in_(batch)))}
    return [jobs_by_id[job_id] for job_id in ids if job_id in jobs_by_id]


def batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """The ids in parts, none longer than one statement takes."""
    for start in range(0, len(ids), MAX_IDS):
        yield ids[start : start + MAX_IDS]
