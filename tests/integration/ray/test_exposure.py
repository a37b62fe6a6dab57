import pytest
import ray
from ray import serve

from serve_app.access.exposure import current_http_host
from tests.support.servers.ports import free_ports


@pytest.mark.slow
def test_the_host_of_the_running_serve(ray_cluster: None) -> None:
    assert current_http_host() is None
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": free_ports(1)[0]})
    try:
        assert current_http_host() == "127.0.0.1"
        # An application is built in a task of its own.
        assert ray.get(ray.remote(current_http_host).options(num_cpus=0).remote()) == "127.0.0.1"
    finally:
        serve.shutdown()
