"""What files of proteins cost and when they end: by their tokens, and apart from what was measured of videos."""

from dataclasses import replace

import pytest

from deployments.messages import ProteinSpec, Stage, VideoSpec
from serve_app.jobs import Submission, Tier
from serve_app.scheduling.estimates import CostModel, RemainingCost
from serve_app.scheduling.fair_queue import FairQueue
from serve_app.scheduling.fair_share import QueueEntry
from serve_app.scheduling.forecast import Forecast, Pipeline, Running, Work, forecast

VIDEO = VideoSpec("a", "", 96, 64, 25, 24, 20, 3.0, 1)
FILE = ProteinSpec(parts=10, sequences=1_000, tokens=100_000, options={})
TWICE = ProteinSpec(parts=10, sequences=2_000, tokens=200_000, options={})


def test_the_cost_goes_with_the_tokens_of_the_parts_that_are_left() -> None:
    model = CostModel()
    assert model.estimate(Stage.EMBEDDING, FILE, 10) == pytest.approx(1.0)  # at the nominal rate
    model.observe(Stage.EMBEDDING, FILE, 2, 4.0)  # 20,000 tokens
    assert model.estimate(Stage.EMBEDDING, FILE, 10) == pytest.approx(20.0)
    assert model.estimate(Stage.EMBEDDING, TWICE, 5) == pytest.approx(20.0)


def test_videos_and_files_do_not_scale_each_other() -> None:
    model = CostModel()
    model.observe(Stage.ENCODING, VIDEO, 0, 100.0)
    assert model.estimate(Stage.EMBEDDING, FILE, 10) == pytest.approx(1.0)
    other = CostModel()
    other.observe(Stage.EMBEDDING, FILE, 10, 1e6)
    assert other.estimate(Stage.SAMPLING, VIDEO, 20) == pytest.approx(CostModel().estimate(Stage.SAMPLING, VIDEO, 20))
    assert not other.is_measured(Stage.SAMPLING)


def test_a_slot_is_held_for_less_than_the_devices_took_together() -> None:
    model = CostModel()
    assert model.held_s(Stage.EMBEDDING, FILE, 10) == pytest.approx(1.0)
    model.observe(Stage.EMBEDDING, FILE, 10, 8.0)
    model.observe_held(Stage.EMBEDDING, FILE, 2.0, 10)  # on four devices
    assert model.held_s(Stage.EMBEDDING, FILE, 5) == pytest.approx(1.0)
    assert model.estimate(Stage.EMBEDDING, FILE, 5) == pytest.approx(4.0)


def entry(job_id: str, order: int, tier: Tier = Tier.BATCH) -> QueueEntry:
    return QueueEntry(job_id, "acme", tier, (float(order), job_id), since=0.0, not_before=0.0, cost_s=1.0)


def pipeline(slots: dict[str, int], waiting: dict[str, float], running: dict[str, float]) -> Pipeline:
    """Files alone. waiting, running: seconds that each holds a slot."""
    queues = {stage: FairQueue(lambda _: 1.0, 1e9) for stage in Stage}
    works = {}
    for order, (job_id, held_s) in enumerate((running | waiting).items()):
        works[job_id] = Work.of_proteins(entry(job_id, order), held_s, parks=0)
        if job_id in waiting:
            queues[Stage.EMBEDDING].put(works[job_id].entry)
    return Pipeline(
        queues=queues,
        running=[Running(job_id, Stage.EMBEDDING, "files-1", for_s=0.0) for job_id in running],
        slots={stage: slots if stage is Stage.EMBEDDING else {} for stage in Stage},
        work_of=works.__getitem__,
        weight=lambda _: 1.0,
        now=0.0,
        max_parks=None,
    )


def test_files_wait_for_a_slot_of_their_own() -> None:
    found = forecast(pipeline({"files-1": 2}, {"c": 5.0, "d": 1.0}, {"a": 10.0, "b": 2.0}))
    assert found == {
        "a": Forecast(0.0, 10.0),
        "b": Forecast(0.0, 2.0),
        "c": Forecast(2.0, 7.0),
        "d": Forecast(7.0, 8.0),
    }


def test_without_a_worker_nothing_is_told() -> None:
    assert forecast(pipeline({}, {"c": 5.0}, {})) == {}


def test_what_is_left_of_a_job_is_its_parts() -> None:
    model = CostModel()
    model.observe(Stage.EMBEDDING, FILE, 10, 10.0)
    job = replace(Submission("a", "esm2", FILE).accepted(0.0), step=7)
    assert RemainingCost(model).of(job) == pytest.approx(3.0)
