"""Snapshots of processes become one: each counts once, and nothing that was counted is lost."""

from hypothesis import given
from hypothesis import strategies as st

from deployments.metrics import names
from deployments.metrics.recorder import Recorder, Series, Snapshot, Value
from serve_app.metrics.processes import ENDED_S, SILENT_S, Processes

COUNTED = (names.CHECKPOINTS.name, ())
LAG = (names.FEED_LAG.name, ())
SLOTS = (names.SLOTS.name, ("sampling",))


def snapshot(process: str, number: int, checkpoints: int, **gauges: float) -> Snapshot:
    values: dict[Series, Value] = {
        COUNTED: checkpoints,
        **{(f"{names.PREFIX}{name}", ()): value for name, value in gauges.items()},
    }
    return Snapshot(process, "x", number, values)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.booleans()), max_size=40), st.randoms())
def test_repeated_and_late_snapshots_count_once(events: list[tuple[str, int, bool]], draw: object) -> None:
    """Each process counts on; its snapshots come in any order, some twice; the registry ends and is restored."""
    processes = Processes()
    sent: list[Snapshot] = []
    kept: dict[str, Snapshot] = {}
    counts = {"a": 0, "b": 0, "c": 0}
    for number, (process, more, restarts) in enumerate(events, 1):
        counts[process] += more
        sent.append(snapshot(process, number, counts[process]))
        for one in (sent[-1], sent[0], sent[len(sent) // 2]):
            processes.hear(one, 0.0)
        if restarts:
            unsaved = processes.unsaved()
            kept |= {one.process: one for one in unsaved}
            processes.mark_saved(unsaved)
            assert processes.unsaved() == []
            processes = Processes()
            for one in kept.values():
                processes.restore(one, 0.0)
    assert processes.values(0.0).get(COUNTED, 0) == sum(counts.values())


def test_the_counts_of_a_process_that_ended_stay() -> None:
    processes = Processes()
    processes.hear(snapshot("a", 1, 5), 0.0)
    processes.hear(snapshot("b", 1, 7), ENDED_S)
    assert processes.end_silent(ENDED_S + 1) == ["a"]
    assert processes.ended == {COUNTED: 5}
    assert processes.values(ENDED_S + 1)[COUNTED] == 12
    processes.hear(snapshot("a", 2, 6), ENDED_S + 2)  # it comes back from the dead: its counts are in already
    assert processes.values(ENDED_S + 2)[COUNTED] == 12


def test_gauges_of_a_process_that_is_not_heard_are_left_out() -> None:
    processes = Processes()
    processes.hear(snapshot("a", 1, 5, feed_lag_seconds=9.0), 0.0)
    processes.hear(snapshot("b", 1, 7, feed_lag_seconds=2.0), SILENT_S)
    assert processes.values(SILENT_S)[LAG] == 9.0  # the largest of both
    assert processes.values(SILENT_S + 1)[LAG] == 2.0
    assert (processes.alive(SILENT_S), processes.alive(SILENT_S + 1)) == (2, 1)
    assert processes.values(SILENT_S + 1)[COUNTED] == 12


def test_gauges_of_several_processes_are_added_where_they_count() -> None:
    processes = Processes()
    for name in "ab":
        processes.hear(Snapshot(name, "x", 1, {SLOTS: 4}), 0.0)
    assert processes.values(0.0) == {SLOTS: 8}


def test_only_counts_are_kept() -> None:
    processes = Processes()
    processes.hear(snapshot("a", 3, 5, feed_lag_seconds=9.0), 0.0)
    assert processes.unsaved() == [Snapshot("a", "x", 3, {COUNTED: 5})]


def test_labels_of_all_processes_together_are_bounded() -> None:
    processes = Processes()
    (shape, _) = names.STEP_SECONDS.labels
    assert shape.most is not None
    for process in range(3):
        recorder = Recorder()
        for number in range(shape.most):
            recorder.observe(names.STEP_SECONDS, 0.1, f"{process}x{number}", "exact")
        processes.hear(recorder.snapshot("sampling"), 0.0)
    shapes = {labels[0] for _, labels in processes.values(0.0)}
    assert len(shapes) == shape.most + 1 and "other" in shapes


def test_what_another_version_counts_is_left_out() -> None:
    processes = Processes()
    processes.hear(Snapshot("a", "x", 1, {("mochi_serve_gone_total", ()): 4, COUNTED: 1}), 0.0)
    assert processes.values(0.0) == {COUNTED: 1}


def test_a_few_gauges_alone_are_those_of_all_values() -> None:
    processes = Processes()
    processes.hear(snapshot("a", 1, 5, feed_lag_seconds=9.0), 0.0)
    processes.hear(snapshot("b", 1, 7, feed_lag_seconds=2.0), SILENT_S)
    for name in "cd":
        processes.hear(Snapshot(name, "x", 1, {SLOTS: 4}), SILENT_S)
    for now in (SILENT_S, SILENT_S + 1):
        values = processes.values(now)
        assert processes.gauges({LAG[0], SLOTS[0]}, now) == {series: values[series] for series in (LAG, SLOTS)}
