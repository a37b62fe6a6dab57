"""Until when a write waits, and when a registry gives out read leases; all at moments that the test makes up."""

from math import inf

import pytest

from serve_app.feed.read_leases import FeedTiming, Presence, PresenceTiming, ReadLeases

TIMING = FeedTiming(valid_s=2.0)
PRESENCE = PresenceTiming(exclusive_s=3.0, silent_s=15.0, settled_looks=3)


def shared(restarted: bool = False, now: float = 100.0) -> ReadLeases:
    """A registry on a database that others may work on too."""
    return ReadLeases(TIMING, PRESENCE, alone=False, restarted=restarted, now=now)


def settle(leases: ReadLeases, now: float) -> None:
    """It has looked often enough, and found nobody."""
    while not leases.look([]):
        assert not leases.is_exclusive(now)
    leases.hold_exclusive(now)


def test_without_followers_a_write_waits_for_nobody() -> None:
    assert ReadLeases().ends_without(1, published_at=0.0, now=0.0) is None


def test_a_write_waits_for_each_follower_that_does_not_know_of_it() -> None:
    leases = ReadLeases(TIMING)
    leases.renew("a", 4, now=100.0)
    leases.renew("b", 4, now=100.5)
    assert leases.ends_without(4, published_at=101.0, now=101.0) is None
    assert leases.ends_without(5, published_at=101.0, now=101.0) == 102.5
    leases.renew("b", 5, now=101.2)
    assert leases.ends_without(5, published_at=101.0, now=101.2) == 102.0
    assert leases.ends_without(5, published_at=101.0, now=102.0) is None


def test_who_polls_on_and_on_without_taking_it_in_is_not_waited_for_for_ever() -> None:
    leases = ReadLeases(TIMING)
    for moment in (100.0, 101.0, 102.9):
        leases.renew("slow", 4, now=moment)
    assert leases.ends_without(5, published_at=101.0, now=102.9) == 103.0
    assert leases.ends_without(5, published_at=101.0, now=103.0) is None


def test_followers_of_the_life_before_are_waited_out() -> None:
    leases = ReadLeases(TIMING, restarted=True, now=100.0)
    assert leases.ends_without(1, published_at=100.5, now=100.5) == 102.0
    leases.renew("a", 1, now=101.0)
    assert leases.ends_without(1, published_at=100.5, now=101.5) == 102.0
    assert leases.ends_without(1, published_at=100.5, now=102.0) is None


def test_alone_it_is_exclusive_for_ever() -> None:
    leases = ReadLeases()
    assert (leases.presence, leases.is_exclusive(1e9)) == (Presence.EXCLUSIVE, True)


def test_one_that_arrives_waits_until_the_others_know_of_it() -> None:
    leases = shared()
    assert (leases.presence, leases.is_exclusive(100.0)) == (Presence.ARRIVING, False)
    leases.beat(100.0, silent_s=inf)
    assert leases.ends_without(1, published_at=101.0, now=101.0) == 105.0
    leases.beat(101.0, silent_s=1.0)
    assert leases.ends_without(1, published_at=101.0, now=105.0) is None


def test_one_that_is_there_again_at_once_waits_for_nobody() -> None:
    leases = shared()
    leases.beat(100.0, silent_s=7.5)
    assert leases.ends_without(1, published_at=100.0, now=100.0) is None


def test_it_is_exclusive_after_some_looks_that_found_nobody() -> None:
    leases = shared()
    assert [leases.look([]) for _ in range(4)] == [False, False, False, True]
    assert not leases.is_exclusive(100.0)  # what the others did is not read yet
    leases.hold_exclusive(100.0)
    assert (leases.presence, leases.is_exclusive(102.9)) == (Presence.EXCLUSIVE, True)
    assert not leases.is_exclusive(103.0)  # no look for too long
    assert leases.look([])
    leases.hold_exclusive(104.0)
    assert leases.is_exclusive(106.9)


def test_another_one_ends_it_at_once() -> None:
    leases = shared()
    settle(leases, 100.0)
    assert not leases.look(["other"])
    assert (leases.presence, leases.is_exclusive(100.0)) == (Presence.SHARED, False)
    assert leases.look([])
    assert not leases.is_exclusive(120.0)
    leases.hold_exclusive(120.0)
    assert (leases.presence, leases.is_exclusive(120.0)) == (Presence.EXCLUSIVE, True)


@pytest.mark.parametrize(("silent_s", "presence"), [(7.4, Presence.EXCLUSIVE), (7.6, Presence.ARRIVING)])
def test_one_that_was_silent_arrives_anew(silent_s: float, presence: Presence) -> None:
    leases = shared()
    settle(leases, 100.0)
    leases.beat(101.0, silent_s)
    assert leases.presence is presence
    assert leases.is_exclusive(101.0) == (presence is Presence.EXCLUSIVE)
    waits_until = leases.ends_without(1, published_at=101.0, now=101.0)
    assert waits_until == (106.0 if presence is Presence.ARRIVING else None)
