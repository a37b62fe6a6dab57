"""A Ray cluster of pods: the head and the groups of kuberay/base/rayservice.yaml, started as KubeRay starts them."""

import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.exceptions import RpcError

from tests.chaos.report import say
from tests.cluster.pods import SERVICES, Pod
from tests.cluster.stores import REDIS_PORT
from tests.support import ROOT
from tests.support.cluster.manifests import KUBERAY, Tree, cluster, group_of, read, worker_groups
from tests.support.cluster.placement import Group

TOKEN = "cluster-test-0123456789abcdef0123456789abcdef"
# Of the run itself too, which asks Ray how the cluster is.
AUTHENTICATION = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
GCS_PORT = 6379
DASHBOARD_PORT = 8265
SERVE_PORT = 8000
# Ray gives itself half a minute to start, whatever else the machine does; then it is tried again.
READY_S = 420.0
HEAD_STARTS = 5
HEAD_S = 120.0
HEAD_ENDS_S = 5.0
# The first deploy starts Serve before it is answered.
ANSWER_S = 300.0
LOOK_S = 1.0
STATUS_S = 15
SETTLED_S = 420.0
# Small: tensors and videos go through object storage, and all pods share this machine's memory.
OBJECT_STORE = "100000000"
# What KubeRay sets in every pod.
KUBERAY_ENVIRON = {
    "RAY_timeout_ms_task_wait_for_death_info": "0",
    "RAY_gcs_server_request_timeout_seconds": "5",
    "RAY_SERVE_KV_TIMEOUT_S": "5",
    "RAY_USAGE_STATS_KUBERAY_IN_USE": "1",
}
# What the image and the pod have otherwise: the code at another place, and folders that can be written.
MACHINE_ENVIRON = {
    "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": str(ROOT),
    "HOME": "/tmp",
    "HF_HOME": "/tmp/models/hub",
    "MOCHI_SERVE_MODEL_CACHE": "/tmp/models/s3",
    "MOCHI_SERVE__DATA_DIR": "/tmp/data",
    "OMP_WAIT_POLICY": "passive",
}


@dataclass(frozen=True)
class Replica:
    """Of Serve. address: of its pod, None while it has none."""

    deployment: str
    state: str
    address: str | None


