"""How the applications start the one registry, at the same time."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from serve_app.app import ensure_registry
from serve_app.config import AppSettings, load_settings
from serve_app.errors import StartupError
from tests.support import ROOT
from tests.support.servers.ports import free_ports


def start(settings: AppSettings) -> str:
    with pytest.raises(StartupError) as caught:
        ensure_registry(settings)
    return str(caught.value)


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
