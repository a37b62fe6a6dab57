"""Which objects in storage belong to which job, and which of them nobody needs any more.

The keys are those of `deployments.messages`. A key of any other form is not ours, whatever it begins with.
"""

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from deployments.messages import poster_key, spritesheet_key, video_key
from deployments.storage.object_store import ListedObject
from serve_app.jobs import FINAL, JobState

WORK_PREFIX = "jobs/"
VIDEO_PREFIX = "videos/"

_VIDEO_KEYS = (video_key, poster_key, spritesheet_key)
_JOB_ID = r"(?P<job_id>video_[0-9a-f]{32})"
_WORK_FILE = re.compile(rf"jobs/{_JOB_ID}/(?:prompt_embeds|latents|sample-[0-9]{{5,}})\.safetensors")
_VIDEO_FILE = re.compile(rf"videos/{_JOB_ID}\.(?:mp4|webp|sprites\.webp)")


class FileKind(StrEnum):
    """WORK: what one stage leaves for the next, and checkpoints. VIDEO: what the client gets, with its pictures."""

    WORK = "work"
    VIDEO = "video"


@dataclass(frozen=True, slots=True)
class JobFile:
    """A key that we write, taken apart."""

    key: str
    job_id: str
    kind: FileKind


class FileStore(Protocol):
    """What is needed of the object store here; see `deployments.storage.object_store.ObjectStore`."""

    def list_pages(self, prefix: str) -> AsyncIterator[list[ListedObject]]: ...

    async def delete_many(self, keys: Sequence[str]) -> None: ...


def parse_key(key: str) -> JobFile | None:
    """The job and kind of a key; None unless it has exactly a form that we write."""
    for kind, form in ((FileKind.WORK, _WORK_FILE), (FileKind.VIDEO, _VIDEO_FILE)):
        if match := form.fullmatch(key):
            return JobFile(key, match["job_id"], kind)
    return None


def is_needed(kind: FileKind, state: JobState | None) -> bool:
    """Whether a job in `state` may still need a file of this kind. None: there is no such job.

    Work files are needed until the job ends, the video from the moment it is being made until it is deleted with its
    job; of a job that failed or was cancelled neither.
    """
    if state is None:
        return False
    return state not in FINAL or (kind is FileKind.VIDEO and state is JobState.COMPLETED)


async def delete_work_files(store: FileStore, job_ids: Sequence[str]) -> int:
    """Delete all that lies under the jobs' own prefixes; returns how many objects that were.

    The jobs must have ended: a live one would have to begin again.
    """
    keys = [key for job_id in job_ids for key in await _work_keys(store, job_id)]
    await store.delete_many(keys)
    return len(keys)


async def delete_all_files(store: FileStore, job_ids: Sequence[str]) -> None:
    """Delete videos, their pictures and work files of jobs that have ended."""
    await delete_work_files(store, job_ids)
    await store.delete_many([key(job_id) for job_id in job_ids for key in _VIDEO_KEYS])


async def _work_keys(store: FileStore, job_id: str) -> list[str]:
    return [listed.key async for page in store.list_pages(f"{WORK_PREFIX}{job_id}/") for listed in page]
