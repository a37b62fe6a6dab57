"""Where each object of a job lies in the bucket: the one place that writes storage keys and reads them back."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from deployments.keys import poster_key, spritesheet_key, video_key

Variant = Literal["video", "thumbnail", "spritesheet"]


_KEYS: dict[Variant, Callable[[str], str]] = {
    "video": video_key,
    "thumbnail": poster_key,
    "spritesheet": spritesheet_key,
}


def object_key(job_id: str, variant: Variant) -> str:
    """Where the decoder wrote the variant: the mp4, or one of its pictures (WebP)."""
    return _KEYS[variant](job_id)


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


def parse_key(key: str) -> JobFile | None:
    """The job and kind of a key; None unless it has exactly a form that we write."""
    for kind, form in ((FileKind.WORK, _WORK_FILE), (FileKind.VIDEO, _VIDEO_FILE)):
        if match := form.fullmatch(key):
            return JobFile(key, match["job_id"], kind)
    return None


def prompt_embeds_key(job_id: str) -> str:
    """Object with the encoded prompt and negative prompt, written by the encoder."""
    return f"jobs/{job_id}/prompt_embeds.safetensors"


def checkpoint_key(job_id: str, step: int) -> str:
    """Object with the whole state of a sample after `step` steps, written by the sampler."""
    return f"{checkpoint_prefix(job_id)}{step:05}.safetensors"


def checkpoint_prefix(job_id: str) -> str:
    """What the keys of a job's checkpoints begin with; they sort by step."""
    return f"jobs/{job_id}/sample-"


def latents_key(job_id: str) -> str:
    """Object with the final latents, written by the sampler."""
    return f"jobs/{job_id}/latents.safetensors"


def video_key(job_id: str) -> str:
    """The mp4, written by the decoder."""
    return f"videos/{job_id}.mp4"


def poster_key(job_id: str) -> str:
    """The poster image (WebP), written by the decoder before the mp4."""
    return f"videos/{job_id}.webp"


def spritesheet_key(job_id: str) -> str:
    """The picture with small frames of the whole video (WebP), written by the decoder before the mp4."""
    return f"videos/{job_id}.sprites.webp"
