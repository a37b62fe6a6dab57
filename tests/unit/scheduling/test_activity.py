"""What waits, counted as operators see it."""

from dataclasses import replace

from deployments.messages import Stage
from serve_app.jobs import Submission, Tier
from serve_app.scheduling.activity import Waiting, count_waiting
from tests.support.registry.world import SPEC


def test_jobs_are_counted_by_stage_tier_and_tenant() -> None:
    job = Submission("a", "mochi-1", SPEC, tenant="acme").accepted(at=10)
    jobs = [
        replace(job, stage=Stage.SAMPLING),
        job,
        replace(job, created_at=5.0),
        replace(job, tenant="beta"),
        replace(job, tier=Tier.INTERACTIVE),
    ]
    assert count_waiting(jobs, lambda job: 3.0 if job.tenant == "acme" else 4.0) == (
        Waiting(Stage.ENCODING, Tier.INTERACTIVE, "acme", 1, 10, 3.0),
        Waiting(Stage.ENCODING, Tier.STANDARD, "acme", 2, 5, 6.0),
        Waiting(Stage.ENCODING, Tier.STANDARD, "beta", 1, 10, 4.0),
        Waiting(Stage.SAMPLING, Tier.STANDARD, "acme", 1, 10, 3.0),
    )
    assert count_waiting([], lambda job: 1.0) == ()
