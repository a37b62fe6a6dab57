"""What a start checks with Ray's own code, and what it says of failures."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_app.config import load_settings
from serve_app.errors import StartupError
from serve_app.local.plan import check_serve_schema, needed_ports, read_plan
from serve_app.local.preflight import check_gpus
from serve_app.local.ray_environment import haproxy_available
from serve_app.local.server import error_line
from tests.support import ROOT


@pytest.mark.parametrize("options", [{}, {"http_options": {}}, {"http_options": {"port": 8001}}])
def test_a_host_that_is_left_out_is_loopback_for_serve_too(
    write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    monkeypatch.delenv("MOCHI_SERVE_CONFIG", raising=False)
    profile = str(ROOT / "configs" / "shapes.yaml")
    tree = {"applications": [{"import_path": "x:y", "args": {"config": profile}}], **options}
    plan = read_plan(write("serve_config.yaml", json.dumps(tree)), 8265)
    assert plan.host == check_serve_schema(plan).http_options.host == "127.0.0.1"


def test_the_included_config_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan = read_plan(Path("serve_config.yaml"), 8265)
    check_serve_schema(plan)
    assert plan.address == "http://127.0.0.1:8000"
    needed = needed_ports(plan, {})
    assert {8265, *range(8333, 8341)} <= set(needed)
    assert not haproxy_available() or {9101, 8404} <= set(needed)


def test_files_of_serve_are_json_where_ours_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = check_serve_schema(read_plan(Path("serve_config.yaml"), 8265))
    monkeypatch.setenv("MOCHI_SERVE__LOGGING__FORMAT", "json")
    written = check_serve_schema(read_plan(Path("serve_config.yaml"), 8265))
    for schema, encoding in ((text, "TEXT"), (written, "JSON")):
        configs = [schema.logging_config, *(app.logging_config for app in schema.applications)]
        assert [config.encoding for config in configs] == [encoding] * 3
        assert [config.log_level for config in configs] == ["WARNING", "INFO", "INFO"]


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("", "no reason was given"),
        ("deploying", "deploying"),
        ("Traceback:\n  File x\nValueError: bad\n", "ValueError: bad"),
        ("a.b.StartupError: port 1\n\nSee the logs", "a.b.StartupError: port 1"),
    ],
)
def test_the_line_that_says_most(message: str, line: str) -> None:
    assert error_line(message) == line


def test_a_profile_that_needs_more_gpus_than_there_are_is_told_so() -> None:
    settings = load_settings(str(ROOT / "configs" / "mochi-1-preview.yaml"), {})
    check_gpus(settings, 3)
    with pytest.raises(StartupError, match=r"needs 3 GPUs \(encoder 1, sampler 1, decoder 1\) and this machine has 2"):
        check_gpus(settings, 2)
    for name in ("one-gpu", "48gb", "24gb"):
        check_gpus(load_settings(str(ROOT / "configs" / f"mochi-1-{name}.yaml"), {}), 1)
    check_gpus(load_settings(str(ROOT / "configs" / "shapes.yaml"), {}), 0)
