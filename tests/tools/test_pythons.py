"""Which Pythons are supported: make, the package and the public CI agree, and another one is refused in a line."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from tests.support import ROOT

SUPPORTED = ["3.11", "3.12", "3.13"]
NEIGHBOURS = ["3.10", "3.14"]


def test_all_files_name_the_same_pythons() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = SpecifierSet(project["requires-python"])
    assert [version for version in SUPPORTED + NEIGHBOURS if version in allowed] == SUPPORTED
    classifiers = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    make = re.search(r"^PYTHONS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert make is not None and classifiers == make[1].split() == SUPPORTED
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    for job in ("check", "parts"):
        assert workflow["jobs"][job]["strategy"]["matrix"]["python"] == SUPPORTED


def made(folder: Path, version: str) -> str:
    """What make says with a Python that tells this version and can make no environment."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && echo {version}\n')
    python.chmod(0o755)
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", f"PYTHON={python}", "serve"], cwd=folder, env=outside, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    return done.stdout + done.stderr


@pytest.mark.parametrize("version", NEIGHBOURS)
def test_make_refuses_another_python_in_a_line(tmp_path: Path, version: str) -> None:
    said = made(tmp_path, version).splitlines()
    assert said[0] == (
        f"mochi-serve runs on Python 3.11 3.12 3.13; '{tmp_path}/python' is {version}: "
        "name another one: make PYTHON=python3.12 serve"
    )
    assert len(said) == 2 and said[1].startswith("make: ***")


@pytest.mark.parametrize("version", SUPPORTED)
def test_make_takes_a_supported_python(tmp_path: Path, version: str) -> None:
    assert "cannot make environments" in made(tmp_path, version)


def test_make_refuses_an_environment_of_another_python(tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").write_text("#!/bin/sh\necho 3.14\n")
    (tmp_path / ".venv" / "bin" / "python").chmod(0o755)
    assert "'.venv/bin/python' is 3.14: remove .venv" in made(tmp_path, "3.12")
