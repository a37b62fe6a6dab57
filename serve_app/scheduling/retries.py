"""What follows a failed attempt: another one, or the end. Pure.

A job whose replica died, lost its device or ran out of memory, or whose sample ceased to be numbers,
is a suspect until it has passed the place where that happened. Perhaps a neighbour did it, or somebody
killed the process. So a suspect is given a replica to itself (`Room`), and only what happens there is
held against it: after MAX_DEATHS at one place it is failed and not fed to another replica.

A replica that died counts no attempt: how often replicas are killed around a job is nothing that it
does. What bounds the deaths by a deadly job is MAX_DEATHS for each place, and that only the first at
each can hurt neighbours: to reach another place it must have passed this one, alone.

A device that breaks is most likely no fault of the job that it broke with, so no attempt is counted;
but only once a job: one that breaks device after device, each at another place, runs out of attempts.
"""

from dataclasses import dataclass

from deployments.messages import Failed
from serve_app.config import JobSettings
from serve_app.jobs import Job, JobError, retry_pause

OUTAGE_PAUSE_S = 2.0
LONGEST_REMAKE_PAUSE_S = 120.0
REPLICA_DIED = "replica_died"
REPLICA_GONE = "replica_gone"  # it died before it began with the job
# Not the job's fault: no attempt is counted, however long it lasts.
OUTAGES = frozenset({"storage_unavailable", "storage_refused", "replica_unhealthy", REPLICA_GONE})
DEVICE_BROKEN = "device_broken"
OUT_OF_MEMORY = "out_of_memory"
NOT_FINITE = "non_finite_latents"
MAX_DEATHS = {REPLICA_DIED: 4, DEVICE_BROKEN: 4, OUT_OF_MEMORY: 2, NOT_FINITE: 2}
"""How often it may happen at one place, the first time in company: more often where it can come from outside."""
DEADLY = {
    REPLICA_DIED: "{} replicas died",
    DEVICE_BROKEN: "{} replicas lost their device",
    OUT_OF_MEMORY: "{} replicas ran out of memory",
    NOT_FINITE: "sampling gave NaN or infinity {} times",
}
"""What is told of a job with which it happened that often."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Another attempt at the same stage."""

    attempt: int  # its number
    pause_s: float  # it begins after this pause
    deaths: int  # as in Job
    died_at: float | None  # as in Job


def after_failure(
    job: Job,
    event: Failed,
    *,
    progress: float,
    alone: bool,
    settings: JobSettings,
    jitter: float,
    outage_pause_s: float = OUTAGE_PAUSE_S,
) -> Retry | JobError:
    """Decide what follows.

    Args:
        job: as it was when its attempt began or later.
        event: how the attempt ended.
        progress: how far it was, 0 to 1.
        alone: whether it had its replica to itself.
        settings: how often an attempt is made, and the pauses between them.
        jitter: 0 to 1, drawn; takes up to half of the pause, so that what failed together does not
            return together.
        outage_pause_s: the pause after an outage, for which no attempt is counted.
    """
    if not event.transient:
        return JobError(event.code, event.message)
    if event.code in OUTAGES:
        return Retry(job.attempt, outage_pause_s, job.deaths, job.died_at)
    is_first_break = event.code == DEVICE_BROKEN and job.died_at is None
    deaths, died_at = job.deaths, job.died_at
    if event.code in DEADLY:
        deaths = job.deaths + alone if job.suspect_at(progress) else 1
        died_at = max(progress, job.died_at or 0.0)
        if deaths >= MAX_DEATHS[event.code]:
            return _deadly_job_error(job, event, deaths, progress)
    if event.code == REPLICA_DIED:
        return Retry(job.attempt, _pause_s(deaths + 1, settings, jitter), deaths, died_at)
    if is_first_break:
        return Retry(job.attempt, outage_pause_s, deaths, died_at)
    if job.attempt >= settings.max_attempts:
        return JobError(event.code, f"{event.message} (attempt {job.attempt} of {job.attempt}, the last one)")
    attempt = job.attempt + 1
    return Retry(attempt, _pause_s(attempt, settings, jitter), deaths, died_at)


def _pause_s(number: int, settings: JobSettings, jitter: float) -> float:
    """Seconds before the try of this number, 2 and up."""
    return retry_pause(number, settings.retry_pause_s, settings.max_retry_pause_s) * (1 - jitter / 2)


def remake_pause(remakes: int, settings: JobSettings) -> float:
    """Seconds until a stage makes its output again, the `remakes`th time for the job (1 and up).

    While replicas of two revisions of a model run side by side, each may refuse what the other made:
    the pause doubles each time, so that they do not work for nothing until the upgrade is done.
    """
    longest = max(settings.max_retry_pause_s, LONGEST_REMAKE_PAUSE_S)
    return retry_pause(remakes + 1, settings.retry_pause_s, longest)


def _deadly_job_error(job: Job, event: Failed, deaths: int, progress: float) -> JobError:
    advice = "Ask for a smaller size or fewer frames; the log of the replica tells more."
    if event.code == NOT_FINITE:
        advice = "Ask for a lower guidance_scale or another seed."
    where = f"at the same place of this job's work ({job.stage}, {progress:.0%} done)"
    alone = "all but the first with no other job in them" if event.code != NOT_FINITE else "the last time by itself"
    what = DEADLY[event.code].format(deaths)
    message = f"{what} {where}, {alone}; it is not given to another one. {advice} Last: {event.message}"
    return JobError(event.code, message)
