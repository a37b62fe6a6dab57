"""The simulated day of the autoscaling benchmark."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.autoscaling import TARGETS_S, policies, share_within
from benchmarks.autoscaling_parts.cluster import Cluster
from benchmarks.autoscaling_parts.hindsight import STEP_S, least_gpu_s, least_sampler_s, least_to_meet
from benchmarks.autoscaling_parts.policies import OurPolicy
from benchmarks.autoscaling_parts.traffic import DAY_S, GPUS, SimulatedJob, Traffic, draw_day
from deployments.messages import Stage
from serve_app.jobs import Tier

START_S = 30.0


def jobs(count: int, at: float, tier: Tier, sampling_s: float = 300.0) -> Traffic:
    seconds = {Stage.ENCODING: 0.1, Stage.SAMPLING: sampling_s, Stage.DECODING: 2.0}
    return Traffic([SimulatedJob(at, tier, dict(seconds), waits_since=at) for _ in range(count)], [])


def test_a_day_is_the_same_for_a_seed() -> None:
    first, again, other = draw_day(8, 1), draw_day(8, 1), draw_day(8, 2)
    arrivals = [job.created_at for job in first.jobs]
    assert arrivals == [job.created_at for job in again.jobs] != [job.created_at for job in other.jobs]
    assert arrivals == sorted(arrivals) and arrivals[0] >= 0 and arrivals[-1] < DAY_S


def test_the_least_is_work_and_starts() -> None:
    # Within 600 s and their own 300 s a sampler does three of them; the span is cut to whole bins: 960 s.
    least_s = least_gpu_s(jobs(30, 3000.0, Tier.STANDARD), TARGETS_S, 100.0)
    assert least_s[Stage.SAMPLING] == pytest.approx(30 * 300.0 + 10 * 100.0)
    # One encoder and one decoder that start once; the decoder's own work of a minute is less than that.
    assert least_s[Stage.ENCODING] == least_s[Stage.DECODING] == pytest.approx(0.5 * 100.0)


def after_another(gap_s: float, start_s: float) -> float:
    """The least for two jobs of 100 s that come so long after each other, beside their work."""
    at = 10 * STEP_S
    pair = [*jobs(1, at, Tier.STANDARD, 100.0).jobs, *jobs(1, at + gap_s, Tier.STANDARD, 100.0).jobs]
    return least_sampler_s(Traffic(pair, []), TARGETS_S, start_s) - 200.0


def test_a_gap_costs_a_start_or_the_idleness_in_it() -> None:
    assert after_another(0.0, 1000.0) == 1000.0
    assert after_another(40 * STEP_S, 100.0) == 200.0
    # The first must have left 700 s after it came, so by then the gap has begun: 14 bins are left.
    assert after_another(20 * STEP_S, 5000.0) == 5000.0 + 14 * STEP_S
    # A third job that can be done in the gap fills a part of it.
    at = 10 * STEP_S
    three = [
        *jobs(1, at, Tier.STANDARD, 100.0).jobs,
        *jobs(1, at + 900.0, Tier.BATCH, 400.0).jobs,
        *jobs(1, at + 20 * STEP_S, Tier.STANDARD, 100.0).jobs,
    ]
    least_s = least_sampler_s(Traffic(three, []), TARGETS_S, 5000.0)
    assert least_s == 600.0 + 5000.0 + 14 * STEP_S - 400.0


@pytest.mark.parametrize("start_s", [30.0, 240.0])
def test_no_policy_that_keeps_all_in_time_goes_below_the_least(start_s: float) -> None:
    for seed in range(3):
        day = draw_day(2, seed)
        morning = Traffic([job for job in day.jobs if job.created_at < DAY_S / 2], [])
        least_s = least_gpu_s(morning, {tier: 3 * wait_s for tier, wait_s in TARGETS_S.items()}, start_s)
        outcome = Cluster(morning, policies(start_s, 40)["oracle"](), start_s).run()
        assert all(max(waits) < 3 * TARGETS_S[tier] for tier, waits in outcome.waits.items() if waits)
        for stage, paid_s in outcome.paid_s.items():
            assert least_s[stage] <= paid_s * GPUS[stage]


def test_with_all_replicas_nobody_waits_for_a_start() -> None:
    outcome = Cluster(jobs(3, 600.0, Tier.INTERACTIVE), policies(START_S, 4)["all"](), START_S).run()
    assert max(outcome.waits[Tier.INTERACTIVE]) < 3.0
    assert outcome.starts == 4 and outcome.paid_s[Stage.SAMPLING] >= 4 * DAY_S


def test_the_least_that_is_there_for_all() -> None:
    assert least_to_meet([], 30.0) == 0.0
    assert least_to_meet([(0.0, 60.0), (50.0, 110.0)], 30.0) == 30.0
    assert least_to_meet([(0.0, 60.0), (80.0, 140.0)], 30.0) == 50.0  # it stays from 60 to 80
    assert least_to_meet([(0.0, 60.0), (100.0, 140.0)], 30.0) == 60.0  # it is started again


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5)), min_size=1, max_size=5), st.integers(1, 6))
def test_no_other_moments_cost_less(drawn: list[tuple[int, int]], start_s: int) -> None:
    windows = [(float(begin), float(begin + length)) for begin, length in drawn]
    points = sorted({moment for window in windows for moment in window})
    costs = [
        start_s + sum(min(after - before, start_s) for before, after in pairwise(chosen))
        for count in range(1, len(points) + 1)
        for chosen in combinations(points, count)
        if all(any(begin <= at <= end for at in chosen) for begin, end in windows)
    ]
    assert least_to_meet(windows, start_s) == min(costs)


def test_who_knows_the_future_makes_the_first_job_wait_for_no_start() -> None:
    urgent = jobs(1, 600.0, Tier.INTERACTIVE, sampling_s=100.0)
    waits = {
        name: Cluster(urgent, policies(START_S, 4)[name](), START_S).run().waits[Tier.INTERACTIVE][0]
        for name in ("ours", "oracle")
    }
    assert waits["oracle"] < 10.0 < START_S <= waits["ours"] <= TARGETS_S[Tier.INTERACTIVE]


def test_every_job_of_a_burst_is_made_and_paid_for() -> None:
    burst = jobs(12, 600.0, Tier.STANDARD)
    outcome = Cluster(burst, OurPolicy(TARGETS_S, START_S, 40), START_S).run()
    waits = outcome.waits[Tier.STANDARD]
    assert len(waits) == 12 and max(waits) <= TARGETS_S[Tier.STANDARD]
    assert 4 <= outcome.most_samplers <= 12
    least_s = sum(least_gpu_s(burst, TARGETS_S, START_S).values())
    assert least_s < outcome.gpu_s < 3 * least_s
    assert all(job.seconds[Stage.SAMPLING] == 300.0 for job in burst.jobs)  # the day itself stays as it was


def test_share_within() -> None:
    assert share_within([(1.0, 2.0), (2.0, 2.0), (3.0, 2.0), (4.0, 2.0)]) == 0.5
