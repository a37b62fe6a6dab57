"""The Kubernetes manifest: it holds to the CRD, to `serve_config.yaml` and to the profile it deploys."""

import math
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from ray.serve.schema import ServeDeploySchema

from serve_app.config import OVERRIDE_PREFIX, AppSettings, load_settings
from tests.support import ROOT

CRDS = "MOCHI_SERVE_CRDS"

Tree = dict[str, Any]


def read(path: str) -> Tree:
    parsed: Tree = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    return parsed


@pytest.fixture
def manifest() -> Tree:
    return read("kuberay/rayservice.yaml")


def cluster(manifest: Tree) -> Tree:
    parsed: Tree = manifest["spec"]["rayClusterConfig"]
    return parsed


def serve_config(manifest: Tree) -> Tree:
    parsed: Tree = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    return parsed


def pods(manifest: Tree) -> list[Tree]:
    groups = [cluster(manifest)["headGroupSpec"], *cluster(manifest)["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def containers(manifest: Tree) -> list[Tree]:
    return [container for pod in pods(manifest) for container in pod["containers"]]


def environment(container: Tree) -> dict[str, Tree]:
    return {variable["name"]: variable for variable in container["env"]}


def profile(manifest: Tree) -> AppSettings:
    (name,) = {app["args"]["config"] for app in serve_config(manifest)["applications"]}
    return load_settings(str(ROOT / name), {})


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


def test_the_manifest_holds_to_the_crd(manifest: Tree) -> None:
    errors = [f"{e.json_path}: {e.message[:200]}" for e in crd_validator().iter_errors(manifest)]
    assert errors == []


def test_the_check_against_the_crd_sees_mistakes(manifest: Tree) -> None:
    validator = crd_validator()
    head = pods(manifest)[0]
    head["tolerationz"] = []
    head["containers"][0]["ports"][0]["containerPort"] = "6379"
    head["containers"][0]["resources"]["limits"]["cpu"] = "four"
    cluster(manifest)["authOptions"]["mode"] = "password"
    del cluster(manifest)["workerGroupSpecs"][0]["maxReplicas"]
    found = {e.json_path.removeprefix("$.spec.rayClusterConfig.") for e in validator.iter_errors(manifest)}
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


@pytest.mark.parametrize("path", ["serve_config.yaml", "kuberay/rayservice.yaml"])
def test_ray_accepts_the_serve_config(path: str) -> None:
    tree = read(path)
    config = ServeDeploySchema.model_validate(serve_config(tree) if "kind" in tree else tree)
    assert [(app.name, app.route_prefix) for app in config.applications] == [("api", "/"), ("mochi", None)]


def test_the_cluster_serves_what_one_machine_serves(manifest: Tree) -> None:
    """Equal but for the address, the place of the proxies, and the profile: README.md of kuberay/ tells why."""
    local, remote = read("serve_config.yaml"), serve_config(manifest)
    assert local["http_options"].pop("host") == "127.0.0.1"
    assert remote["http_options"].pop("host") == "0.0.0.0"
    assert (local.pop("proxy_location"), remote.pop("proxy_location")) == ("HeadOnly", "EveryNode")
    for app in local["applications"] + remote["applications"]:
        assert app["args"].pop("config").startswith("configs/")
    assert local == remote


def test_every_override_is_a_setting(manifest: Tree) -> None:
    known = {"ENDPOINT": "a:1", "SECURE": "false", "URL": "postgresql+psycopg://h/d", "KEY": "A" * 43 + "="}
    for container in containers(manifest):
        names = [name for name in environment(container) if name.startswith(OVERRIDE_PREFIX)]
        settings = load_settings(
            str(ROOT / "configs/kuberay.yaml"), {name: known.get(name.split("__")[-1], "abc") for name in names}
        )
        assert settings.storage.endpoint == "a:1"
        assert settings.storage.secret_key is not None
        assert settings.storage.secure is False
        assert settings.database_url == "postgresql+psycopg://h/d"


def test_all_pods_have_the_same_environment(manifest: Tree) -> None:
    first, *rest = [environment(container) for container in containers(manifest)]
    assert rest and all(other == first for other in rest)


def test_the_example_secret_has_every_key(manifest: Tree) -> None:
    secret = read("kuberay/secret.example.yaml")
    for container in containers(manifest):
        refs = [v["valueFrom"]["secretKeyRef"] for v in container["env"] if "valueFrom" in v]
        assert {ref["name"] for ref in refs} == {secret["metadata"]["name"]}
        assert {ref["key"] for ref in refs} == set(secret["stringData"])


def test_the_example_secret_is_a_valid_setting(manifest: Tree) -> None:
    secret = read("kuberay/secret.example.yaml")["stringData"]
    environ = {
        name: secret[variable["valueFrom"]["secretKeyRef"]["key"]]
        for name, variable in environment(containers(manifest)[0]).items()
        if name.startswith(OVERRIDE_PREFIX)
    }
    assert load_settings(str(ROOT / "configs/kuberay.yaml"), environ).storage.bucket == "mochi-serve"


def test_no_secret_stands_in_the_manifest(manifest: Tree) -> None:
    for container in containers(manifest):
        for name, variable in environment(container).items():
            assert ("valueFrom" in variable) == name.startswith(OVERRIDE_PREFIX), name


def test_the_worker_group_holds_what_the_profile_asks_for(manifest: Tree) -> None:
    (group,) = cluster(manifest)["workerGroupSpecs"]
    settings = profile(manifest)
    whole, shared = settings.sampler, (settings.encoder, settings.decoder)
    gpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert whole.num_gpus == gpus == 1
    assert group["minReplicas"] == whole.min_replicas + math.ceil(sum(s.num_gpus * s.min_replicas for s in shared))
    assert group["maxReplicas"] == whole.max_replicas + math.ceil(sum(s.num_gpus * s.max_replicas for s in shared))
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_profiles_of_mochi_differ_in_their_gpus_only() -> None:
    assert read("configs/kuberay.yaml")["model"] == read("configs/mochi-1-preview.yaml")["model"]


def test_the_head_takes_no_model(manifest: Tree) -> None:
    head = cluster(manifest)["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_requests_equal_limits(manifest: Tree) -> None:
    """Ray counts the limits and Kubernetes schedules by the requests: they must be the same promise."""
    for container in containers(manifest):
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_no_pod_runs_as_root(manifest: Tree) -> None:
    for pod in pods(manifest):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert all(c["securityContext"]["allowPrivilegeEscalation"] is False for c in pod["containers"])


def test_the_ports_of_the_head(manifest: Tree) -> None:
    ports = {port["name"]: port["containerPort"] for port in containers(manifest)[0]["ports"]}
    assert (ports["serve"], ports["dashboard"]) == (serve_config(manifest)["http_options"]["port"], 8265)


def test_ray_asks_for_its_token(manifest: Tree) -> None:
    assert cluster(manifest)["authOptions"] == {"mode": "token"}
