"""Machines without Kubernetes: the file of Ray's cluster launcher, and the containers of one machine."""

import json
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from jsonschema import Draft7Validator
from ray.serve.schema import ServeDeploySchema

from tests.support import ROOT
from tests.support.cluster.manifests import arguments, needs, profile, read
from tests.support.cluster.placement import Cluster, Group

Tree = dict[str, Any]


def launcher_errors(tree: Tree) -> list[str]:
    """What Ray's own schema has against it."""
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    return [f"{error.json_path}: {error.message[:100]}" for error in Draft7Validator(schema).iter_errors(tree)]


def compose_serve() -> Tree:
    parsed: Tree = yaml.safe_load(read("compose.yaml")["configs"]["serve"]["content"])
    return parsed


def test_the_launcher_file_holds_to_rays_schema() -> None:
    assert launcher_errors(read("vms/aws.yaml")) == []


def test_the_check_against_rays_schema_sees_mistakes() -> None:
    tree = read("vms/aws.yaml")
    tree["available_node_types"]["gpu"]["resources"]["GPU"] = "one"
    tree["max_worker"] = 3
    assert {error.split(":")[0] for error in launcher_errors(tree)} == {"$.available_node_types.gpu.resources.GPU", "$"}


def test_gpus_go_to_zero_and_every_replica_finds_its_place() -> None:
    tree = read("vms/aws.yaml")
    types = tree["available_node_types"]
    groups = [
        Group(
            name=name,
            least=kind["min_workers"],
            most=kind["max_workers"],
            gpus=kind["resources"].get("GPU", 0),
            cpus=kind["resources"]["CPU"],
            resources={k: v for k, v in kind["resources"].items() if k not in ("CPU", "GPU")},
        )
        for name, kind in types.items()
        if name != tree["head_node_type"]
    ]
    assert sum(group.most for group in groups) <= tree["max_workers"]
    assert types["head"]["resources"] == {"CPU": 0}
    wanted = needs(profile(read("vms/serve.yaml")))
    assert [least for name, (need, least, _) in wanted.items() if need.gpus] == [0, 0, 0]
    nodes = Cluster(groups)
    for name, (need, _, most) in wanted.items():
        for i in range(most):
            node = nodes.place(f"{name}-{i}", need)
            assert node is not None and bool(node.group.gpus) == bool(need.gpus), name


def test_every_file_that_the_launcher_copies_is_there_or_is_a_secret() -> None:
    ignored = (ROOT / "vms" / ".gitignore").read_text().split()
    for path in read("vms/aws.yaml")["file_mounts"].values():
        assert (ROOT / path).exists() or path.removeprefix("vms/") in ignored


@pytest.mark.parametrize("place", ["vms", "compose"])
def test_machines_serve_what_one_machine_serves(place: str) -> None:
    local = read("serve_config.yaml")
    remote = read("vms/serve.yaml") if place == "vms" else compose_serve()
    ServeDeploySchema.model_validate(remote)
    assert remote["http_options"].pop("host") == "0.0.0.0"
    local["http_options"].pop("host")
    assert remote.pop("proxy_location") == ("EveryNode" if place == "vms" else local["proxy_location"])
    local.pop("proxy_location")
    for tree in (local, remote):
        arguments(tree)
        for application in tree["applications"]:
            del application["args"]
    assert local == remote


def test_the_settings_of_the_containers_are_valid() -> None:
    environ = read("compose.yaml")["services"]["app"]["environment"]
    filled = {name: value.replace("${MOCHI_PASSWORD}", "secret") for name, value in environ.items()}
    settings = profile(compose_serve(), filled)
    assert settings.access.mode == "keys"
    assert settings.storage.endpoint == "s3:8333"
    assert settings.database_url == "postgresql+psycopg://mochi:secret@postgres:5432/mochi"
    assert settings.sampler.num_gpus and settings.sampler.max_replicas == 1


def test_containers_have_no_rights_that_they_do_not_need() -> None:
    services = read("compose.yaml")["services"]
    for name in ("app", "s3"):
        assert services[name]["read_only"] is True and services[name]["cap_drop"] == ["ALL"]
        assert services[name]["security_opt"] == ["no-new-privileges:true"]
    assert services["app"]["ports"] == ["127.0.0.1:8000:8000"]
    assert not any("ports" in services[name] for name in ("postgres", "s3"))


def test_the_store_of_containers_and_pods_is_started_in_one_way() -> None:
    stateful_set = list(yaml.safe_load_all((ROOT / "kuberay/components/seaweedfs/store.yaml").read_text()))[-1]
    (pod,) = stateful_set["spec"]["template"]["spec"]["containers"]
    command = read("compose.yaml")["services"]["s3"]["command"]
    assert [argument.replace("/app/data", "/data") for argument in command] == pod["command"] + pod["args"]
