"""Which samples make room for urgent jobs. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from deployments.messages import Spec, VideoSpec
from serve_app.jobs import TIERS, Tier


@dataclass(frozen=True, slots=True)
class HeldSlot:
    """A slot of a sampler or of an embedder of proteins, and the job in it."""

    job_id: str
    tier: Tier
    tokens: int  # of its state, as `tokens_to_park` has them
    steps_left: int
    parks: int  # how often it was parked
    has_begun: bool = True  # its replica has said that it began
    is_leaving: bool = False  # it was told to stop or to park

    @property
    def opens_soon(self) -> bool:
        return self.is_leaving or self.steps_left <= 1


def tokens_to_park(spec: Spec) -> int:
    """How large its state is that is stored when it parks: its latents. What was done of a file is stored already."""
    return spec.clip.tokens if isinstance(spec, VideoSpec) else 0


def slots_to_open(held: Iterable[HeldSlot], urgent: int, open_slots: int, max_parks: int) -> list[HeldSlot]:
    """The slots to open so that `urgent` waiting interactive jobs find one at the next step.

    Slots that open by themselves within a step count too: those of jobs that yield already or are
    at their last step. Of the others the cheapest to park go first: the lowest tier, then the
    smallest state, then the one with most steps left, because it would hold its slot longest.

    Args:
        held: all slots of a stage that are held.
        max_parks: a job that was parked this often goes on.
    """
    held = list(held)
    opening = open_slots + sum(1 for slot in held if slot.opens_soon)
    candidates = [
        slot
        for slot in held
        if not slot.opens_soon and slot.has_begun and slot.tier is not Tier.INTERACTIVE and slot.parks < max_parks
    ]
    candidates.sort(key=lambda slot: (-TIERS.index(slot.tier), slot.tokens, -slot.steps_left))
    return candidates[: max(0, urgent - opening)]
