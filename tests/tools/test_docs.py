"""The documents name files and make targets that exist."""

import re
from pathlib import Path

import pytest

from tests.support import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"]
SOURCES = ("serve_app", "deployments", "models", "monitoring", "tests", "benchmarks", "kuberay", "configs")
NAME = r"[A-Za-z0-9_./-]+"


def code_of(document: Path) -> list[str]:
    """What stands between backticks in a line."""
    return re.findall(r"`([^`\n]+)`", document.read_text(encoding="utf-8"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(document: Path) -> None:
    paths = [code for code in code_of(document) if re.fullmatch(rf"(?:{'|'.join(SOURCES)})/{NAME}", code)]
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_modules_that_are_named_alone_exist() -> None:
    """In the architecture a file is named by its last part when its folder stands in the same sentence."""
    known = {path.name for source in SOURCES for path in (ROOT / source).rglob("*.py")}
    named = {code for code in code_of(ROOT / "docs" / "architecture.md") if re.fullmatch(r"\w+\.py", code)}
    assert named - known == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_that_are_named_exist(document: Path) -> None:
    targets = set(re.findall(r"^\.PHONY: (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {match[1] for code in code_of(document) if (match := re.match(r"make ([a-z-]+)", code))}
    assert named - targets == set()
