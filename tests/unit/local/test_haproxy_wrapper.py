"""What is changed in the configuration that Ray Serve writes for HAProxy."""

from importlib.util import find_spec
from pathlib import Path

from serve_app.local.haproxy_wrapper import revise

CONFIG = """\
frontend prometheus
    bind :9101
frontend http_frontend
    bind 127.0.0.1:8000
    http-request return status 404 content-type text/plain string "unhealthy" if healthcheck
    default_backend default_backend
backend default_backend
    mode http
    http-request return status 404 content-type text/plain lf-string "Path not found"
backend other
    http-request return status 404 content-type text/plain string "kept"
listen stats
  bind *:8404
  bind *:84040
"""
REVISED = """\
frontend prometheus
    bind 127.0.0.1:9101
frontend http_frontend
    bind 127.0.0.1:8000
    http-request return status 404 content-type text/plain string "unhealthy" if healthcheck
    default_backend default_backend
backend default_backend
    mode http
    http-request return status 503 hdr Retry-After 2 content-type text/plain lf-string "Path not found"
backend other
    http-request return status 404 content-type text/plain string "kept"
listen stats
  bind 127.0.0.1:8404
  bind *:84040
"""


def test_the_configuration_is_changed_in_these_places_alone() -> None:
    assert revise(CONFIG, [9101, 8404]) == REVISED
    assert revise(REVISED, [9101, 8404]) == REVISED


def test_an_answer_that_is_no_404_is_left_as_it_is() -> None:
    other = CONFIG.replace('return status 404 content-type text/plain lf-string "Path', 'return status 410 "Path')
    assert revise(other, [1]) == other


def test_the_template_of_ray_serve_has_what_is_changed() -> None:
    ray = find_spec("ray")
    assert ray is not None and ray.submodule_search_locations is not None
    text = (Path(ray.submodule_search_locations[0]) / "serve/_private/haproxy_templates.py").read_text()
    made = text.replace("{{ config.metrics_port }}", "9101").replace("{{ config.stats_port }}", "8404")
    changed = revise(made, [9101, 8404])
    assert "bind 127.0.0.1:9101\n" in changed and "bind 127.0.0.1:8404\n" in changed
    assert "backend default_backend\n    http-request return status 503 hdr Retry-After 2 content-type" in changed
