"""The Kubernetes manifests: they hold to the CRD and the API, to `serve_config.yaml` and to the profiles in use."""

import os
import re
import shlex
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from serve_app.cli.main import app
from serve_app.config import OVERRIDE_PREFIX, PROFILE_VARIABLE, load_settings
from serve_app.errors import ConfigError
from serve_app.local.plan import read_files
from serve_app.local.ray_environment import haproxy_variables, ray_variables
from tests.support import ROOT
from tests.support.cluster.manifests import (
    KUBERAY,
    OVERLAYS,
    Tree,
    arguments,
    cluster,
    containers,
    group_of,
    in_bytes,
    needs,
    of_kind,
    profile,
    ray_service,
    read,
    render,
    serve_config,
    templates,
    worker_groups,
)
from tests.support.cluster.placement import Cluster, Group, Need

CRDS = "MOCHI_SERVE_CRDS"
KUBERNETES = "1.32"
FOLDERS = ["base", *(f"overlays/{name}" for name in OVERLAYS)]
SERVE_FILES = sorted(str(path.relative_to(ROOT)) for path in KUBERAY.rglob("serve.yaml"))
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"

every_folder = pytest.mark.parametrize("folder", FOLDERS)
every_serve_file = pytest.mark.parametrize("path", SERVE_FILES)


def strict(schema: Tree) -> Tree:
    """The schema with every unknown field refused: an API server would drop such a field without a word."""
    out = deepcopy(schema)
    _close(out)
    return out


def _close(node: Tree) -> None:
    for child in node.get("properties", {}).values():
        _close(child)
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            _close(node[key])
    if node.get("x-kubernetes-preserve-unknown-fields") or node.get("type") != "object":
        return
    node.setdefault("additionalProperties", False)


def crd_validator() -> Draft202012Validator:
    """Of the RayService that the CRD stores; `metadata` itself is not the CRD's to describe."""
    folder = os.environ.get(CRDS)
    if not folder:
        pytest.skip(f"{CRDS} names no folder with KubeRay's ray.io_rayservices.yaml")
    crd = yaml.load((Path(folder) / "ray.io_rayservices.yaml").read_text(), yaml.CSafeLoader)
    (version,) = [v for v in crd["spec"]["versions"] if v["storage"]]
    assert version["name"] == "v1"
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return Draft202012Validator(schema)


def environment() -> dict[str, str]:
    lines = (KUBERAY / "base/environment.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def secrets() -> dict[str, Tree]:
    parsed = yaml.safe_load_all((KUBERAY / "secret.example.yaml").read_text())
    return {tree["metadata"]["name"]: tree["stringData"] for tree in parsed}


@every_folder
def test_the_manifest_holds_to_the_crd(folder: str) -> None:
    service = ray_service(render(folder))
    assert [f"{e.json_path}: {e.message[:200]}" for e in crd_validator().iter_errors(service)] == []


def test_the_check_against_the_crd_sees_mistakes() -> None:
    validator = crd_validator()
    service = read("kuberay/base/rayservice.yaml")
    head = templates(service)[0]["spec"]
    head["tolerationz"] = []
    head["containers"][0]["ports"] = [{"containerPort": "6379"}]
    head["containers"][0]["resources"] = {"limits": {"cpu": "four"}}
    cluster(service)["authOptions"]["mode"] = "password"
    del worker_groups(service)[0]["maxReplicas"]
    found = {e.json_path.removeprefix("$.spec.rayClusterConfig.") for e in validator.iter_errors(service)}
    spec = "headGroupSpec.template.spec"
    assert found == {
        spec,
        f"{spec}.containers[0].ports[0].containerPort",
        f"{spec}.containers[0].resources.limits.cpu",
        "authOptions.mode",
        "workerGroupSpecs[0]",
    }


def test_unknown_fields_are_refused_at_every_depth() -> None:
    schema = strict(
        {
            "type": "object",
            "properties": {
                "list": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}},
                "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {}}},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            },
        }
    )
    accepts = Draft202012Validator(schema).is_valid
    assert accepts({"list": [{"a": "x"}], "map": {"any": {}}, "free": {"any": 1}})
    assert not accepts({"list": [{"b": "x"}]})
    assert not accepts({"map": {"any": {"b": 1}}})
    assert not accepts({"other": 1})


