from dataclasses import replace

from deployments.messages import Directive, Stage
from serve_app.jobs import Job, JobState, Tier, Usage
from serve_app.registry.leases import Lease, leases_to_park
from tests.support.registry.world import SPEC


def lease(name: str, tier: Tier = Tier.BATCH, step: int = 5, frames: int = 25, parks: int = 0) -> Lease:
    spec = replace(SPEC, num_frames=frames)
    job = Job(name, "mochi-1", spec, JobState.SAMPLING, Stage.SAMPLING, 1, 0.0, tier=tier, lease=name, parks=parks)
    return Lease(job, name, Stage.SAMPLING, 0, 0, reported=Usage(step), has_begun=True)


def parked(*leases: Lease, urgent: int = 1, open_slots: int = 0) -> list[str]:
    return [found.job_id for found in leases_to_park(leases, urgent, open_slots, max_parks=3)]


def test_the_lowest_tier_goes_first_then_the_smallest_then_the_longest() -> None:
    sampling = [
        lease("standard", Tier.STANDARD),
        lease("large", frames=61),
        lease("late", step=15),
        lease("early", step=2),
    ]
    assert parked(*sampling, urgent=4) == ["early", "late", "large", "standard"]
    assert parked(*sampling, urgent=1) == ["early"]


def test_only_what_is_missing_is_parked() -> None:
    sampling = [lease("a"), lease("b")]
    assert parked(*sampling, urgent=0) == []
    assert parked(*sampling, urgent=1, open_slots=1) == []
    assert parked(*sampling, urgent=2, open_slots=1) == ["a"]


def test_a_slot_that_opens_within_a_step_counts() -> None:
    yielding = lease("yielding")
    yielding.directive = Directive.PARK
    assert parked(yielding, lease("other")) == []
    assert parked(lease("ends", step=19), lease("other")) == []
    assert parked(yielding, lease("ends", step=19), lease("other"), urgent=3) == ["other"]


def test_who_is_not_parked() -> None:
    fresh = lease("not begun")
    fresh.has_begun = False
    assert parked(lease("peer", Tier.INTERACTIVE), lease("often", parks=3), fresh, urgent=9) == []
