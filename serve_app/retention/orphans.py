"""Which files in the bucket nobody needs any more."""

from deployments.keys import FileKind
from serve_app.jobs import FINAL, JobState


def is_needed(kind: FileKind, state: JobState | None) -> bool:
    """Whether a job in `state` may still need a file of this kind. None: there is no such job.

    Work files are needed until the job ends, the video from the moment it is being made until it is deleted with its
    job; of a job that failed or was cancelled neither.
    """
    if state is None:
        return False
    return state not in FINAL or (kind is FileKind.VIDEO and state is JobState.COMPLETED)
