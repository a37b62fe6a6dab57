"""The simulated day of the autoscaling benchmark."""

import pytest

from benchmarks.autoscaling import TARGETS_S, share_within
from benchmarks.autoscaling_parts.cluster import Cluster
from benchmarks.autoscaling_parts.policies import OurPolicy
from benchmarks.autoscaling_parts.traffic import DAY_S, SimulatedJob, Traffic, draw_day, least_gpu_s, most_at_once
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


def test_what_is_needed_at_once() -> None:
    # Within 600 s and their own 300 s a sampler does three of them; spans are as wide as their bins.
    assert most_at_once(jobs(30, 3000.0, Tier.STANDARD), TARGETS_S) == 10
    least_s = least_gpu_s(jobs(30, 3000.0, Tier.STANDARD), TARGETS_S, 100.0)
    assert least_s == pytest.approx(30 * 301.05 + 10 * 100.0)


def test_every_job_of_a_burst_is_made_and_paid_for() -> None:
    burst = jobs(12, 600.0, Tier.STANDARD)
    outcome = Cluster(burst, OurPolicy(TARGETS_S, START_S, 40), START_S).run()
    waits = outcome.waits[Tier.STANDARD]
    assert len(waits) == 12 and max(waits) <= TARGETS_S[Tier.STANDARD]
    assert 4 <= outcome.most_samplers <= 12
    assert least_gpu_s(burst, TARGETS_S, START_S) < outcome.gpu_s < 3 * least_gpu_s(burst, TARGETS_S, START_S)
    assert all(job.seconds[Stage.SAMPLING] == 300.0 for job in burst.jobs)  # the day itself stays as it was


def test_share_within() -> None:
    assert share_within([(1.0, 2.0), (2.0, 2.0), (3.0, 2.0), (4.0, 2.0)]) == 0.5
