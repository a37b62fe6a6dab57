"""What is said of a server that is to run: away, stopped, foreign, of another version, with another clock."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from serve_app.doctor.checks.server import check_applications, check_server
from serve_app.doctor.finding import Check, Finding, State
from serve_app.version import VERSION
from tests.support.doctor import by_name, look, only, patient, stopped_listener

REPLICA = {"replica": "a", "device": "cpu", "problem": None}
HEALTHY: dict[str, Any] = {
    "status": "ok",
    "version": VERSION,
    "devices": {"encoding": [REPLICA], "sampling": [REPLICA], "decoding": [REPLICA]},
    "starting": {},
    "waiting_for": None,
    "error": None,
}


@contextmanager
def answering(
    report: object,
    status: int = 200,
    date: float | None = None,
    models: int = 200,
    serve: Mapping[str, Any] | None = None,
) -> Iterator[int]:
    """A server on a port: /health answers with the report, /v1/models with a status, Ray's dashboard with `serve`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = {"/health": (status, report), "/api/serve/applications/": (200, serve)}.get(self.path, (models, {}))
            body = json.dumps(found[1]).encode()
            self.send_response_only(found[0])
            self.send_header("Date", formatdate(date, usegmt=True))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def asked(tmp_path: Path, port: int, **more: Any) -> dict[str, Finding]:
    return look(Check("server", check_server), patient(tmp_path, url=f"http://127.0.0.1:{port}/v1", **more))


def test_a_server_that_is_well(tmp_path: Path) -> None:
    with answering(HEALTHY) as port:
        found = asked(tmp_path, port)
    assert {name: one.state for name, one in found.items()} == dict.fromkeys(
        ("server", "server_version", "server_clock", "stages", "api_key"), State.OK
    )


def test_a_clock_that_is_off(tmp_path: Path) -> None:
    with answering(HEALTHY, date=1_000_000_000) as port:
        found = asked(tmp_path, port, unix_time=lambda: 1_000_000_600.0)["server_clock"]
    assert (found.state, found.told) == (State.FAULT, "the server is 599 s behind this machine")
    assert "NTP" in found.advice


def test_a_server_that_is_stopped_is_told_in_time(tmp_path: Path) -> None:
    with stopped_listener() as (_, port):
        found = asked(tmp_path, port)
    assert found["server"].state is State.FAULT
    assert found["server"].told.endswith("takes the connection and gives no answer within 5 s")
    assert "kill -CONT" in found["server"].advice and found["stages"].state is State.SKIPPED


def test_the_servers_own_process_is_named_when_it_is_stopped(tmp_path: Path) -> None:
    with stopped_listener() as (pid, port):
        found = asked(tmp_path, port, server=psutil.Process(pid))["server"]
    assert (found.told, found.advice) == (
        f"its process {pid} is stopped (SIGSTOP)",
        f"let it go on: kill -CONT {pid}",
    )


def test_a_server_that_is_away(tmp_path: Path) -> None:
    s = patient(tmp_path)
    found = asked(tmp_path, s.plan.port)["server"]
    assert found.state is State.FAULT and found.told == f"nobody listens at http://127.0.0.1:{s.plan.port}"
    assert "mochi-serve serve" in found.advice


@pytest.mark.parametrize("answer", [["not ours"], {"hello": "world"}, "text"])
def test_something_else_at_the_address(tmp_path: Path, answer: object) -> None:
    with answering(answer) as port:
        found = asked(tmp_path, port)["server"]
    assert found.state is State.FAULT and "none of a mochi-serve" in found.told


def test_a_server_of_another_version(tmp_path: Path) -> None:
    with answering({**HEALTHY, "version": "9.9.9"}) as port:
        found = asked(tmp_path, port)["server_version"]
    assert found.state is State.WARNING and found.told == f"the server is 9.9.9, this is {VERSION}"


def test_a_server_whose_store_is_away(tmp_path: Path) -> None:
    error = {"message": "Not ready: the object store does not answer."}
    with answering({**HEALTHY, "error": error}, status=503) as port:
        found = asked(tmp_path, port)["server"]
    assert found.state is State.FAULT and "Not ready: the object store does not answer." in found.told


def test_stages_that_wait_and_replicas_that_are_sick(tmp_path: Path) -> None:
    waiting = {**HEALTHY, "waiting_for": "no sampling replica is ready", "starting": {"sampling": {"count": 1}}}
    with answering(waiting) as port:
        assert asked(tmp_path, port)["stages"].state is State.WARNING
    sick = {"replica": "b", "device": "cuda:0", "problem": "the driver has lost the GPU"}
    devices = {**HEALTHY["devices"], "sampling": [sick]}
    with answering({**HEALTHY, "devices": devices, "waiting_for": "no sampling replica is ready"}) as port:
        assert asked(tmp_path, port)["stages"].state is State.FAULT
    with answering({**HEALTHY, "devices": {**devices, "sampling": [sick, REPLICA]}}) as port:
        found = asked(tmp_path, port)["stages"]
    assert found.state is State.WARNING and found.told == "sampling b: the driver has lost the GPU"


def test_a_key_that_is_refused(tmp_path: Path) -> None:
    with answering(HEALTHY, models=401) as port:
        assert asked(tmp_path, port)["api_key"].state is State.SKIPPED
        found = asked(tmp_path, port, api_key="ms-x")
    assert found["api_key"].state is State.FAULT and "ms-x" not in f"{found}"


def test_an_application_that_could_not_be_deployed(tmp_path: Path) -> None:
    s = patient(tmp_path)
    s.plan.data_dir.mkdir()
    s.plan.token_file.write_text("token")
    serve = {"applications": {"mochi": {"status": "DEPLOY_FAILED", "message": "no GPU", "deployments": {}}}}
    with answering(HEALTHY, serve=serve) as port:
        plan = type(s.plan)(s.plan.serve, s.plan.settings, port)
        found = only(check_applications(patient(tmp_path, plan=plan, server=psutil.Process())))
    assert found.state is State.FAULT and found.told == "mochi is DEPLOY_FAILED: no GPU"


def test_without_a_server_nothing_is_asked(tmp_path: Path) -> None:
    assert {one.state for one in by_name(check_server(patient(tmp_path))).values()} == {State.SKIPPED}
