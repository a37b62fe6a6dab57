"""How the applications start the one registry, at the same time."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray

from serve_app.app import REGISTRY, ensure_registry
from serve_app.config import AppArgs, AppSettings, load_settings
from serve_app.errors import StartupError
from tests.support import ROOT
from tests.support.servers.ports import free_ports


def start(settings: AppSettings) -> str:
    with pytest.raises(StartupError) as caught:
        ensure_registry(settings)
    return str(caught.value)


@pytest.mark.slow
def test_each_application_is_told_why_the_registry_cannot_start(ray_cluster: None) -> None:
    (port,) = free_ports(1)
    settings = load_settings(
        str(ROOT / "configs" / "shapes.yaml"),
        {
            "MOCHI_SERVE__NAMESPACE": "test-registry-start",
            "MOCHI_SERVE__STORAGE": "{endpoint: 127.0.0.1:9, access_key: none, secret_key: none}",
            "MOCHI_SERVE__DATABASE__URL": f"postgresql+psycopg://nobody@127.0.0.1:{port}/none",
        },
    )
    with ThreadPoolExecutor(4) as pool:
        reasons = list(pool.map(start, [settings] * 4))
    assert all("the job database does not work: " in reason for reason in reasons), reasons


def test_a_deploy_with_other_settings_ends_the_registry_and_starts_one_with_them(
    ray_cluster: None, tmp_path: Path
) -> None:
    namespace = "test-registry-settings"
    environ = {
        "MOCHI_SERVE__NAMESPACE": namespace,
        "MOCHI_SERVE__DATA_DIR": str(tmp_path),
        "MOCHI_SERVE__STORAGE": "{endpoint: 127.0.0.1:9, access_key: none, secret_key: none}",
    }

    def deploy(**jobs: object) -> str:
        settings = AppArgs(config=str(ROOT / "configs" / "shapes.yaml"), settings={"jobs": jobs}).load(environ)
        with ThreadPoolExecutor(2) as pool:  # the two applications are built at the same time
            list(pool.map(ensure_registry, [settings] * 2))
        registry = ray.get_actor(REGISTRY, namespace=namespace)
        assert ray.get(registry.health.remote()).database == "ok"
        return str(registry._actor_id)

    first = deploy(lease_s=20)
    assert deploy(lease_s=20) == first
    assert deploy(lease_s=25) != first
    ray.kill(ray.get_actor(REGISTRY, namespace=namespace))
