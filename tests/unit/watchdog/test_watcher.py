"""When a silent process counts as hung."""

from deployments.watchdog.watcher import Activity, Silence

TICK_S, IDLE_S, SILENT_S = 2.0, 10.0, 120.0


def silence(begun: bool = True) -> Silence:
    made = Silence(TICK_S, IDLE_S, SILENT_S)
    if begun:
        made.end()
    return made


def ticks_until_hung(made: Silence, activity: Activity, most: int = 1000) -> int | None:
    """How many looks on time it takes; None if it never does."""
    return next((tick for tick in range(1, most) if made.lasts(TICK_S, activity)), None)


def test_who_is_silent_and_does_nothing_hangs_after_the_short_time() -> None:
    assert ticks_until_hung(silence(), Activity.IDLE) == IDLE_S / TICK_S
    assert ticks_until_hung(silence(), Activity.STOPPED) == IDLE_S / TICK_S


def test_who_is_silent_and_works_has_the_long_time() -> None:
    assert ticks_until_hung(silence(), Activity.BUSY) == SILENT_S / TICK_S


def test_a_sign_begins_both_times_anew() -> None:
    made = silence()
    for _ in range(100):
        assert not made.lasts(TICK_S, Activity.IDLE)
        assert not made.lasts(TICK_S, Activity.BUSY)
        made.end()
    assert ticks_until_hung(made, Activity.IDLE) == IDLE_S / TICK_S


def test_work_in_between_lengthens_the_short_time_only_by_itself() -> None:
    made = silence()
    assert not any(made.lasts(TICK_S, Activity.IDLE) for _ in range(3))
    assert not any(made.lasts(TICK_S, Activity.BUSY) for _ in range(10))
    assert ticks_until_hung(made, Activity.IDLE) == IDLE_S / TICK_S - 3


def test_a_loading_process_may_be_silent_but_not_stopped() -> None:
    assert ticks_until_hung(silence(begun=False), Activity.IDLE) is None
    assert ticks_until_hung(silence(begun=False), Activity.BUSY) is None
    assert ticks_until_hung(silence(begun=False), Activity.STOPPED) == IDLE_S / TICK_S
    interrupted = silence(begun=False)
    for _ in range(100):
        assert not interrupted.lasts(TICK_S, Activity.STOPPED)
        assert not interrupted.lasts(TICK_S, Activity.IDLE)


def test_a_look_that_is_late_counts_as_one_on_time() -> None:
    """The machine slept, or this process was frozen or starved itself."""
    made = silence()
    for _ in range(int(IDLE_S / TICK_S) - 1):
        assert not made.lasts(3600, Activity.IDLE)
    assert made.lasts(3600, Activity.IDLE)
