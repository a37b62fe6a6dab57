"""Which running jobs make room for interactive ones. Pure."""

from collections.abc import Iterable

from deployments.messages import Directive
from serve_app.jobs import TIERS, Tier
from serve_app.registry.leases import Lease
from serve_app.scheduling.fitting import sample_tokens


def leases_to_park(sampling: Iterable[Lease], urgent: int, open_slots: int, max_parks: int) -> list[Lease]:
    """The leases to yield so that `urgent` waiting interactive jobs find a slot at the next step.

    Slots that open by themselves within a step count too: those of jobs that yield already or are at their last step.
    Of the others the cheapest to park go first: the lowest tier, then the smallest state, then the one with most steps
    left, because it would hold its slot longest.

    Args:
        sampling: all leases of the sampling stage.
        max_parks: a job that was parked this often goes on.
    """
    sampling = list(sampling)
    opening = open_slots + sum(1 for lease in sampling if _opens_soon(lease))
    candidates = [lease for lease in sampling if not _opens_soon(lease) and _may_be_parked(lease, max_parks)]
    candidates.sort(key=lambda lease: (-TIERS.index(lease.job.tier), sample_tokens(lease.job.spec), -lease.steps_left))
    return candidates[: max(0, urgent - opening)]


def _opens_soon(lease: Lease) -> bool:
    return lease.directive is not Directive.CONTINUE or lease.steps_left <= 1


def _may_be_parked(lease: Lease, max_parks: int) -> bool:
    return lease.begun and lease.job.tier is not Tier.INTERACTIVE and lease.job.parks < max_parks
