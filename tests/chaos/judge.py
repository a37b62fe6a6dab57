"""What became of the jobs, and whether that is as promised. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

COMPLETED = "completed"
FAILED = ("failed", "cancelled")
FINAL = (COMPLETED, *FAILED)


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of an accepted job.

    state: None if the API does not know the job. steps: asked for. completions: moves to `completed` in its history.
    difference: how its video differs from the undisturbed run's, None if it does not. error: why it failed.
    """

    job_id: str
    state: str | None
    steps: int
    steps_run: int
    completions: int
    difference: str | None = None
    error: str | None = None
    moves: tuple[str, ...] = ()

    @property
    def problems(self) -> list[str]:
        found = []
        if self.completions > 1:
            found.append(f"completed {self.completions} times")
        if self.state not in FINAL:
            found.append("unknown to the API" if self.state is None else f"still {self.state} at the limit")
        if self.state in FAILED:
            found.append(f"{self.state}: {self.error}")
        if self.state == COMPLETED and self.difference is not None:
            found.append(f"another video: {self.difference}")
        return found


@dataclass(frozen=True, slots=True)
class Outcome:
    """One fault's run.

    requests: sent. in_flight: jobs accepted and not final at the first strike. refused: requests that were not accepted
    in time, with the last answer. unasked: jobs that exist though no request was told of them: a request that was
    repeated has become two jobs. sums: what the metrics and the database say, where they are not the same. odd: answers
    that a client does not expect, and how often. repeated: why requests had to be sent again, and how often.
    """

    fault: str
    requests: int
    ended: tuple[Ended, ...]
    strikes: int
    in_flight: int
    seconds: float
    refused: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()
    odd: dict[str, int] = field(default_factory=dict)
    repeated: dict[str, int] = field(default_factory=dict)
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def row(self) -> dict[str, Any]:
        """The figures of the table."""
        ended = self.ended
        return {
            "fault": self.fault,
            "in flight": self.in_flight,
            "accepted": len(ended),
            "completed": sum(e.state == COMPLETED for e in ended),
            "completed twice": sum(e.completions > 1 for e in ended) + len(self.unasked),
            "lost": sum(e.state not in FINAL for e in ended) + len(self.refused),
            "failed": sum(e.state in FAILED for e in ended),
            "steps run twice": sum(e.steps_run - e.steps for e in ended if e.state == COMPLETED),
            "videos different": sum(e.state == COMPLETED and e.difference is not None for e in ended),
            "sums different": len(self.sums),
            "requests repeated": sum(self.repeated.values()),
            "strikes": self.strikes,
            "seconds": round(self.seconds, 1),
        }

    @property
    def clean(self) -> bool:
        """Every request became one job, and every job one video, the right one; and the metrics tell of them all."""
        bad = ("completed twice", "lost", "failed", "videos different", "sums different")
        return not any(self.row[name] for name in bad)

    @property
    def complaints(self) -> list[str]:
        """One text for each job, and each sum, that is not as promised."""
        told = [f"a request was not accepted: {why}" for why in self.refused]
        told += [f"{job_id}: made by a repeated request, which another job answers" for job_id in self.unasked]
        told += [
            f"{name} is beyond the jobs' rows by {now}, and was by {before}"
            for name, (now, before) in self.sums.items()
        ]
        return told + [_complaint(e) for e in self.ended if e.problems]


def _complaint(ended: Ended) -> str:
    return "\n    ".join([f"{ended.job_id}: {'; '.join(ended.problems)}", *ended.moves])


def as_json(seed: int, outcomes: Sequence[Outcome], skipped: dict[str, str], trouble: Sequence[str]) -> dict[str, Any]:
    """The last line of a run."""
    return {
        "seed": seed,
        "clean": all(o.clean for o in outcomes) and not trouble,
        "skipped": skipped,
        "trouble": list(trouble),
        "faults": [{name.replace(" ", "_"): value for name, value in o.row.items()} | {"odd": o.odd} for o in outcomes],
    }
