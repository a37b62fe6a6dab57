"""From no sampler to six and back: how long the first video takes, and which pods the autoscaler could take back."""

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.chaos.judge import COMPLETED, Outcome
from tests.chaos.mix import longer
from tests.chaos.round import Round
from tests.cluster.life import ROUND_S, SERVE_SEES_S, Site, serve_config
from tests.cluster.placement import IDLE_S
from tests.cluster.ray_cluster import RayCluster, Replica
from tests.support.cluster.manifests import Tree

# As the overlay `spot`: six for the samplers, and one that an encoder and a decoder share.
SAMPLERS = 6
PODS = {"cpu": 2, "gpu": SAMPLERS + 1}
CHANGED: Tree = {"sampler": {"min_replicas": 0, "max_replicas": SAMPLERS, "slots": 2}}
# Long enough that six samplers are worth their start.
MIX = longer(12)
LOOK_S = 0.5
DOWN_S = 420.0


@dataclass
class Scaling:
    """What was seen of a burst, in seconds after it was sent.

    ready_s: when so many samplers ran for the first time, from one on. video_s: when the first video was made, from its
    acceptance on. gone_s: when no sampler was left, counted from the last video. idle: GPU pods that the autoscaler
    sees idle then. gpu_pods: all of them.
    """

    ready_s: list[float] = field(default_factory=list)
    video_s: float | None = None
    gone_s: float | None = None
    idle: int = 0
    gpu_pods: int = 0

    def line(self) -> str:
        ready = ", ".join(f"{at:g}" for at in self.ready_s) or "never"
        return (
            f"  samplers ran after {ready} s, the first video was made after {self.video_s} s; "
            f"no sampler was left {self.gone_s} s after the last one, {self.idle} of {self.gpu_pods} GPU pods were idle"
        )

    @property
    def problems(self) -> list[str]:
        found = []
        if len(self.ready_s) < SAMPLERS:
            found.append(f"no more than {len(self.ready_s)} of {SAMPLERS} samplers ran")
        if self.gone_s is None:
            found.append(f"{DOWN_S:g} s after the last video there are samplers")
        elif self.idle != SAMPLERS:
            found.append(f"{self.idle} GPU pods are idle to the autoscaler, and {SAMPLERS} have no replica")
        return found


def let_go(site: Site) -> None:
    """From now on there are samplers only while they are needed. Returns when Serve has taken that over."""
    site.ray_cluster.deploy(serve_config(CHANGED))
    time.sleep(SERVE_SEES_S)
    site.ray_cluster.wait_settled()


def burst(site: Site, clips: Sequence[bytes], jobs: int) -> tuple[Outcome, Scaling]:
    """All jobs at once while there is no sampler; returns when they have ended and the samplers are gone again."""
    seen = Scaling(gpu_pods=len(site.ray_cluster.workers["gpu"]))
    assert _samplers_gone(site.ray_cluster) is not None, f"{DOWN_S:g} s without a job, and there are samplers"
    before = site.records.ids()
    over = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        watching = thread.submit(_watch, site.ray_cluster, seen, over)
        try:
            outcome = asyncio.run(Round(site, clips, ROUND_S, MIX).run("scale", jobs, []))
        finally:
            over.set()
        watching.result()
    moves = [move for job_id, of_job in site.records.moves().items() if job_id not in before for move in of_job]
    made = [at for at, state, _ in moves if state == COMPLETED]
    seen.video_s = round(min(made) - min(at for at, _, _ in moves), 1) if made else None
    seen.gone_s = _samplers_gone(site.ray_cluster)
    seen.idle = _idle_pods(site.ray_cluster)
    return outcome, seen


def _watch(ray_cluster: RayCluster, seen: Scaling, over: threading.Event) -> None:
    begun = time.monotonic()
    while not over.wait(LOOK_S):
        running = sum(each.state == "RUNNING" for each in _samplers(ray_cluster))
        seen.ready_s += [round(time.monotonic() - begun, 1)] * (running - len(seen.ready_s))


def _samplers(ray_cluster: RayCluster) -> list[Replica]:
    return [each for each in ray_cluster.replicas() if each.deployment == "MochiSampler"]


def _samplers_gone(ray_cluster: RayCluster) -> float | None:
    """Seconds until there was none; None if there are some for DOWN_S."""
    begun = time.monotonic()
    while _samplers(ray_cluster):
        if time.monotonic() > begun + DOWN_S:
            return None
        time.sleep(LOOK_S)
    return round(time.monotonic() - begun, 1)


def _idle_pods(ray_cluster: RayCluster) -> int:
    """GPU pods that the autoscaler sees idle, when it has had time to look."""
    pods = {pod.address for pod in ray_cluster.workers["gpu"]}
    deadline = time.monotonic() + IDLE_S
    while True:
        idle = sum(is_idle for address, is_idle in ray_cluster.nodes().items() if address in pods)
        if idle == SAMPLERS or time.monotonic() > deadline:
            return idle
        time.sleep(LOOK_S)
