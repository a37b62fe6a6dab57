"""What follows a failed attempt: another one, or the end. Pure.

A job whose replica died, lost its device or ran out of memory, or whose sample ceased to be numbers,
is a suspect until it has passed the place where that happened. A second time at the same place is the
job's own doing: it is failed and not fed to a third replica. The registry runs no more suspects at
once than there are replicas, so that jobs that shared a replica with a deadly one are not blamed
together with it.

A device that breaks is most likely no fault of the job that it broke with, so no attempt is counted;
but only once a job: one that breaks device after device, each at another place, runs out of attempts.
"""

from dataclasses import dataclass

from deployments.messages import Failed
from serve_app.config import JobSettings
from serve_app.jobs import Job, JobError, retry_pause

MAX_DEATHS = 2
OUTAGE_PAUSE_S = 2.0
LONGEST_REMAKE_PAUSE_S = 120.0
# Neither the job's fault nor the replica's: no attempt is counted, however long it lasts.
OUTAGES = frozenset({"storage_unavailable", "storage_refused", "replica_unhealthy"})
REPLICA_DIED = "replica_died"
DEVICE_BROKEN = "device_broken"
NOT_FINITE = "non_finite_latents"
DEADLY = {
    REPLICA_DIED: f"{MAX_DEATHS} replicas died",
    DEVICE_BROKEN: f"{MAX_DEATHS} replicas lost their device",
    "out_of_memory": f"{MAX_DEATHS} replicas ran out of memory",
    NOT_FINITE: f"sampling gave NaN or infinity {MAX_DEATHS} times",
}
"""What is told of a job with which it happened a second time."""


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
    settings: JobSettings,
    jitter: float,
    outage_pause_s: float = OUTAGE_PAUSE_S,
) -> Retry | JobError:
    """Decide what follows.

    Args:
        job: as it was when its attempt began or later.
        event: how the attempt ended.
        progress: how far it was, 0 to 1.
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
        deaths, died_at = (job.deaths + 1 if job.suspect_at(progress) else 1), progress
    if deaths >= MAX_DEATHS and event.code in DEADLY:
        return _deadly_job_error(job, event, progress)
    if is_first_break:
        return Retry(job.attempt, outage_pause_s, deaths, died_at)
    if job.attempt >= settings.max_attempts:
        return JobError(event.code, f"{event.message} (attempt {job.attempt} of {job.attempt}, the last one)")
    attempt = job.attempt + 1
    pause = retry_pause(attempt, settings.retry_pause_s, settings.max_retry_pause_s)
    return Retry(attempt, pause * (1 - jitter / 2), deaths, died_at)


def remake_pause(remakes: int, settings: JobSettings) -> float:
    """Seconds until a stage makes its output again, the `remakes`th time for the job (1 and up).

    While replicas of two revisions of a model run side by side, each may refuse what the other made:
    the pause doubles each time, so that they do not work for nothing until the upgrade is done.
    """
    longest = max(settings.max_retry_pause_s, LONGEST_REMAKE_PAUSE_S)
    return retry_pause(remakes + 1, settings.retry_pause_s, longest)


def _deadly_job_error(job: Job, event: Failed, progress: float) -> JobError:
    advice = "Ask for a smaller size or fewer frames; the log of the replica tells more."
    if event.code == NOT_FINITE:
        advice = "Ask for a lower guidance_scale or another seed."
    where = f"at the same place of this job's work ({job.stage}, {progress:.0%} done)"
    message = f"{DEADLY[event.code]} {where}; it is not given to another one. {advice} Last: {event.message}"
    return JobError(event.code, message)
