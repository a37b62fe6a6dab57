"""Dummy replicas on real Ray nodes, by real Serve: whatever the order of growth, each finds its place."""

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.report import say
from tests.cluster.growth import Counts, growth_order
from tests.cluster.ray_cluster import RayCluster
from tests.support.cluster.manifests import Tree, needs, profile, read
from tests.support.cluster.placement import Need

RUNNING_S = 240.0
IDLE_S = 120.0
LOOK_S = 1.0
ROOT_DEPLOYMENT = "ingress"
GPU_GROUP = "gpu"
CPU_GROUP = "cpu"


@dataclass(frozen=True)
class Step:
    """One state that the cluster was brought to.

    problem: what did not come, None if all did. placed: what each pod then held.
    """

    order: int
    counts: Counts
    seconds: float
    placed: dict[str, list[str]]
    problem: str | None = None


class Placement:
    """The manifest's parts, without what they do."""

    def __init__(self, ray_cluster: RayCluster) -> None:
        self._cluster = ray_cluster
        parts = needs(profile(read("kuberay/base/serve.yaml")))
        registry, _, _ = parts.pop("registry")
        self._options = {
            name: _options(parts[name][0]) for name in [ROOT_DEPLOYMENT, *parts.keys() - {ROOT_DEPLOYMENT}]
        }
        self._registry = dict(registry.resources)
        self.bounds = {name: (least, most) for name, (_, least, most) in parts.items()}

    def orders(self, count: int, changes: int, seed: int) -> list[Step]:
        """Go through so many orders of growth, each from the fewest to the most and down again."""
        steps = []
        for number in range(1, count + 1):
            rng = random.Random(f"{seed} {number}")
            for counts in growth_order(self.bounds, changes, rng):
                steps.append(self._told(self._bring(number, counts)))
            least = {name: least for name, (least, _) in self.bounds.items()}
            down = self._bring(number, least)
            steps.append(self._told(down if down.problem else self._idle(down)))
        return steps

    def _told(self, step: Step) -> Step:
        say(line(step))
        return step

    def _bring(self, order: int, counts: Counts) -> Step:
        begun = time.monotonic()
        self._cluster.deploy(self._config(counts))
        missing = "nothing was deployed"
        while time.monotonic() < begun + RUNNING_S:
            time.sleep(LOOK_S)
            missing = self._missing(counts)
            if not missing:
                break
        problem = self._misplaced() if not missing else f"after {RUNNING_S:g} s {missing}"
        return Step(order, counts, time.monotonic() - begun, self._cluster.placed(), problem)

    def _missing(self, counts: Counts) -> str:
        """What is not as it should be; empty if all is."""
        found = self._cluster.replicas()
        running = Counter(replica.deployment for replica in found if replica.state == "RUNNING")
        few = [f"{running[name]} of {count} {name}" for name, count in counts.items() if running[name] != count]
        odd = [f"{replica.deployment} {replica.state}" for replica in found if replica.state != "RUNNING"]
        return ", ".join(few + odd)

    def _misplaced(self) -> str | None:
        """What takes a GPU belongs on GPU pods, all else on CPU pods, and nothing on the head."""
        groups = {pod.name: group for group, pods in self._cluster.workers.items() for pod in pods}
        for pod, held in self._cluster.placed().items():
            for name in held:
                wanted = GPU_GROUP if self._options[name]["num_gpus"] else CPU_GROUP
                if groups.get(pod) != wanted:
                    return f"{pod} holds {name}, which belongs on a pod of the group {wanted}"
        return None

    def _idle(self, step: Step) -> Step:
        """The step, with what the autoscaler sees wrongly when it has had time to look."""
        pods = {pod.address: pod.name for pod in self._cluster.workers[GPU_GROUP]}
        wanted = {address for address, name in pods.items() if name not in step.placed}
        deadline = time.monotonic() + IDLE_S
        while True:
            idle = {address for address, is_idle in self._cluster.nodes().items() if is_idle and address in pods}
            if idle == wanted:
                say(f"  {len(idle)} of {len(pods)} GPU pods have no replica, and the autoscaler sees them idle")
                return step
            if time.monotonic() > deadline:
                told = f"idle to the autoscaler are {_names(idle, pods)}, without a replica {_names(wanted, pods)}"
                return Step(step.order, step.counts, step.seconds, step.placed, told)
            time.sleep(LOOK_S)

    def _config(self, counts: Counts) -> Tree:
        return {
            "proxy_location": "Disabled",
            "applications": [
                {
                    "name": "dummies",
                    "route_prefix": None,
                    "import_path": "tests.cluster.dummies:app",
                    "args": {"options": self._options, "registry": self._registry},
                    "deployments": [{"name": name, "num_replicas": count} for name, count in counts.items()],
                }
            ],
        }


def header() -> str:
    return "order  ingress  encoder  sampler  decoder  seconds  pods  result"


def line(step: Step) -> str:
    counts = "  ".join(f"{step.counts[name]:>7}" for name in ("ingress", "encoder", "sampler", "decoder"))
    told = "all run" if step.problem is None else f"{step.problem}; placed: {step.placed}"
    return f"{step.order:>5}  {counts}  {step.seconds:>7.1f}  {len(step.placed):>4}  {told}"


def as_json(steps: Sequence[Step]) -> Tree:
    problems = [f"order {step.order} {step.counts}: {step.problem}" for step in steps if step.problem]
    return {
        "orders": len({step.order for step in steps}),
        "steps": len(steps),
        "seconds_longest": round(max((step.seconds for step in steps), default=0.0), 1),
        "clean": bool(steps) and not problems,
        "problems": problems,
    }


def _options(need: Need) -> Tree:
    return {"num_cpus": need.cpus, "num_gpus": need.gpus, "resources": dict(need.resources)}


def _names(addresses: set[str], pods: dict[str, str]) -> str:
    return ", ".join(sorted(pods[address] for address in addresses)) or "none"
