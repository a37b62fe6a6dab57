"""What stands in several files at once agrees: versions, pins, the image, the changelog, the targets of make."""

import hashlib
import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support import ROOT

# torch pins these itself, exactly, and only its CUDA builds ask for them.
CUDA_PACKAGES = re.compile(r"nvidia-|cuda-|triton$")


# What tests use, `make chaos` and `make cluster-test`.
HELPERS = {"tests/support", "tests/chaos", "tests/cluster"}


def text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def project() -> dict[str, Any]:
    parsed: dict[str, Any] = tomllib.loads(text("pyproject.toml"))["project"]
    return parsed


def pins() -> dict[str, Version]:
    lines = [line for line in text("constraints.txt").splitlines() if not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    return {name: Version(version) for name, version in pairs}


def direct_requirements() -> list[Requirement]:
    """But for those of Hopper GPUs, which say their one version themselves."""
    optional = project()["optional-dependencies"]
    assert all("==" in line for line in optional["hopper"])
    extras = [extra for name, extra in optional.items() if name != "hopper"]
    return [Requirement(line) for line in [*project()["dependencies"], *(line for extra in extras for line in extra)]]


def required(distribution: metadata.Distribution, extras: set[str]) -> Iterator[Requirement]:
    for requirement in map(Requirement, distribution.requires or []):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
            yield requirement


def closure(name: str, extras: set[str]) -> set[str]:
    """Names of all installed packages that `name[extras]` needs, itself included."""
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [(str(canonicalize_name(name)), frozenset(extras))]
    while todo:
        item = todo.pop()
        if item in seen:
            continue
        seen.add(item)
        if not CUDA_PACKAGES.match(item[0]):
            needs = required(metadata.distribution(item[0]), set(item[1]))
            todo += [(str(canonicalize_name(r.name)), frozenset(r.extras)) for r in needs]
    return {name for name, _ in seen if not CUDA_PACKAGES.match(name)}


def test_the_changelog_tells_of_this_version() -> None:
    versions = re.findall(r"^## \[(.+?)\] - (unreleased|\d{4}-\d{2}-\d{2})$", text("CHANGELOG.md"), re.MULTILINE)
    assert versions[0][0] == project()["version"]
    assert [v for v, _ in versions] == sorted((v for v, _ in versions), key=Version, reverse=True)


def test_the_license_is_the_full_apache_text() -> None:
    assert project()["license"] == "Apache-2.0"
    digest = hashlib.sha256(text("LICENSE").encode()).hexdigest()
    assert digest == "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4"


def test_every_direct_requirement_is_pinned_within_its_bounds() -> None:
    pinned = pins()
    for requirement in direct_requirements():
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_everything_installed_with_the_project_is_pinned() -> None:
    needed = closure("mochi-serve", {"dev"}) - {"mochi-serve"}
    assert needed - set(pins()) == set()


def test_pins_are_sorted_public_and_single() -> None:
    lines = [line for line in text("constraints.txt").splitlines() if not line.startswith("#")]
    assert lines == sorted(set(lines))
    assert all(version.local is None for version in pins().values())
    assert all(name == canonicalize_name(name) for name in pins())


def test_the_image_and_the_manifest_run_the_pinned_ray() -> None:
    ray = str(pins()["ray"])
    (argument,) = re.findall(r"^ARG RAY_VERSION=(\S+)$", text("Dockerfile"), re.MULTILINE)
    manifest = yaml.safe_load(text("kuberay/base/rayservice.yaml"))
    assert (argument, manifest["spec"]["rayClusterConfig"]["rayVersion"]) == (ray, ray)


def test_the_image_has_the_pinned_torch_in_a_layer_of_its_own() -> None:
    (argument,) = re.findall(r"^ARG TORCH_VERSION=(\S+)$", text("Dockerfile"), re.MULTILINE)
    assert argument == str(pins()["torch"])
    assert text("Dockerfile").index("TORCH_VERSION") < text("Dockerfile").index("COPY")


def test_every_file_that_names_our_image_names_this_version() -> None:
    files = [*ROOT.glob("kuberay/**/*.yaml"), *ROOT.glob("vms/*.yaml"), ROOT / "compose.yaml", ROOT / "Dockerfile"]
    found = [tag for path in files for tag in re.findall(r"(?<!/)mochi-serve:(\d[\w.]*)", path.read_text())]
    found += [tag for path in files for tag in re.findall(r"example.com/mochi-serve:(\S+)", path.read_text())]
    found += re.findall(r"^ARG VERSION=(\S+)$", text("Dockerfile"), re.MULTILINE)
    assert len(found) >= 7
    assert set(found) == {project()["version"]}


def test_the_image_gets_what_it_copies() -> None:
    copied = [
        source for line in re.findall(r"^COPY (.+)$", text("Dockerfile"), re.MULTILINE) for source in line.split()[:-1]
    ]
    let_in = [line[1:] for line in text(".dockerignore").splitlines() if line.startswith("!")]
    assert sorted(copied) == sorted(let_in)
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_make_lists_its_targets() -> None:
    targets = set(re.findall(r"^\.PHONY: (\S+)$", text("Makefile"), re.MULTILINE))
    listed = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in listed.splitlines()} == targets
    assert {"serve", "test", "test-long", "chaos", "cluster-test", "bench", "lint", "format", "clean"} <= targets


def test_ci_runs_what_contributors_run() -> None:
    jobs = yaml.safe_load(text(".github/workflows/ci.yml"))["jobs"]
    check = jobs["check"]["steps"][-1]["run"].split()
    assert check[:4] == ["make", "lint", "types", "unit"]
    ran = {"unit", *jobs["parts"]["strategy"]["matrix"]["part"], jobs["tools"]["steps"][-1]["run"].split()[-1]}
    folders = {path for part in ran for path in _recipe(part).split() if path.startswith("tests/")}
    assert folders == {str(path.parent.relative_to(ROOT)) for path in ROOT.glob("tests/*/__init__.py")} - HELPERS
    assert text(".ci/run").splitlines()[-1].endswith(" make test")
    assert subprocess.run(["bash", "-n", ".ci/run"], cwd=ROOT).returncode == 0
    classifiers = [c.rsplit(" ")[-1] for c in project()["classifiers"] if "Python :: 3." in c]
    assert jobs["check"]["strategy"]["matrix"]["python"] == classifiers


def _recipe(target: str) -> str:
    match = re.search(rf"^{target}: \.venv.*\n\t(.*)$", text("Makefile"), re.MULTILINE)
    assert match, f"make {target} runs no tests"
    return match[1]
