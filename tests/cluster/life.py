"""The real applications on pods, with the included model, while pods come and go under jobs."""

import asyncio
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from tests.chaos.client import Client
from tests.chaos.job_records import JobRecords
from tests.chaos.judge import Outcome
from tests.chaos.mix import longer
from tests.chaos.report import details, line, say
from tests.chaos.round import Blow, Round, make_references
from tests.cluster.pods import Pod
from tests.cluster.ray_cluster import RayCluster
from tests.cluster.service import URL, Service
from tests.support import ROOT
from tests.support.cluster.manifests import Tree, needs, profile, read
from tests.support.servers.server import PROCESS_TITLES

MIX = longer(4)
# A sampler, a pod that an encoder and a decoder share, and one more for a second sampler.
PODS = {"cpu": 2, "gpu": 3}
REPLICAS = {
    "ingress": {"min_replicas": 2, "max_replicas": 2},
    "encoder": {"min_replicas": 1, "max_replicas": 1},
    "sampler": {"min_replicas": 1, "max_replicas": 2, "slots": 4},
    "decoder": {"min_replicas": 1, "max_replicas": 1},
}
# Steps slow enough that a burst lasts longer than what is done to it.
PACE = {"sampling": {"min_step_s": 0.2, "checkpoint_s": 1}}
CHANGED = {"sampling": {"min_step_s": 0.2, "checkpoint_s": 2}, "jobs": {"lease_s": 25}}
HEAD_AWAY_S = 40.0
DRAIN_S = 280.0
# terminationGracePeriodSeconds of kuberay/overlays/spot.
SPOT_S = 25.0
ROUND_S = 480.0
FIRST_S = (3.0, 6.0)
PROBE_S = 0.25
KEEP_S = 1.0
SERVE_SEES_S = 5.0
KEY_S = 120.0
KEY_SHOWN_TIMES = 8
READY_ANSWER_S = 10.0
OK = 200
# What a client is told of a connection that ended in the middle; a pod that is gone sends no answer at all.
BROKEN = ("RemoteProtocolError", "ReadError")
_KEY = re.compile(r"\bms-[\w-]+")


def serve_config(changed: Tree | None = None) -> Tree:
    """kuberay/base/serve.yaml with the included model, in replicas that take what the manifest's take."""
    config = read("kuberay/base/serve.yaml")
    settings: Tree = {**PACE, **(changed or {})}
    for name, (need, _, _) in needs(profile(config)).items():
        resources: Tree = {"resources": dict(need.resources)}
        if name in ("encoder", "sampler", "decoder"):
            # A GPU is a number here, and the machine's few cores are shared by all pods.
            resources |= {"num_gpus": need.gpus, "num_cpus": need.cpus, "cpu_fallback": True, "torch_threads": 1}
        settings[name] = {**resources, **REPLICAS.get(name, {}), **settings.get(name, {})}
    args = {"config": "configs/shapes.yaml", "settings": settings}
    config["applications"] = [{**app, "args": args} for app in config["applications"]]
    return config


@dataclass
class Site:
    """A cluster that serves, as its clients see it.

    drained_s: how long the pod took that was last told to end. killed: the address of a pod that was killed, and how
    many connections to it had ended before.
    """

    ray_cluster: RayCluster
    records: JobRecords
    service: Service
    api_key: str | None = None
    drained_s: float | None = None
    killed: tuple[str, int] | None = None

    @property
    def url(self) -> str:
        return URL

    def deploy(self, changed: Tree | None = None) -> None:
        """Returns when all of it runs and a video can be made."""
        self.ray_cluster.deploy(serve_config(changed))
        time.sleep(SERVE_SEES_S)
        self.settle()

    def make_key(self) -> None:
        """In the head, as docs/kubernetes.md says."""
        command = ["mochi-serve", "keys", "create", "--tenant", "me"]
        found = _KEY.search(self.ray_cluster.head.run(command, KEY_S))
        assert found is not None, "the command printed no key"
        self.api_key = found[0]
        headers = {"Authorization": f"Bearer {self.api_key}"}
        # A connection of its own for each, so that every HTTP replica is shown the key: it is good at once.
        for _ in range(KEY_SHOWN_TIMES):
            answer = httpx.get(f"{URL}/v1/videos", params={"limit": 1}, headers=headers, timeout=READY_ANSWER_S)
            assert answer.status_code == OK, f"the key that was made is not taken: {answer.status_code} {answer.text}"

    def settle(self) -> None:
        """Return when every pod has joined, every replica runs and a video could be made."""
        self.ray_cluster.wait_settled(_not_ready)

    def sampling_pod(self) -> Pod:
        """One that holds a sampler."""
        placed = self.ray_cluster.placed()
        pods = [pod for pod in self.ray_cluster.workers["gpu"] if "MochiSampler" in placed.get(pod.name, ())]
        assert pods, f"no GPU pod holds a sampler: {placed}"
        return pods[0]

    def cut_connections(self) -> int:
        """How many connections ended with the pod that was killed since this was last asked."""
        if self.killed is None:
            return 0
        address, ended_before = self.killed
        self.killed = None
        return self.service.ended_at(address) - ended_before

    def renew(self, pod: Pod) -> None:
        """Another pod in place of one that ends, as KubeRay makes it."""
        self.ray_cluster.workers["gpu"].remove(pod)
        self.ray_cluster.add("gpu")


