"""The environments that `make clients` makes, and programs in them: they share nothing with this Python."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

# Of LiteLLM's proxy, which refuses keys that stand in examples.
PROXY_KEY = "sk-7d1f0c5ab93e4428"
PROGRAMS = ROOT / "tests" / "support" / "clients"
CLIENTS = ROOT / ".clients"
# LiteLLM alone loads for ten seconds on an idle machine.
END_S = 600


@dataclass(frozen=True)
class Environment:
    """Where a client's program runs.

    Attributes:
        command: what runs a program's file.
        stamp: the file that says that `make clients` made it; '' for this Python's own environment.
        variables: of the process, beside those of this one.
        modules: node_modules that a program finds only beside itself.
    """

    command: tuple[str, ...]
    stamp: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    modules: Path | None = None

    def need(self) -> None:
        """Skip the test where `make clients` has not made it."""
        if self.stamp and not ((CLIENTS / self.stamp).exists() and shutil.which(self.command[0])):
            pytest.skip(f"{self.stamp.removeprefix('.')} is not in .clients: `make clients` installs it")

    def run(self, program: Path, url: str, folder: Path, *arguments: str) -> str:
        """Run a program in `folder`; returns its stdout. Raises AssertionError with all it said if it fails.

        Args:
            url: the server's, as MOCHI_SERVE_URL.
        """
        self.need()
        if self.modules:
            # Node looks for packages beside the program's file, wherever it runs.
            if program.parent != folder:
                program = Path(shutil.copy(program, folder))
            (folder / "node_modules").symlink_to(self.modules)
        done = subprocess.run(
            [*self.command, str(program), *arguments],
            cwd=folder,
            env=process_variables(self.variables | {"MOCHI_SERVE_URL": url}),
            capture_output=True,
            text=True,
            timeout=END_S,
        )
        assert done.returncode == 0, f"{program.name} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def told(self, program: str, url: str, folder: Path, *arguments: str) -> dict[str, Any]:
        """Run one of the programs beside this file; returns the JSON object that it tells."""
        told: dict[str, Any] = json.loads(self.run(PROGRAMS / program, url, folder, *arguments))
        return told


def process_variables(more: dict[str, str]) -> dict[str, str]:
    """Of a process of its own: this Python's paths and the machine's keys are not for it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OPENAI_", "LITELLM_"))}
    # Both would ask the world outside: for the prices of models, and to tell that it was started.
    return kept | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"} | more


NEWEST = Environment((sys.executable,))
OWN = Environment((sys.executable,), variables={"PYTHONPATH": str(ROOT)})
OLDEST = Environment((sys.executable,), ".openai-oldest", {"PYTHONPATH": str(CLIENTS / "openai-oldest")})
LITELLM = Environment((str(CLIENTS / "litellm" / "bin" / "python"),), ".litellm")
NODE = Environment(("node",), ".node", modules=CLIENTS / "node" / "node_modules")
