"""What a process counts: exact under threads, bounded in its labels, and whole in each snapshot."""

import pickle
import threading

import pytest

from deployments.metrics import names
from deployments.metrics.metric import OTHER, Label, Metric
from deployments.metrics.recorder import RECORDER, Distribution, Recorder

PAINTED = Metric(
    name="painted_total",
    kind="counter",
    unit="walls",
    help="Walls",
    source="workers",
    labels=(Label("colour", ("red", "blue")), Label("room", most=2)),
)


def test_threads_lose_no_count() -> None:
    recorder = Recorder()

    def work() -> None:
        for _ in range(2000):
            recorder.count(names.CHECKPOINTS)
            recorder.observe(names.STEP_ROWS, 3)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    values = recorder.snapshot("x").values
    assert values[names.CHECKPOINTS.name, ()] == 8000
    rows = values[names.STEP_ROWS.name, ()]
    assert isinstance(rows, Distribution)
    assert (sum(rows.counts), rows.total) == (8000, 24000.0)


def test_a_value_on_a_bound_is_in_the_bucket_of_the_bound() -> None:
    recorder = Recorder()
    for value in (1, 2, 2.5, 65):
        recorder.observe(names.STEP_ROWS, value)
    rows = recorder.snapshot("x").values[names.STEP_ROWS.name, ()]
    assert isinstance(rows, Distribution)
    found = dict(zip((*names.STEP_ROWS.buckets, "inf"), rows.counts, strict=True))
    assert {bound: count for bound, count in found.items() if count} == {1: 1, 2: 1, 4: 1, "inf": 1}


def test_labels_beyond_their_bound_are_folded_into_one() -> None:
    recorder = Recorder()
    for room in ("hall", "attic", "hall", "cellar", "shed", "attic"):
        recorder.count(PAINTED, "red", room)
    recorder.count(PAINTED, "mauve", "hall")
    assert recorder.snapshot("x").values == {
        ("painted_total", ("red", "hall")): 2,
        ("painted_total", ("red", "attic")): 2,
        ("painted_total", ("red", OTHER)): 2,
        ("painted_total", (OTHER, "hall")): 1,
    }


def test_what_is_folded_takes_no_memory() -> None:
    recorder = Recorder()
    for room in range(1000):
        recorder.count(PAINTED, "red", str(room))
    assert len(recorder.snapshot("x").values) == 3


def test_too_few_labels_are_a_mistake() -> None:
    with pytest.raises(ValueError):
        Recorder().count(PAINTED, "red")


def test_a_gauge_is_what_was_set_last_and_a_snapshot_stays_as_it_was() -> None:
    recorder = Recorder()
    recorder.set(names.GPUS, 1)
    first = recorder.snapshot("sampling")
    recorder.set(names.GPUS, 2)
    second = recorder.snapshot("sampling")
    assert (first.values[names.GPUS.name, ()], second.values[names.GPUS.name, ()]) == (1, 2)
    assert (first.process, first.number + 1) == (second.process, second.number)


def test_in_another_process_it_is_the_one_there() -> None:
    """Serve pickles the classes of deployments by value, and with them what they name."""
    assert pickle.loads(pickle.dumps(RECORDER)) is RECORDER


def test_a_block_that_raises_is_timed_too() -> None:
    recorder = Recorder()
    with pytest.raises(KeyError), recorder.timing(names.CHECKPOINT_SECONDS):
        raise KeyError
    seconds = recorder.snapshot("x").values[names.CHECKPOINT_SECONDS.name, ()]
    assert isinstance(seconds, Distribution) and sum(seconds.counts) == 1
