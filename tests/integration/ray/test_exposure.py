import json
from pathlib import Path

import pytest

from serve_app.access.exposure import (
    check_exposure,
    current_http_host,
    is_loopback,
    keys_needed,
    no_keys_notice,
)
from serve_app.access.tenants import AccessTable, ApiKey, Tenant
from serve_app.config import AccessMode
from serve_app.errors import ConfigError
from serve_app.jobs import Tier
from serve_app.local import plan as launch
from tests.support import ROOT

LOCAL = ("127.0.0.1", "127.0.0.53", "::1", "[::1]", "localhost", "127.1")
OPEN = ("0.0.0.0", "::", "[::]", "", "192.168.1.10", "8.8.8.8", "fe80::1", "no-such-host.invalid", "a" * 300)


@pytest.mark.parametrize("host", LOCAL)
def test_on_loopback_no_keys_are_needed(host: str) -> None:
    assert is_loopback(host)
    check_exposure(host, "auto")


@pytest.mark.parametrize("host", OPEN)
def test_in_the_open_it_must_be_said_who_may(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigError) as caught:
        check_exposure(host, "auto")
    told = str(caught.value)
    for part in ("access.mode: keys", "open-to-anyone", "mochi-serve keys create", "127.0.0.1", repr(host)):
        assert part in told
    check_exposure(host, "keys")
    check_exposure(host, "open-to-anyone")


def test_without_http_nothing_is_exposed() -> None:
    check_exposure(None, "auto")


@pytest.mark.parametrize(("mode", "needed"), [("auto", False), ("keys", True), ("open-to-anyone", False)])
def test_only_one_mode_needs_keys(mode: AccessMode, needed: bool) -> None:
    assert keys_needed(mode) is needed


def test_no_key_at_all_is_told() -> None:
    acme = Tenant("acme", Tier.STANDARD, "whsec_x", 0.0)
    key = ApiKey("key_1", "acme", "hash", "ms-abcde", "", 0.0)
    empty = AccessTable(1, {"acme": acme}, {})
    notice = no_keys_notice("keys", empty)
    assert notice is not None and "mochi-serve keys create --tenant NAME" in notice
    assert no_keys_notice("keys", AccessTable(1, {"acme": acme}, {"hash": key})) is None
    assert no_keys_notice("auto", empty) is None


def serve_config(folder: Path, http_options: dict[str, object] | None) -> Path:
    tree = {"applications": [{"import_path": "x:y", "args": {"config": str(ROOT / "configs" / "shapes.yaml")}}]}
    options = {} if http_options is None else {"http_options": http_options}
    path = folder / "serve_config.yaml"
    path.write_text(json.dumps({**tree, **options}))
    return path


@pytest.fixture
def _in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("MOCHI_SERVE_CONFIG", "MOCHI_SERVE__ACCESS__MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_in_root")
def test_serve_refuses_to_be_in_the_open_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = serve_config(tmp_path, {"host": "0.0.0.0"})
    with pytest.raises(ConfigError, match="other machines can reach"):
        launch.read_plan(config, 8265)
    launch.read_settings(config)  # what makes the first key must not need one
    monkeypatch.setenv("MOCHI_SERVE__ACCESS__MODE", "keys")
    assert launch.read_plan(config, 8265).host == "0.0.0.0"


@pytest.mark.usefixtures("_in_root")
@pytest.mark.parametrize("options", [None, {}, {"port": 8001}])
def test_a_host_that_is_left_out_is_loopback_for_serve_too(tmp_path: Path, options: dict[str, object] | None) -> None:
    plan = launch.read_plan(serve_config(tmp_path, options), 8265)
    assert plan.host == launch.check_serve_schema(plan).http_options.host == "127.0.0.1"


@pytest.mark.usefixtures("_in_root")
def test_options_that_are_no_mapping_are_named(tmp_path: Path) -> None:
    path = serve_config(tmp_path, None)
    path.write_text(json.dumps({**json.loads(path.read_text()), "http_options": ["127.0.0.1"]}))
    with pytest.raises(ConfigError, match="http_options must be a mapping"):
        launch.read_plan(path, 8265)


@pytest.mark.slow
def test_the_host_of_the_running_serve(ray_cluster: None) -> None:
    import ray
    from ray import serve

    from tests.support.ports import free_ports

    assert current_http_host() is None
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": free_ports(1)[0]})
    try:
        assert current_http_host() == "127.0.0.1"
        # An application is built in a task of its own.
        assert ray.get(ray.remote(current_http_host).options(num_cpus=0).remote()) == "127.0.0.1"
    finally:
        serve.shutdown()
