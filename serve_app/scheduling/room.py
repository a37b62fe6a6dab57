"""Where the next tasks of a stage may go: to open slots, and those that are tried alone to empty replicas. Pure."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class Room:
    """What replicas of a stage have room for; tasks are taken off it as they are claimed."""

    open_slots: dict[str, int]  # by replica, of those that may be given anything
    empty: set[str]  # the ones of these that have no task and that none is on its way to
    unplaced: int = 0  # tasks that go to a replica which is not chosen yet

    @classmethod
    def of(cls, slots: Mapping[str, int], placed: Iterable[str | None], closed: Container[str]) -> "Room":
        """The room that tasks leave.

        What a replica holds beyond its slots, because it leaves or has died, takes none from the others.

        Args:
            slots: by replica, as they were announced.
            placed: the replica of each task that is at work or on its way; None if it is not chosen yet.
            closed: replicas that may be given nothing.
        """
        placed = list(placed)
        open_to_all = {name: count for name, count in slots.items() if count and name not in closed}
        return cls(
            open_slots={name: max(0, count - placed.count(name)) for name, count in open_to_all.items()},
            empty=set(open_to_all) - set(placed),
            unplaced=placed.count(None),
        )

    @property
    def count(self) -> int:
        """Slots for further tasks; below 0 if more are on their way than there is room for."""
        return sum(self.open_slots.values()) - self.unplaced

    def find_empty(self) -> str | None:
        """The smallest replica that a task may have to itself, so that what is on its way finds room in the others."""
        fitting = [name for name in self.empty if self.count >= self.open_slots[name]]
        return min(fitting, key=lambda name: (self.open_slots[name], name), default=None)

    def take_slot(self) -> None:
        """A task goes to whichever replica will be chosen."""
        self.unplaced += 1

    def take_replica(self, name: str) -> None:
        """A task gets this replica to itself."""
        self.empty.remove(name)
        del self.open_slots[name]
