"""What is changed in the configuration that Ray Serve writes for HAProxy."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

from serve_app.local.haproxy_wrapper import ERRORS, Front, revise

CONFIG = """\
defaults
    mode http
    retry-on conn-failure
    errorfile 502 /tmp/500.http
    errorfile 503 /tmp/500.http
    errorfile 504 /tmp/500.http
    balance random
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
defaults
    mode http
    timeout http-request 7500ms
    retry-on conn-failure empty-response
    (errors)
    balance random
frontend prometheus
    bind 127.0.0.1:9101
frontend http_frontend
    stick-table type ipv6 size 100k expire 1m store conn_cur
    tcp-request connection track-sc0 src,ipmask(32,64) unless { src 127.0.0.1 ::1 10.1.0.0/16 }
    tcp-request connection reject if { sc0_conn_cur gt 300 }
    http-request wait-for-body time 20500ms if { req.hdr(Idempotency-Key) -m found }
    http-request disable-l7-retry unless METH_GET || { method DELETE } || { req.hdr(Idempotency-Key) -m found }
    (plain errors)
    bind 127.0.0.1:8000
    http-request return status 404 content-type text/plain string "unhealthy" if healthcheck
    default_backend default_backend
backend default_backend
    mode http
    http-request return status 503 default-errorfiles
backend other
    http-request return status 404 content-type text/plain string "kept"
listen stats
  bind 127.0.0.1:8404
  bind *:84040
"""


FRONT = Front(
    (9101, 8404), head_timeout_s=7.5, connections_per_address=300, body_timeout_s=20.5, trusted=["10.1.0.0/16"]
)


def test_the_configuration_is_changed_in_these_places_alone() -> None:
    revised = revise(CONFIG, FRONT)
    short = re.sub(r"(    http-error .*\n)+", "    (errors)\n", revised)
    assert re.sub(r"(    http-response return .*\n)+", "    (plain errors)\n", short) == REVISED
    assert revise(revised, FRONT) == revised


def test_each_error_is_the_envelope() -> None:
    line = r"http-error status (\d+) content-type application/json string '([^']*)' (.*)"
    errors = re.findall(line, revise(CONFIG, FRONT))
    assert [int(status) for status, _, _ in errors] == [*ERRORS]
    for status, body, headers in errors:
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == ("server_error" if status >= "500" else "invalid_request_error")
        assert ("hdr Retry-After 2" in headers) == (status == "503")


def test_an_answer_that_is_no_404_is_left_as_it_is() -> None:
    other = CONFIG.replace('return status 404 content-type text/plain lf-string "Path', 'return status 410 "Path')
    assert 'return status 410 "Path' in revise(other, FRONT)


def test_the_template_of_ray_serve_has_what_is_changed() -> None:
    ray = find_spec("ray")
    assert ray is not None and ray.submodule_search_locations is not None
    text = (Path(ray.submodule_search_locations[0]) / "serve/_private/haproxy_templates.py").read_text()
    made = text.replace("{{ config.metrics_port }}", "9101").replace("{{ config.stats_port }}", "8404")
    changed = revise(made, FRONT)
    assert "bind 127.0.0.1:9101\n" in changed and "bind 127.0.0.1:8404\n" in changed
    assert "backend default_backend\n    http-request return status 503 default-errorfiles\n" in changed
    assert "errorfile " not in changed and changed.count("http-error status ") == len(ERRORS)
    assert "frontend http_frontend\n    stick-table type ipv6 " in changed
    assert "    http-response return status 400 default-errorfiles if" in changed
    assert changed.count("defaults\n    mode http\n    timeout http-request 7500ms\n") == 1
