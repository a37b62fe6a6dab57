"""The policy that Serve's controller calls: it never raises, and holds what it knew last."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from deployments.messages import Stage
from serve_app.scheduling.scaling.autoscaling import ASK_EVERY_S, CapacityPolicy
from serve_app.scheduling.scaling.capacity import StageNeed, StageState


@dataclass
class Replica:
    unique_id: str


@dataclass
class Context:
    target_num_replicas: int
    running_replicas: list[Replica] = field(default_factory=list)


@dataclass
class Registry:
    """Answers as the test says: None is no answer yet."""

    answer: StageNeed | Exception | None = None
    asked: list[StageState] = field(default_factory=list)

    def __call__(self, state: StageState) -> StageNeed | None:
        self.asked.append(state)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def policy(registry: Registry, clock: Clock) -> CapacityPolicy:
    return CapacityPolicy("JobRegistry", "mochi-serve", "sampling", 2, 0, 8, 0.0, ask=registry, clock=clock)


def test_as_many_as_now_until_the_registry_answers(policy: CapacityPolicy, registry: Registry) -> None:
    assert policy(Context(3)) == (3, {})
    assert registry.asked == [StageState(Stage.SAMPLING, 3, 2, 0, 8)]
    registry.answer = StageNeed(5, 60.0)
    assert policy(Context(3)) == (5, {})


def test_it_asks_about_once_a_second(policy: CapacityPolicy, registry: Registry, clock: Clock) -> None:
    registry.answer = StageNeed(5, 60.0)
    for _ in range(10):
        policy(Context(3))
    assert len(registry.asked) == 1
    clock.now += ASK_EVERY_S
    policy(Context(3))
    assert len(registry.asked) == 2


@pytest.mark.parametrize("error", [ValueError("no such actor"), TimeoutError(), KeyError("sampling")])
def test_an_unreachable_registry_changes_nothing(
    policy: CapacityPolicy, registry: Registry, clock: Clock, error: Exception
) -> None:
    registry.answer = StageNeed(5, 60.0)
    policy(Context(0))
    registry.answer = error
    for _ in range(20):
        clock.now += 100.0
        assert policy(Context(5)) == (5, {})
    registry.answer = StageNeed(6, 60.0)
    clock.now += 100.0
    assert policy(Context(5)) == (6, {})


def test_it_never_raises(policy: CapacityPolicy, registry: Registry) -> None:
    registry.answer = StageNeed(5, 60.0)
    broken: Any = Context(4, [object()])  # type: ignore[list-item]
    assert policy(broken) == (4, {})


def test_the_newest_that_is_busy_is_spared(policy: CapacityPolicy, registry: Registry, clock: Clock) -> None:
    running = [Replica(name) for name in "abc"]
    for busy, kept in (("c", 3), ("b", 2), ("", 0)):
        registry.answer = StageNeed(0, 60.0, frozenset(busy))
        clock.now += ASK_EVERY_S
        policy(Context(3, running))
        clock.now += ASK_EVERY_S
        assert policy(Context(3, running)) == (kept, {})
