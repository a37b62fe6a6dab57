"""A Ray cluster: its nodes, and whether what the profile starts first fits on them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from serve_app.config import AppSettings
from serve_app.doctor.checks.server import applications_finding
from serve_app.doctor.children.run import ChildError
from serve_app.doctor.finding import Finding, fault, ok, skipped
from serve_app.doctor.surroundings import Surroundings

CHILD_S = 90.0
LATER = ("cluster_nodes", "cluster_resources", "cluster_applications")
_HIDDEN = ("object_store_memory", "node:")


@dataclass(frozen=True, slots=True)
class Demand:
    """What one replica or actor takes of a node."""

    name: str
    resources: Mapping[str, float]


def check_cluster(s: Surroundings) -> Iterator[Finding]:
    """As Ray tells it to a driver that joins."""
    if s.ray_address is None:
        told = "no cluster is named by --ray-address or RAY_ADDRESS"
        yield from (skipped(name, told if name == "cluster" else "see cluster") for name in ("cluster", *LATER))
        return
    try:
        found = s.ask("cluster", s.ray_address, limit_s=CHILD_S)
    except ChildError as error:
        found = {"error": str(error)}
    if "error" in found:
        yield _unreachable(s.ray_address, found["error"])
        yield from (skipped(name, "see cluster") for name in LATER)
        return
    yield ok("cluster", f"Ray {found['ray']} on Python {found['python']} at {s.ray_address}, as here")
    alive = [node for node in found["nodes"] if node["alive"]]
    dead = [node["name"] for node in found["nodes"] if not node["alive"]]
    listed = "; ".join(f"{node['name']}: {_shown(node['resources'])}" for node in alive)
    # Ray keeps the names of nodes that have left: on a cluster that scales there are always some.
    gone = f" ({len(dead)} have left)" if dead else ""
    yield ok("cluster_nodes", f"{len(alive)} are there{gone}: {listed}")
    missing = unplaced(first_demands(s.settings), [node["resources"] for node in alive])
    if missing:
        wanted = ", ".join(f"{one.name} ({_shown(one.resources)})" for one in missing)
        advice = "add such nodes, or have the autoscaler add them; see Settings for num_gpus, memory_gb and resources"
        yield fault("cluster_resources", f"no node has room for {wanted}", advice)
    else:
        yield ok("cluster_resources", "what the profile starts first fits on the nodes")
    if found["applications"]:
        one = applications_finding(found["applications"])
        yield Finding("cluster_applications", one.state, one.told, one.advice)
    else:
        yield skipped("cluster_applications", "Serve has none yet")


def first_demands(settings: AppSettings) -> list[Demand]:
    """What is started before any work comes: the registry, HTTP replicas, `min_replicas` of each stage."""
    stages = {"encoder": settings.encoder, "sampler": settings.sampler, "decoder": settings.decoder}
    demands = [Demand("registry", settings.registry.resources)]
    demands += [Demand("ingress", settings.ingress.resources)] * settings.ingress.min_replicas
    for name, stage in stages.items():
        taken = {"GPU": stage.num_gpus, "CPU": stage.num_cpus, "memory": (stage.memory_gb or 0) * 1e9}
        demands += [Demand(name, {**taken, **stage.resources})] * stage.min_replicas
    return demands


def unplaced(demands: Sequence[Demand], nodes: Sequence[Mapping[str, float]]) -> list[Demand]:
    """Those for which no room is left on any node, the largest placed first, each on the node that it fills most.

    Args:
        nodes: what each has in all.
    """
    free = [dict(node) for node in nodes]
    missing = []
    for demand in sorted(demands, key=lambda one: (one.resources.get("GPU", 0), len(one.resources)), reverse=True):
        wanted = {name: amount for name, amount in demand.resources.items() if amount}
        fitting = [node for node in free if all(node.get(name, 0) >= amount - 1e-9 for name, amount in wanted.items())]
        if not fitting:
            missing.append(demand)
            continue
        chosen = min(fitting, key=lambda node: (node.get("GPU", 0), sum(node.get(name, 0) for name in wanted)))
        for name, amount in wanted.items():
            chosen[name] -= amount
    return missing


def _unreachable(address: str, error: str) -> Finding:
    if "mismatch" in error.lower():
        return fault("cluster", error[:400], "install the cluster's versions of Ray and Python here, or its image")
    advice = "run this on a node of the cluster (kubectl exec in the head pod), with RAY_ADDRESS=auto; `ray status`"
    return fault("cluster", f"{address} cannot be joined: {error[:300]}", advice)


def _shown(resources: Mapping[str, float]) -> str:
    shown = (
        f"{name} {amount / 1e9:.1f} GB" if name == "memory" else f"{name} {amount:g}"
        for name, amount in sorted(resources.items())
        if amount and not name.startswith(_HIDDEN)
    )
    return ", ".join(shown) or "nothing"