class RayCluster:
    """The pods of one cluster and what is asked of it.

    Args:
        name: of the cluster; Redis keeps what its head knows under it.
        first: the last part of the head's address; the workers' follow.
        folder: of the pods.
        environ: of every pod, beside environment.env: the secret, and what a run needs.
    """

    def __init__(self, name: str, first: int, folder: Path, environ: Mapping[str, str]) -> None:
        self._manifest = read("kuberay/base/rayservice.yaml")
        self._specs = {spec["groupName"]: spec for spec in worker_groups(self._manifest)}
        self.groups: dict[str, Group] = {group: group_of(spec) for group, spec in self._specs.items()}
        self.name = name
        self._folder = folder / name
        self._environ = {
            **environment(),
            **KUBERAY_ENVIRON,
            **MACHINE_ENVIRON,
            **AUTHENTICATION,
            "RAY_CLUSTER_NAME": name,
            **environ,
        }
        self._next = first + 1
        self._starting = threading.Lock()
        self.head = self._head(first)
        self.workers: dict[str, list[Pod]] = {group: [] for group in self._specs}
        self._http = httpx.Client(
            base_url=f"http://{self.head.address}:{DASHBOARD_PORT}",
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=ANSWER_S,
        )

    def start(self, counts: Mapping[str, int]) -> None:
        """The head, then so many pods of each group. Returns when all have joined."""
        self.start_head()
        for group, count in counts.items():
            for _ in range(count):
                self.add(group)
                # One after the other: at once they take from each other the half minute that Ray gives each.
                self.wait_nodes()

    def start_head(self) -> None:
        """Returns when its dashboard answers and its node has joined.

        Raises AssertionError when it does not come to that, however often it is started.
        """
        for _ in range(HEAD_STARTS):
            self.head.start()
            deadline = time.monotonic() + HEAD_S
            while self.head.runs and time.monotonic() < deadline:
                if self._answers() and self._joined({self.head.address}):
                    # One whose client server gave up before the node had joined ends by now.
                    time.sleep(HEAD_ENDS_S)
                    if self.head.runs:
                        return
                time.sleep(LOOK_S)
            say(f"  {self.head.name} does not answer and is started again: {self.head.last_words()}")
            self.head.kill()
        raise AssertionError(f"the head was started {HEAD_STARTS} times and did not answer")

    def add(self, group: str) -> Pod:
        """Start one more pod of the group; it joins later."""
        pod = self._worker(group, self._next)
        self._next += 1
        with self._starting:
            pod.start()
            self.workers[group].append(pod)
        return pod

    def wait_nodes(self) -> None:
        """Return when every worker has joined; a pod that gave up is started again."""
        pods = [pod for group in self.workers.values() for pod in group]
        wanted = {pod.address for pod in pods}
        self._until(lambda: self._joined(wanted), [self.head, *pods], f"{len(wanted)} pods have joined")

    def stop(self) -> None:
        for pod in [self.head, *(pod for group in self.workers.values() for pod in group)]:
            pod.kill()
        self._http.close()

    def nodes(self) -> dict[str, bool]:
        """Whether Ray's autoscaler would take a node for idle, by its address."""
        status = get_cluster_status(f"{self.head.address}:{GCS_PORT}", STATUS_S)
        return {node.ip_address: False for node in status.active_nodes} | {
            node.ip_address: True for node in status.idle_nodes
        }

    def deploy(self, config: Tree) -> None:
        """Give Serve a whole configuration, as KubeRay does; it is applied later."""
        answer = self._http.put("/api/serve/applications/", json=config)
        assert answer.status_code == 200, answer.text

    def unsettled(self) -> str | None:
        """What of the applications does not run; None if all of it does."""
        try:
            applications, replicas = self.applications(), self.replicas()
        except (httpx.TransportError, AssertionError) as error:
            return str(error)
        if not applications:
            return "Serve knows no application"
        if bad := {name: told for name, told in applications.items() if not told.startswith("RUNNING")}:
            return str(bad)
        waiting = [f"{each.deployment} {each.state}" for each in replicas if each.state != "RUNNING"]
        return ", ".join(waiting) or None

    def wait_settled(self, also: Callable[[], str | None] = lambda: None) -> None:
        """Return when every pod has joined and every replica runs.

        also: what else is missing, None if nothing is. Raises AssertionError when it does not come to that.
        """
        self.wait_nodes()
        deadline = time.monotonic() + SETTLED_S
        while (missing := self.unsettled() or also()) is not None:
            assert time.monotonic() < deadline, f"after {SETTLED_S:g} s {missing}"
            time.sleep(LOOK_S)

    def applications(self) -> dict[str, str]:
        """The state of each application, with what Serve says of it."""
        found = self._serve()
        return {name: f"{app['status']} {app['message']}".strip() for name, app in found.items()}

    def replicas(self) -> list[Replica]:
        """Of all applications."""
        return [
            Replica(name, replica["state"], replica.get("node_ip"))
            for app in self._serve().values()
            for name, deployment in app["deployments"].items()
            for replica in deployment["replicas"]
        ]

    def placed(self) -> dict[str, list[str]]:
        """The deployments whose replicas run on each pod, by the pod's name."""
        names = {pod.address: pod.name for pods in self.workers.values() for pod in pods}
        names[self.head.address] = self.head.name
        held: dict[str, list[str]] = defaultdict(list)
        running = [replica for replica in self.replicas() if replica.state == "RUNNING"]
        for replica in running:
            held[names.get(replica.address or "", "nowhere")].append(replica.deployment)
        return {name: sorted(deployments) for name, deployments in sorted(held.items())}

    def _serve(self) -> Tree:
        answer = self._http.get("/api/serve/applications/")
        assert answer.status_code == 200, answer.text
        found: Tree = answer.json()["applications"]
        return found

    def _joined(self, addresses: set[str]) -> bool:
        try:
            return addresses <= self.nodes().keys()
        except RpcError:
            return False

    def _answers(self) -> bool:
        try:
            return self._http.get("/api/version").status_code == 200
        except httpx.TransportError:
            return False

    def replace_ended(self) -> None:
        """Start the workers again that ended by themselves, as KubeRay does all the time."""
        self._start_again([pod for group in self.workers.values() for pod in [*group]])

    def _start_again(self, pods: Iterable[Pod]) -> None:
        with self._starting:
            for pod in pods:
                if not pod.runs:
                    # A head ends itself, for one, when its client server has waited half a minute for its raylet.
                    say(f"  {pod.name} ended and is started again: {pod.last_words()}")
                    pod.start()

    def _until(self, holds: Callable[[], bool], pods: Iterable[Pod], what: str) -> None:
        """Wait for it, and start pods that ended again. Raises AssertionError when it does not come to hold."""
        deadline = time.monotonic() + READY_S
        while not holds():
            self._start_again(pods)
            assert time.monotonic() < deadline, f"not within {READY_S:g} s: {what}"
            time.sleep(LOOK_S)

    def _head(self, number: int) -> Pod:
        group = cluster(self._manifest)["headGroupSpec"]
        parameters = {
            **group["rayStartParams"],
            "object-store-memory": OBJECT_STORE,
            "num-gpus": "0",
            "port": str(GCS_PORT),
        }
        environ = {"RAY_REDIS_ADDRESS": f"{SERVICES}:{REDIS_PORT}", "RAY_external_storage_namespace": self.name}
        return self._pod(f"{self.name}-head", number, ["--head"], parameters, group, environ)

    def _worker(self, group: str, number: int) -> Pod:
        size = self.groups[group]
        parameters = {
            "address": f"{self.head.address}:{GCS_PORT}",
            "object-store-memory": OBJECT_STORE,
            "num-cpus": f"{size.cpus:g}",
            "num-gpus": str(size.gpus),
            "resources": json.dumps(size.resources),
        }
        return self._pod(f"{self.name}-{group}-{number}", number, [], parameters, self._specs[group], {})

    def _pod(
        self, name: str, number: int, flags: list[str], parameters: Mapping[str, str], group: Tree, more: dict[str, str]
    ) -> Pod:
        (container,) = group["template"]["spec"]["containers"]
        own = {entry["name"]: entry["value"] for entry in container.get("env", ())}
        pod = Pod(name, number, self._folder / name, (), {**self._environ, **own, **more})
        given = {
            "node-ip-address": pod.address,
            "dashboard-agent-listen-port": "52365",
            "metrics-export-port": "8080",
            **parameters,
        }
        start = ["ray", "start", "--block", "--disable-usage-stats", *flags]
        pod.command = [*start, *(f"--{key}={value}" for key, value in given.items())]
        return pod


def environment() -> dict[str, str]:
    """environment.env of the manifests."""
    lines = (KUBERAY / "base/environment.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
