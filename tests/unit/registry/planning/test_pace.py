"""How often what takes long is done anew."""

from dataclasses import dataclass

from serve_app.registry.planning.pace import MAX_TIME_SHARE, MIN_AGE_S, Pace


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_was_never_done_is_due_and_what_takes_nothing_when_it_is_old() -> None:
    clock = Clock()
    pace = Pace(clock, Clock())
    assert pace.is_due()
    with pace.doing():
        pass
    clock.now = MIN_AGE_S
    assert not pace.is_due()
    clock.now += 0.01
    assert pace.is_due() and not pace.is_due(age_s=1)


def test_all_that_belongs_to_it_counts_until_it_is_done_again() -> None:
    clock, busy = Clock(), Clock()
    pace = Pace(clock, busy)
    with pace.doing():
        busy.now += 0.1
    with pace.going_on():
        busy.now += 0.2
    clock.now = 0.3 / MAX_TIME_SHARE - 0.01
    assert not pace.is_due()
    clock.now += 0.02
    assert pace.is_due()
    with pace.doing():
        pass
    clock.now += MIN_AGE_S + 0.01
    assert pace.is_due()
