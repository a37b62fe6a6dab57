"""The commands of `mochi-serve` as tests call them: in this process, or in one that can be interrupted."""

import json
import os
import subprocess
import sys
from typing import Any

from typer.testing import CliRunner, Result

from serve_app.cli.main import app
from tests.support import ROOT


def call(url: str, *arguments: str, key: str | None = None) -> Result:
    return CliRunner().invoke(app, [*arguments], env={"MOCHI_SERVE_URL": url, "MOCHI_SERVE_API_KEY": key})


def started(url: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "serve_app.cli.main", *arguments]
    environment = os.environ | {"MOCHI_SERVE_URL": url, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def answer(done: Result, code: int = 0) -> Any:
    """The one JSON value on stdout."""
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)