def _not_ready() -> str | None:
    """What /ready says against it, None if nothing."""
    try:
        answer = httpx.get(f"{URL}/ready", timeout=READY_ANSWER_S)
    except httpx.TransportError as error:
        return f"/ready: {error}"
    return None if answer.status_code == OK else f"/ready: {answer.status_code} {answer.text[:200]}"


def kill_node(site: Site) -> None:
    """A machine with a sampler is gone, and with it the connections that clients have through its front: KubeRay's
    Service has every worker in it, whatever it holds."""
    pod = site.sampling_pod()
    site.killed = pod.address, site.service.ended_at(pod.address)
    site.renew(pod)
    pod.kill()


def kill_head(site: Site) -> None:
    site.ray_cluster.head.kill()
    time.sleep(HEAD_AWAY_S)
    site.ray_cluster.start_head()


def kill_ingress(site: Site) -> None:
    title = PROCESS_TITLES["ingress"]
    found = [process for pod in site.ray_cluster.workers["cpu"] for process in pod.processes(title)]
    assert found, "there is no HTTP replica on the CPU pods"
    found[0].kill()


def roll(site: Site) -> None:
    """A change of the settings, in place."""
    site.deploy(CHANGED)


def drain(site: Site) -> None:
    """A pod with a sampler is taken away in the way of Kubernetes; another one comes at once."""
    pod = site.sampling_pod()
    site.renew(pod)
    site.drained_s = pod.terminate(DRAIN_S)


def spot(site: Site) -> None:
    """As `drain`, with the notice that clouds give: what is not parked by then is killed."""
    pod = site.sampling_pod()
    site.renew(pod)
    site.drained_s = pod.terminate(SPOT_S)


@dataclass(frozen=True)
class Strike:
    """strike: returns when its harm is over. repeats_steps: whether steps since the last checkpoint may be lost."""

    name: str
    strike: Callable[[Site], None]
    repeats_steps: bool = False


STRIKES = (
    Strike("node", kill_node, repeats_steps=True),
    Strike("head", kill_head),
    Strike("ingress", kill_ingress),
    Strike("roll", roll),
    Strike("drain", drain),
    Strike("spot", spot),
)


def write_front(path: Path) -> None:
    """What the image holds as /usr/local/bin/mochi-serve-front."""
    command = [sys.executable, "-m", "serve_app.local.front_program", str(path)]
    subprocess.run(command, check=True, cwd=ROOT)


async def references(site: Site) -> list[bytes]:
    return await make_references(URL, ROUND_S, MIX, site.api_key)


async def struck(site: Site, clips: list[bytes], strike: Strike, jobs: int, rng: random.Random) -> Outcome:
    """One burst with one strike, and a request four times a second beside it."""
    blow = Blow(rng.uniform(*FIRST_S), lambda: asyncio.to_thread(strike.strike, site))
    prober = Client(URL, "", time.monotonic() + ROUND_S, site.api_key)
    over = threading.Event()
    asking = asyncio.create_task(_ask(prober, over))
    keeping = asyncio.create_task(_keep_pods(site.ray_cluster, over))
    try:
        outcome = await Round(site, clips, ROUND_S, MIX).run(strike.name, jobs, [blow])
    finally:
        over.set()
        await asyncio.gather(asking, keeping)
        await prober.close()
    repeated = {**outcome.repeated, **{f"probe {what}": n for what, n in prober.repeated.items()}}
    return replace(outcome, repeated=without_cut(repeated, site.cut_connections()))


def without_cut(repeated: dict[str, int], cut: int) -> dict[str, int]:
    """Why requests were repeated, but for as many broken connections as ended with the machine that they went to."""
    left = {}
    for what, count in repeated.items():
        excused = min(cut, count) if what.endswith(BROKEN) else 0
        cut -= excused
        if excused:
            say(f"  cut with the pod that was killed: {what}, {excused} times")
        if count > excused:
            left[what] = count - excused
    return left


async def _keep_pods(ray_cluster: RayCluster, over: threading.Event) -> None:
    """On a busy machine a new pod may not start in the half minute that Ray gives it."""
    while not over.is_set():
        await asyncio.to_thread(ray_cluster.replace_ended)
        await asyncio.sleep(KEEP_S)


async def _ask(prober: Client, over: threading.Event) -> None:
    pending: set[asyncio.Task[None]] = set()
    while not over.is_set():
        pending.add(asyncio.create_task(prober.look()))
        pending = {task for task in pending if not task.done()}
        await asyncio.sleep(PROBE_S)
    await asyncio.gather(*pending)


def problems(strike: Strike, outcome: Outcome) -> list[str]:
    """What is not as promised."""
    found = broken_promises(outcome, strike.repeats_steps)
    return found if outcome.strikes else [*found, "nothing was struck"]


def broken_promises(outcome: Outcome, repeats_steps: bool = False) -> list[str]:
    """What became of the jobs and requests that may not be. repeats_steps: whether steps may be run twice."""
    row = outcome.row
    names = ["completed twice", "lost", "failed", "videos different", "requests repeated"]
    if not repeats_steps:
        names.append("steps run twice")
    return [f"{name}: {row[name]}" for name in names if row[name]]


def tell(strike: Strike, outcome: Outcome, site: Site) -> None:
    say("\n".join([line(outcome), *details(outcome)]))
    if site.drained_s is not None:
        say(f"  the pod ended {site.drained_s:.0f} s after it was told to")
        site.drained_s = None
    if bad := problems(strike, outcome):
        say(f"  not as promised: {', '.join(bad)}")
