"""What a cluster must offer for a profile, and what is said when it does not."""

from pathlib import Path
from typing import Any

import pytest

from serve_app.config import load_settings
from serve_app.doctor.checks.cluster import Demand, check_cluster, first_demands, unplaced
from serve_app.doctor.children.run import ChildError
from serve_app.doctor.finding import Finding, State
from tests.support import ROOT
from tests.support.doctor import FakeChild, by_name, patient

HEAD = {"CPU": 0.0, "mochi-control": 1.0, "memory": 8e9, "node:10.0.0.1": 1.0}
GPU_NODE = {"CPU": 8.0, "GPU": 1.0, "memory": 64e9}


def test_what_the_profile_for_kubernetes_starts_first() -> None:
    demands = first_demands(load_settings(str(ROOT / "configs" / "kuberay.yaml"), environ={}))
    assert [demand.name for demand in demands] == ["registry", "ingress", "ingress", "encoder", "sampler", "decoder"]
    assert demands[1].resources == {"mochi-control": 0.6}


def test_halves_share_a_gpu_and_wholes_have_their_own() -> None:
    demands = [Demand("a", {"GPU": 0.5}), Demand("b", {"GPU": 1.0}), Demand("c", {"GPU": 0.5})]
    assert unplaced(demands, [GPU_NODE, GPU_NODE]) == []
    assert [one.name for one in unplaced(demands, [GPU_NODE])] == ["a", "c"]


def test_all_resources_of_one_replica_come_from_one_node() -> None:
    wanted = Demand("a", {"GPU": 1.0, "mochi-control": 0.5})
    assert unplaced([wanted], [GPU_NODE, HEAD]) == [wanted]
    assert unplaced([wanted], [{**GPU_NODE, "mochi-control": 0.5}]) == []


def test_what_needs_no_gpu_leaves_the_gpu_nodes_to_others() -> None:
    demands = [Demand("cpu", {"CPU": 8.0}), Demand("gpu", {"GPU": 1.0, "CPU": 8.0})]
    assert unplaced(demands, [GPU_NODE, {"CPU": 8.0}]) == []


def look(tmp_path: Path, answer: Any, profile: dict[str, Any]) -> dict[str, Finding]:
    return by_name(check_cluster(patient(tmp_path, profile, ray_address="auto", ask=FakeChild(cluster=answer))))


def node(name: str, resources: dict[str, float], alive: bool = True) -> dict[str, Any]:
    return {"name": name, "alive": alive, "resources": resources}


def cluster(*nodes: dict[str, Any], applications: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"ray": "2.60.0", "python": "3.11.7", "nodes": list(nodes), "applications": applications or {}}


def test_a_cluster_without_the_gpus_of_the_profile(tmp_path: Path) -> None:
    found = look(
        tmp_path, cluster(node("head", HEAD), node("old", GPU_NODE, alive=False)), {"sampler": {"num_gpus": 1}}
    )
    assert found["cluster_nodes"].told == "1 are there (1 have left): head: memory 8.0 GB, mochi-control 1"
    fault = found["cluster_resources"]
    assert (fault.state, fault.told) == (State.FAULT, "no node has room for sampler (GPU 1)")
    assert "add such nodes" in fault.advice


def test_a_cluster_that_fits(tmp_path: Path) -> None:
    applications: dict[str, Any] = {"api": ("RUNNING", "", {}), "mochi": ("RUNNING", "", {})}
    answer = cluster(node("head", HEAD), node("gpu", GPU_NODE), applications=applications)
    found = look(tmp_path, answer, {"sampler": {"num_gpus": 1}, "registry": {"resources": {"mochi-control": 0.1}}})
    assert {finding.state for finding in found.values()} == {State.OK}


@pytest.mark.parametrize(
    ("status", "state"), [("DEPLOY_FAILED", State.FAULT), ("UNHEALTHY", State.FAULT), ("DEPLOYING", State.WARNING)]
)
def test_an_application_that_does_not_run(tmp_path: Path, status: str, state: State) -> None:
    applications = {"mochi": (status, "", {"MochiSampler": ("UNHEALTHY", "no GPU"), "VideoDecoder": ("HEALTHY", "")})}
    found = look(tmp_path, cluster(node("head", HEAD), applications=applications), {})["cluster_applications"]
    assert found.state is state and found.told == f"mochi is {status}: MochiSampler UNHEALTHY no GPU"


def test_a_cluster_of_another_ray(tmp_path: Path) -> None:
    error = {"error": "Version mismatch: The cluster was started with: Ray: 2.9.0 Python: 3.9.1", "ray": "2.60"}
    found = look(tmp_path, error, {})
    assert found["cluster"].state is State.FAULT and "versions of Ray and Python" in found["cluster"].advice
    assert found["cluster_nodes"].state is State.SKIPPED


def test_a_cluster_that_nobody_answers_for(tmp_path: Path) -> None:
    found = look(tmp_path, ChildError("no answer within 90 s"), {})["cluster"]
    assert found.told == "auto cannot be joined: no answer within 90 s" and "kubectl exec" in found.advice


def test_without_a_cluster_nothing_is_asked(tmp_path: Path) -> None:
    child = FakeChild()
    assert {one.state for one in check_cluster(patient(tmp_path, ask=child))} == {State.SKIPPED}
    assert child.asked == []
