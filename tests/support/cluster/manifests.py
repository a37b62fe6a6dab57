"""What `kubectl kustomize` makes of the folders of kuberay/, and the parts of a RayService."""

import json
import shutil
import subprocess
from functools import cache
from typing import Any

import pytest
import yaml

from deployments.embedder.devices import planned_devices
from serve_app.config import AppArgs, AppSettings
from tests.support import ROOT
from tests.support.cluster.placement import Group, Need

Tree = dict[str, Any]

KUBERAY = ROOT / "kuberay"
OVERLAYS = sorted(path.parent.name for path in KUBERAY.glob("overlays/*/kustomization.yaml"))
BINARY_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def read(path: str) -> Tree:
    parsed: Tree = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    return parsed


@cache
def _rendered(folder: str) -> str:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on this machine")
    done = subprocess.run(["kubectl", "kustomize", KUBERAY / folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(folder: str) -> list[Tree]:
    """The objects that `kubectl apply --kustomize` would send; the test is skipped where there is no kubectl."""
    return list(yaml.load_all(_rendered(folder), yaml.CSafeLoader))


def ray_service(objects: list[Tree]) -> Tree:
    (found,) = [tree for tree in objects if tree["kind"] == "RayService"]
    return found


def of_kind(objects: list[Tree], kind: str) -> list[Tree]:
    return [tree for tree in objects if tree["kind"] == kind]


def cluster(service: Tree) -> Tree:
    parsed: Tree = service["spec"]["rayClusterConfig"]
    return parsed


def worker_groups(service: Tree) -> list[Tree]:
    parsed: list[Tree] = cluster(service)["workerGroupSpecs"]
    return parsed


def templates(service: Tree) -> list[Tree]:
    """Of the head and of each group of workers."""
    return [group["template"] for group in (cluster(service)["headGroupSpec"], *worker_groups(service))]


def containers(service: Tree) -> list[Tree]:
    return [container for template in templates(service) for container in template["spec"]["containers"]]


def serve_config(service: Tree) -> Tree:
    parsed: Tree = yaml.safe_load(service["spec"]["serveConfigV2"])
    return parsed


def arguments(serve: Tree) -> AppArgs:
    """Of all applications: they are to be the same."""
    first, *others = (AppArgs.model_validate(app["args"]) for app in serve["applications"])
    assert others and all(one == first for one in others)
    return first


def profile(serve: Tree, environ: dict[str, str] | None = None) -> AppSettings:
    args = arguments(serve)
    path = None if args.config is None else str(ROOT / args.config)
    return args.model_copy(update={"config": path}).load(environ or {})


def group_of(spec: Tree) -> Group:
    """A group of workers, as Ray counts it."""
    (container,) = spec["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    return Group(
        name=spec["groupName"],
        least=spec["minReplicas"],
        most=spec["maxReplicas"],
        gpus=int(limits.get("nvidia.com/gpu", 0)),
        cpus=float(limits["cpu"]),
        resources=json.loads(json.loads(spec["rayStartParams"].get("resources", '"{}"'))),
    )


def needs(settings: AppSettings) -> dict[str, tuple[Need, int, int]]:
    """What a replica of each part takes, and how many of it there are at least and at most."""
    out = {
        "registry": (Need(gpus=0, cpus=0, resources=settings.registry.resources), 1, 1),
        "ingress": (
            Need(gpus=0, cpus=0, resources=settings.ingress.resources),
            settings.ingress.min_replicas,
            settings.ingress.max_replicas,
        ),
    }
    for name in ("encoder", "sampler", "decoder"):
        stage = getattr(settings, name)
        need = Need(gpus=stage.num_gpus, cpus=stage.num_cpus, resources=stage.resources)
        out[name] = (need, stage.min_replicas, stage.max_replicas)
    if (proteins := settings.proteins) is not None:
        http = Need(gpus=0, cpus=0, resources=settings.ingress.resources)
        out["protein_ingress"] = (http, proteins.min_http_replicas, proteins.max_http_replicas)
        devices = planned_devices(proteins, gpus=0)
        model = Need(gpus=devices.num_gpus, cpus=proteins.num_cpus, resources=proteins.resources)
        out["protein_files"] = (Need(gpus=0, cpus=0, resources=settings.registry.resources), 1, 1)
        out["proteins"] = (model, devices.count, devices.count)
    return out


def in_bytes(quantity: str) -> int:
    return int(quantity[:-2]) * BINARY_UNITS[quantity[-2:]]