@every_folder
def test_the_api_server_knows_every_field(folder: str) -> None:
    validator: Any = pytest.importorskip("kubernetes_validate", reason="make manifests-test installs its schemas")
    objects = render(folder)
    pods = [
        {"apiVersion": "v1", "kind": "Pod", **t, "metadata": {"name": "x"}} for t in templates(ray_service(objects))
    ]
    for tree in [*pods, *(tree for tree in objects if tree["kind"] != "RayService")]:
        validator.validate(tree, KUBERNETES, strict=True)
    for tree in yaml.safe_load_all((KUBERAY / "secret.example.yaml").read_text()):
        validator.validate(tree, KUBERNETES, strict=True)


@pytest.mark.parametrize("path", ["serve_config.yaml", *SERVE_FILES])
def test_ray_accepts_the_serve_config(path: str) -> None:
    config = ServeDeploySchema.model_validate(read(path))
    proteins = [("proteins", "/esm2")] if profile(read(path)).proteins else []
    wanted = [("api", "/"), ("mochi", None), *proteins]
    assert [(app.name, app.route_prefix) for app in config.applications] == wanted


@every_serve_file
def test_a_cluster_serves_what_one_machine_serves(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal but for the address, the place of the proxies, and the arguments: docs/kubernetes.md tells why."""
    remote = read(path)
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv(PROFILE_VARIABLE, raising=False)
    of_machine = read("serve_config.yaml")
    for application in of_machine["applications"]:
        application["args"] = remote["applications"][0]["args"]
    (tmp_path / "serve_config.yaml").write_text(yaml.safe_dump(of_machine))
    local = read_files(tmp_path / "serve_config.yaml", 8265).serve  # with the proteins, if the profile has them
    assert local["http_options"].pop("host") == "127.0.0.1"
    assert remote["http_options"].pop("host") == "0.0.0.0"
    assert (local.pop("proxy_location"), remote.pop("proxy_location")) == ("HeadOnly", "EveryNode")
    for tree in (local, remote):
        arguments(tree)
        for application in tree["applications"]:
            del application["args"]
    assert local == remote


@every_folder
def test_the_manifest_carries_its_serve_config(folder: str) -> None:
    """kustomize puts the file into the RayService and nothing else of it into the cluster."""
    objects = render(folder)
    own = KUBERAY / folder / "serve.yaml"
    source = own if own.exists() else KUBERAY / "base" / "serve.yaml"
    assert ray_service(objects)["spec"]["serveConfigV2"] == source.read_text()
    (config_map,) = of_kind(objects, "ConfigMap")
    assert config_map["data"] == environment()


@every_serve_file
def test_the_settings_of_each_cluster_are_valid(path: str) -> None:
    environ = {name: value for name, value in environment().items() if name.startswith(OVERRIDE_PREFIX)}
    settings = profile(read(path), environ | secrets()["mochi-serve"])
    assert settings.access.mode == "keys"
    assert (settings.storage.bucket, settings.storage.secure) == ("mochi-serve", False)
    assert settings.database_url.startswith("postgresql+psycopg://mochi:")
    assert settings.ingress.min_replicas >= 2
    # Counted from the GPUs at the moment of the deploy, they would be one where the GPU pods come after it.
    assert settings.proteins is None or settings.proteins.model_fields_set >= {"replicas", "num_gpus"}


def test_every_override_is_a_setting() -> None:
    known = set(secrets()["mochi-serve"]) | {name for name in environment() if name.startswith(OVERRIDE_PREFIX)}
    assert all(name.startswith(OVERRIDE_PREFIX) for name in secrets()["mochi-serve"])
    for name in known:
        with pytest.raises(ConfigError, match="unknown key"):
            load_settings(str(ROOT / "configs/kuberay.yaml"), {f"{name}X": "1"})


def test_no_secret_stands_in_the_manifests() -> None:
    assert not any(name.startswith(OVERRIDE_PREFIX) and "ACCESS__MODE" not in name for name in environment())
    for path in KUBERAY.rglob("*.yaml"):
        if path.name not in ("secret.yaml", "secret.example.yaml"):
            assert not re.search(r"(?i)(password|secret.?key|PASSWORD): *[^\s{$]", path.read_text()), path


@every_folder
def test_every_secret_that_is_named_has_its_key(folder: str) -> None:
    objects, known = render(folder), secrets()
    refs = re.findall(r"secretKeyRef:\n +key: (\S+)\n +name: (\S+)", yaml.safe_dump_all(objects))
    assert refs and all(key in known[name] for key, name in refs)
    for container in containers(ray_service(objects)):
        assert {"secretRef": {"name": "mochi-serve"}} in container["envFrom"]


@every_folder
def test_all_pods_of_ray_have_the_same_environment(folder: str) -> None:
    objects = render(folder)
    (config_map,) = of_kind(objects, "ConfigMap")
    for container in containers(ray_service(objects)):
        (source,) = [e["configMapRef"]["name"] for e in container["envFrom"] if "configMapRef" in e]
        assert source == config_map["metadata"]["name"] != "mochi-serve-environment"  # with a hash of what is in it
        assert {variable["name"] for variable in container.get("env", [])} <= {DRAIN}


def test_the_front_of_a_cluster_is_the_one_of_a_machine(tmp_path: Path) -> None:
    """Each variable of one machine is in the cluster too, or differs for a reason."""
    local = ray_variables(tmp_path) | haproxy_variables(tmp_path, tmp_path, 10_000)
    own_machine = {
        "RAY_AUTH_MODE",  # KubeRay sets these two
        "RAY_AUTH_TOKEN_PATH",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",  # loopback alone
        "MOCHI_SERVE_STDERR",  # nobody reads there what the processes say, but who collects lines
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",  # a pod has its ports for itself
    }
    files = {name for name in local if name.startswith("RAY_SERVE_HAPROXY_") and str(tmp_path) in local[name]}
    assert set(local) - own_machine - files - set(environment()) == set()
    same = set(local) & set(environment()) - files
    others = {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "RAY_SERVE_HAPROXY_MAXCONN"}
    assert {name for name in same if local[name] != environment()[name]} <= others
    program = environment()["RAY_SERVE_HAPROXY_BINARY_PATH"]
    assert f"serve_app.local.front_program {program}" in (ROOT / "Dockerfile").read_text()


@every_folder
def test_every_replica_finds_its_place_in_whatever_order_they_grow(folder: str) -> None:
    service = ray_service(render(folder))
    check_growth([group_of(spec) for spec in worker_groups(service)], needs(profile(serve_config(service))))


def check_growth(groups: list[Group], wanted: dict[str, tuple[Need, int, int]]) -> None:
    always = [f"{name}-{i}" for name, (_, least, _) in wanted.items() for i in range(least)]
    every = [f"{name}-{i}" for name, (_, _, most) in wanted.items() for i in range(most)]

    @given(st.lists(st.sampled_from(every)), st.permutations(every))
    def grow_and_shrink(toggled: list[str], order: list[str]) -> None:
        pods = Cluster(groups)
        running: set[str] = set()

        def start(name: str) -> None:
            pod = pods.place(name, wanted[name.split("-")[0]][0])
            assert pod is not None, f"{name} finds no place beside {Counter(n.split('-')[0] for n in running)}"
            assert not (pod.group.gpus and name.startswith(("registry", "ingress", "protein_ingress"))), (
                f"{name} holds a GPU pod"
            )
            running.add(name)

        for name in always:
            start(name)
        for name in toggled:
            if name not in running:
                start(name)
            elif name not in always:
                pods.remove(name)
                running.discard(name)
        for name in order:
            if name not in running:
                start(name)

    grow_and_shrink()


def test_the_check_of_places_sees_a_profile_that_is_too_large() -> None:
    group = Group(name="gpu", least=0, most=2, gpus=1, cpus=8, resources={})
    half, whole = Need(gpus=0.5, cpus=0), Need(gpus=1, cpus=0)
    check_growth([group], {"sampler": (whole, 0, 1), "decoder": (half, 0, 2)})
    with pytest.raises(AssertionError, match="finds no place"):
        check_growth([group], {"sampler": (whole, 0, 2), "decoder": (half, 0, 1)})


@every_folder
def test_the_groups_hold_no_more_than_the_profile_asks_for(folder: str) -> None:
    """A pod that no replica ever needs is paid for in vain."""
    service = ray_service(render(folder))
    wanted = needs(profile(serve_config(service)))
    for which, bound in ((1, "least"), (2, "most")):
        gpus = sum(need.gpus * bounds[which - 1] for need, *bounds in wanted.values())
        offered = sum(group_of(s).gpus * getattr(group_of(s), bound) for s in worker_groups(service))
        biggest = max((group_of(s).gpus for s in worker_groups(service)), default=0)
        assert gpus <= offered < gpus + max(biggest, 1)


@every_folder
def test_the_head_does_no_work_of_ours(folder: str) -> None:
    service = ray_service(render(folder))
    head = cluster(service)["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "resources" not in head["rayStartParams"]
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]
    for need, *_ in needs(profile(serve_config(service))).values():
        assert need.gpus or need.cpus or need.resources
    assert service["spec"]["excludeHeadPodFromServeSvc"] is True


@every_folder
def test_two_replicas_of_the_ingress_are_never_on_one_pod(folder: str) -> None:
    service = ray_service(render(folder))
    settings = profile(serve_config(service))
    (group,) = [group_of(spec) for spec in worker_groups(service) if spec["groupName"] == "cpu"]
    ((name, amount),) = settings.ingress.resources.items()
    assert 2 * amount > group.resources[name] >= amount + settings.registry.resources[name]
    of_proteins = settings.proteins.min_http_replicas if settings.proteins else 0
    assert group.gpus == 0 and group.least >= settings.ingress.min_replicas + of_proteins >= 2


@every_folder
def test_ray_ends_before_its_pod_does(folder: str) -> None:
    for spec in worker_groups(ray_service(render(folder))):
        pod = spec["template"]["spec"]
        (variable,) = [v for v in pod["containers"][0]["env"] if v["name"] == DRAIN]
        assert float(variable["value"]) + 10 <= pod["terminationGracePeriodSeconds"]


@every_folder
def test_requests_equal_limits(folder: str) -> None:
    """Ray counts the limits and Kubernetes schedules by the requests: they must be the same promise."""
    service = ray_service(render(folder))
    for container in [*containers(service), cluster(service)["autoscalerOptions"]]:
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert "ephemeral-storage" in container["resources"]["limits"]


@every_folder
def test_what_a_pod_may_write_fits_its_disk_and_memory(folder: str) -> None:
    service = ray_service(render(folder))
    for template in templates(service):
        pod, container = template["spec"], template["spec"]["containers"][0]
        limits = container["resources"]["limits"]
        sizes = {v["name"]: in_bytes(v["emptyDir"]["sizeLimit"]) for v in pod["volumes"]}
        assert sizes.keys() == {m["name"] for m in container["volumeMounts"]} == {"models", "tmp", "data", "shm"}
        assert sum(size for name, size in sizes.items() if name != "shm") <= in_bytes(limits["ephemeral-storage"])
        (shm,) = [v["emptyDir"] for v in pod["volumes"] if v["name"] == "shm"]
        assert shm["medium"] == "Memory"
        object_store = 1_000_000_000
        assert object_store < sizes["shm"] < in_bytes(limits["memory"])


@every_folder
def test_no_pod_has_rights_that_it_does_not_need(folder: str) -> None:
    objects = render(folder)
    service = ray_service(objects)
    stores = [tree["spec"]["template"] for tree in of_kind(objects, "StatefulSet")]
    for pod in [template["spec"] for template in [*templates(service), *stores]]:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["priorityClassName"] in {c["metadata"]["name"] for c in of_kind(objects, "PriorityClass")}
        for container in [*pod["containers"], cluster(service)["autoscalerOptions"]]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
    (account,) = of_kind(objects, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    head, *workers = [template["spec"] for template in [*templates(service), *stores]]
    assert "serviceAccountName" not in head  # KubeRay's, with the autoscaler's rights
    for pod in workers:
        assert pod["serviceAccountName"] == account["metadata"]["name"]
        assert pod["automountServiceAccountToken"] is False


@every_folder
def test_anyone_reaches_the_api_alone(folder: str) -> None:
    objects = render(folder)
    policies = {p["metadata"]["name"]: p["spec"] for p in of_kind(objects, "NetworkPolicy")}
    assert policies["mochi-serve-closed"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    rules = [rule for policy in policies.values() for rule in policy.get("ingress", [])]
    open_to_all = [rule["ports"] for rule in rules if not rule.get("from")]
    assert open_to_all == [[{"port": 8000, "protocol": "TCP"}]]
    for template in templates(ray_service(objects)):
        selected = policies["mochi-serve-ray"]["podSelector"]["matchLabels"]
        assert selected.items() <= template["metadata"]["labels"].items()
    for tree in of_kind(objects, "StatefulSet"):
        labels = tree["spec"]["template"]["metadata"]["labels"].items()
        assert any(p["podSelector"].get("matchLabels", {"": ""}).items() <= labels for p in policies.values()), tree


@every_folder
def test_everything_is_in_the_namespace_and_labelled(folder: str) -> None:
    for tree in render(folder):
        assert tree["metadata"]["labels"].items() >= {
            ("app.kubernetes.io/name", "mochi-serve"),
            ("app.kubernetes.io/part-of", "mochi-serve"),
        }
        if tree["kind"] not in ("Namespace", "PriorityClass"):
            assert tree["metadata"]["namespace"] == "mochi-serve"


@every_folder
def test_the_quota_has_room_for_the_two_clusters_of_an_upgrade(folder: str) -> None:
    objects = render(folder)
    (quota,) = of_kind(objects, "ResourceQuota")
    groups = [group_of(spec) for spec in worker_groups(ray_service(objects))]
    assert int(quota["spec"]["hard"]["requests.nvidia.com/gpu"]) >= 2 * sum(g.gpus * g.most for g in groups)
    stores = len(of_kind(objects, "StatefulSet"))
    assert int(quota["spec"]["hard"]["pods"]) >= 2 * (1 + sum(g.most for g in groups)) + stores


@every_folder
def test_the_disruption_budget_is_of_pods_that_there_are(folder: str) -> None:
    objects = render(folder)
    (budget,) = of_kind(objects, "PodDisruptionBudget")
    selected = budget["spec"]["selector"]["matchLabels"]
    name = selected.pop("ray.io/group")
    (group,) = [spec for spec in worker_groups(ray_service(objects)) if spec["groupName"] == name]
    assert selected.items() <= group["template"]["metadata"]["labels"].items()
    assert group["minReplicas"] > budget["spec"]["minAvailable"]


@every_folder
def test_probes_bear_minutes_of_starting(folder: str) -> None:
    for container in containers(ray_service(render(folder))):
        probe = container["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] >= 600
        assert "local_raylet_healthz" in probe["exec"]["command"][-1]


@every_folder
def test_the_ports_of_the_head(folder: str) -> None:
    service = ray_service(render(folder))
    ports = {port["name"]: port["containerPort"] for port in containers(service)[0]["ports"]}
    assert (ports["serve"], ports["dashboard"]) == (serve_config(service)["http_options"]["port"], 8265)


@every_folder
def test_ray_asks_for_its_token_and_survives_its_head(folder: str) -> None:
    service = ray_service(render(folder))
    assert cluster(service)["authOptions"] == {"mode": "token"}
    redis = cluster(service)["gcsFaultToleranceOptions"]
    assert redis.keys() == {"redisAddress", "redisPassword"}
    assert cluster(service)["autoscalerOptions"]["version"] == "v2"


def test_gpu_pods_go_to_gpu_nodes() -> None:
    for folder in ("overlays/h100", "overlays/spot", "overlays/multi-gpu", "overlays/esm2-gpu"):
        for spec in worker_groups(ray_service(render(folder))):
            pod = spec["template"]["spec"]
            assert ("nvidia.com/gpu.product" in pod.get("nodeSelector", {})) == (spec["groupName"] != "cpu")
            assert (pod.get("runtimeClassName") == "nvidia") == (spec["groupName"] != "cpu")
            tolerated = {toleration["key"] for toleration in pod.get("tolerations", [])}
            assert ("nvidia.com/gpu" in tolerated) == (spec["groupName"] != "cpu")


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_names_every_image_that_is_ours(name: str) -> None:
    images = {i["name"] for i in read(f"kuberay/overlays/{name}/kustomization.yaml").get("images", [])}
    inherited = {"../h100", "../dev-cpu"} & set(read(f"kuberay/overlays/{name}/kustomization.yaml")["resources"])
    assert "registry.example.com/mochi-serve" in images or inherited


@pytest.mark.parametrize("store", ["seaweedfs", "minio"])
def test_each_store_is_behind_the_same_service(store: str, tmp_path: Path) -> None:
    service, policy, pods = yaml.safe_load_all((KUBERAY / "components" / store / "store.yaml").read_text())
    (port,) = service["spec"]["ports"]
    assert f"{service['metadata']['name']}:{port['port']}" == secrets()["mochi-serve"]["MOCHI_SERVE__STORAGE__ENDPOINT"]
    labels = pods["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == policy["spec"]["podSelector"]["matchLabels"] == labels


def test_prometheus_reads_pods_that_there_are_on_ports_that_they_have() -> None:
    """Its operator's objects have no schema among Kubernetes' own: what they name is looked for in the base."""
    service = ray_service(render("base"))
    objects = render("components/prometheus")
    pods = [
        ({"ray.io/group": spec["groupName"], **spec["template"]["metadata"]["labels"]}, spec["template"]["spec"])
        for spec in worker_groups(service)
    ]
    ours, rays = of_kind(objects, "PodMonitor")
    (endpoint,) = ours["spec"]["podMetricsEndpoints"]
    assert (endpoint["path"], endpoint["authorization"]["credentials"]["name"]) == ("/metrics", "mochi-serve-metrics")
    ports = {}
    for monitor in (ours, rays):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        (read_port,) = [each["port"] for each in monitor["spec"]["podMetricsEndpoints"]]
        chosen = [pod for labels, pod in pods if wanted.items() <= labels.items()]
        assert chosen
        for pod in chosen:
            named = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
            ports[monitor["metadata"]["name"]] = named[read_port]
    assert ports["mochi-serve"] == serve_config(service)["http_options"]["port"]
    (policy,) = of_kind(objects, "NetworkPolicy")
    (rule,) = policy["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == [ports["mochi-serve-ray"]] and rule["from"]
    assert {tree["kind"] for tree in objects} == {"PodMonitor", "NetworkPolicy", "PrometheusRule"}


def test_the_profiles_of_mochi_differ_in_their_gpus_only() -> None:
    assert read("configs/kuberay.yaml")["model"] == read("configs/mochi-1-preview.yaml")["model"]


def test_the_command_that_makes_the_first_key_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/kubernetes.md has it, in a pod's folder and environment, but with a database of this test."""
    (line,) = re.findall(
        r"^ *kubectl exec .* -- mochi-serve (keys create .*)$", text("docs/kubernetes.md"), re.MULTILINE
    )
    for name, value in (environment() | secrets()["mochi-serve"]).items():
        if name.startswith(OVERRIDE_PREFIX):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("MOCHI_SERVE__DATABASE__URL", f"sqlite:///{tmp_path / 'jobs.db'}")
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(app, shlex.split(line))
    assert done.exit_code == 0, done.output
    assert re.search(r"ms-[\w-]{43}", done.output)


def test_the_guide_names_what_there_is() -> None:
    guide = text("docs/kubernetes.md")
    assert set(re.findall(r"kuberay/overlays/([\w-]+)", guide)) == set(OVERLAYS)
    names = {"mochi-serve", "mochi-serve-stores"}
    assert set(re.findall(r"secret/([\w-]+)", guide)) <= names


def text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")
