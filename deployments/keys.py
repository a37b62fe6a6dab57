"""The storage keys of a job's objects: the one place that writes and parses them.

Work files lie under jobs/<job id>/, what clients get under videos/ and proteins/. A key of any other form is not
ours, whatever it begins with.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

WORK_PREFIX = "jobs/"
VIDEO_PREFIX = "videos/"
PROTEIN_PREFIX = "proteins/"


class FileKind(StrEnum):
    """Who needs a file."""

    WORK = "work"  # the next stage, or the next attempt
    RESULT = "result"  # the client


Variant = Literal["video", "thumbnail", "spritesheet"]
"""The files of a finished video: the mp4, its poster, and small frames of the whole video (both WebP)."""

_SUFFIXES: dict[Variant, str] = {"video": ".mp4", "thumbnail": ".webp", "spritesheet": ".sprites.webp"}

_JOB_ID = "(?P<job_id>video_[0-9a-f]{32})"
_PROTEIN_JOB_ID = "(?P<job_id>proteins_[0-9a-f]{32})"
_FORMS = (
    (FileKind.WORK, rf"{WORK_PREFIX}{_JOB_ID}/(?:prompt_embeds|latents|sample-[0-9]{{5,}})\.safetensors"),
    (FileKind.RESULT, rf"{VIDEO_PREFIX}{_JOB_ID}(?:{'|'.join(map(re.escape, _SUFFIXES.values()))})"),
    (FileKind.WORK, rf"{WORK_PREFIX}{_PROTEIN_JOB_ID}/part-[0-9]{{5,}}\.json"),
    (FileKind.RESULT, rf"{PROTEIN_PREFIX}{_PROTEIN_JOB_ID}/part-[0-9]{{5,}}\.(?:safetensors|npz)"),
)


def prompt_embeds_key(job_id: str) -> str:
    """The encoded prompt and negative prompt, written by the encoder."""
    return f"{work_prefix(job_id)}prompt_embeds.safetensors"


def checkpoint_key(job_id: str, step: int) -> str:
    """The whole state of a sample after `step` steps, written by the sampler."""
    return f"{checkpoint_prefix(job_id)}{step:05}.safetensors"


def checkpoint_prefix(job_id: str) -> str:
    """What the keys of a job's checkpoints begin with; they sort by step."""
    return f"{work_prefix(job_id)}sample-"


def latents_key(job_id: str) -> str:
    """The final latents, written by the sampler."""
    return f"{work_prefix(job_id)}latents.safetensors"


def work_prefix(job_id: str) -> str:
    """What the keys of a job's work files begin with."""
    return f"{WORK_PREFIX}{job_id}/"


def video_key(job_id: str, variant: Variant = "video") -> str:
    """The mp4 or one of its pictures, written by the decoder: the pictures first."""
    return f"{VIDEO_PREFIX}{job_id}{_SUFFIXES[variant]}"


def video_keys(job_id: str) -> list[str]:
    """All that clients can get of a job."""
    return [video_key(job_id, variant) for variant in _SUFFIXES]


def asked_part_key(job_id: str, part: int) -> str:
    """A part of a file of proteins as it was sent: its sequences."""
    return f"{work_prefix(job_id)}part-{part:05}.json"


def answered_part_key(job_id: str, part: int, file_format: str) -> str:
    """The answers to a part of a file of proteins."""
    return f"{answers_prefix(job_id)}part-{part:05}.{file_format}"


def answers_prefix(job_id: str) -> str:
    """What the keys of all answers to a file of proteins begin with."""
    return f"{PROTEIN_PREFIX}{job_id}/"


def is_of_proteins(job_id: str) -> bool:
    """Whether it is the id of a job for a file of proteins."""
    return job_id.startswith("proteins_")


@dataclass(frozen=True, slots=True)
class JobFile:
    """A key of ours, taken apart."""

    key: str
    job_id: str
    kind: FileKind


def parse_key(key: str) -> JobFile | None:
    """The job and kind of a key; None unless it has exactly a form that is written here."""
    for kind, form in _FORMS:
        if match := re.fullmatch(form, key):
            return JobFile(key, match["job_id"], kind)
    return None
