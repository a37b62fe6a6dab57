"""The order of the packages: `serve_app` imports `deployments`, never the reverse, and nothing imports in a circle."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("deployments", "serve_app")

# What jobs, settings and messages are made of loads in every process, so it must stay light.
LIGHT = (
    "deployments.errors",
    "deployments.messages",
    "deployments.settings",
    "serve_app.config",
    "serve_app.errors",
    "serve_app.jobs",
)
HEAVY = ("ray", "torch", "diffusers", "transformers", "fastapi", "minio")


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def project_modules(root: Path) -> dict[str, ast.Module]:
    paths = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    return {module_name(path, root): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def runs_on_import(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs when the module is imported: no bodies of functions, nothing for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(child):
            continue
        yield child
        yield from runs_on_import(child)


def imported(node: ast.AST) -> Iterator[str]:
    """The dotted names that one import statement may load; `from a import b` may mean the module `a.b`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports hide the direction"
        assert node.module is not None
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def import_graph(modules: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Module -> modules of the project that it loads while it is imported."""
    return {
        name: {target for node in runs_on_import(tree) for target in imported(node) if target in modules}
        for name, tree in modules.items()
    }


def wrong_way(modules: dict[str, ast.Module]) -> list[str]:
    """Imports of `serve_app` in `deployments`, also inside of functions."""
    return [
        f"{name} imports {target}"
        for name, tree in modules.items()
        if name.split(".")[0] == "deployments"
        for node in ast.walk(tree)
        for target in imported(node)
        if target.split(".")[0] == "serve_app"
    ]


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def parsed(**sources: str) -> dict[str, ast.Module]:
    return {name.replace("__", "."): ast.parse(source) for name, source in sources.items()}


def test_the_workers_do_not_know_the_control_side() -> None:
    assert wrong_way(project_modules(ROOT)) == []


def test_the_control_side_uses_the_workers() -> None:
    graph = import_graph(project_modules(ROOT))
    assert any(
        target.startswith("deployments.") for name in graph if name.startswith("serve_app") for target in graph[name]
    )


def test_no_circles() -> None:
    assert circle(import_graph(project_modules(ROOT))) == []


def test_only_these_two_packages_import_each_other() -> None:
    outside = {"tests", "benchmarks"}
    found = {
        target
        for tree in project_modules(ROOT).values()
        for node in ast.walk(tree)
        for target in imported(node)
        if target.split(".")[0] in outside
    }
    assert found == set()


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_stay_light(name: str) -> None:
    code = f"import sys, {name}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_wrong_import_in_a_function_is_seen() -> None:
    modules = parsed(deployments__a="def f():\n    from serve_app import jobs\n", serve_app__jobs="")
    assert wrong_way(modules) == [
        "deployments.a imports serve_app",
        "deployments.a imports serve_app.jobs",
    ]


def test_a_circle_is_seen() -> None:
    modules = parsed(
        deployments__a="from deployments import b", deployments__b="if True:\n    import deployments.a as a"
    )
    assert set(circle(import_graph(modules))) == {"deployments.a", "deployments.b"}


def test_imports_for_type_checkers_and_in_functions_make_no_circle() -> None:
    modules = parsed(
        deployments__a="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import deployments.b",
        deployments__b="import deployments.a\ndef f():\n    import deployments.b",
    )
    assert circle(import_graph(modules)) == []
