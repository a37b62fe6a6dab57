"""Runs Ray, Serve and the applications in this process and below it, until a signal asks for the stop."""

import contextlib
import http.client
import logging
import os
import re
import shutil
import signal
import sqlite3
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from deployments.logs.masking import Mask, secrets_of
from serve_app.database.sqlite_file import database_file, fold_wal
from serve_app.errors import StartupError
from serve_app.local import ray_private
from serve_app.local.plan import LaunchPlan
from serve_app.local.preflight import LOOPBACK, OBJECT_STORE_BYTES, check_gpus
from serve_app.local.processes import descendants
from serve_app.local.processes.stop_signals import STOP_SIGNALS, die
from serve_app.local.processes.stopped import StoppedProcesses
from serve_app.local.server_log import Phase, ServerLog, own_records_to
from serve_app.local.store.seaweed import ACTOR_NAME

RAY_START_S = 300.0
POLL_S = 0.1
WATCH_S = 1.0
DRAIN_S = 10.0
STORE_STOP_S = 10.0
END_GRACE_S = 10.0
log = logging.getLogger(__name__)

_ERROR_LINE = re.compile(r"(?:[A-Za-z_]\w*\.)*\w*(?:Error|Exception)\b.*")


class _Stopped(Exception):
    """The stop came while the server was still starting."""


def run(plan: LaunchPlan, schema: ServeDeploySchema, announce: Callable[[], None], tidy: Callable[[], None]) -> None:
    """Start everything; return when a signal has asked for the stop and all has ended.

    The first signal stops in good order; the second kills at once.

    Args:
        plan: what is run.
        schema: the Serve config of the plan.
        announce: called once the app answers.
        tidy: called before the process ends by the second signal.

    Raises:
        StartupError: an application could not be deployed, or Ray ended; everything has ended by then.
    """
    descendants.adopt_orphans()
    stopping = threading.Event()
    logs: Path | None = None
    with _signals(stopping, tidy) as listen, _log_of(plan) as server_log:
        try:
            _start(plan, schema, stopping, listen)
            announce()
            server_log.phase = Phase.RUNNING
            _watch(stopping, plan.ray_logs)
        except (_Stopped, SystemExit):
            pass
        except StartupError:
            logs = ray_private.logs_folder()
            raise
        finally:
            server_log.phase = Phase.STOPPING
            _stop(plan)
            _keep_logs(logs, plan.ray_logs)


@contextlib.contextmanager
def _log_of(plan: LaunchPlan) -> Iterator[ServerLog]:
    """Where all lines go: this process', Ray's, and those that Ray brings from its workers."""
    as_json = plan.settings.logging.format == "json"
    secrets = [*secrets_of(plan.settings), plan.token_file.read_text().strip()]
    server_log = ServerLog(plan.log_file, Mask(secrets), as_json, sys.stderr)
    with contextlib.closing(server_log), own_records_to(server_log), ray_private.lines_to(server_log.take):
        yield server_log


def _start(plan: LaunchPlan, schema: ServeDeploySchema, stopping: threading.Event, listen: Callable[[], None]) -> None:
    _start_ray(plan)
    # Ray has put a handler of its own in place.
    listen()
    check_gpus(plan.settings, ray.cluster_resources().get("GPU", 0))
    _check_not_stopped(stopping)
    client = _start_serve(schema)
    _check_not_stopped(stopping)
    client.deploy_apps(schema)
    _wait_for_applications(client, [app.name for app in schema.applications], stopping)
    if any(app.route_prefix is not None for app in schema.applications):
        _wait_for_answer(plan, stopping)


def _start_serve(schema: ServeDeploySchema) -> Any:
    """Serve's controller and HTTP front. Raises StartupError when one of them does not come up in a minute."""
    try:
        return ray_private.start_serve(schema)
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise StartupError(
            f"Ray Serve or its HTTP front did not start ({error_line(str(error))}); if this machine is busy, try again"
        ) from error


def _start_ray(plan: LaunchPlan) -> None:
    """Raises StartupError when Ray does not come up."""
    sys.path.insert(0, os.getcwd())
    try:
        with ray_private.agent_on_free_port(), ray_private.patient_start(RAY_START_S):
            ray.init(
                address="local",
                _node_ip_address=LOOPBACK,
                include_dashboard=True,
                dashboard_host=LOOPBACK,
                dashboard_port=plan.dashboard_port,
                object_store_memory=OBJECT_STORE_BYTES,
                namespace="serve",
                configure_logging=False,
                log_to_driver=True,
            )
    except Exception as error:  # Ray raises no class of its own for it
        raise StartupError(
            f"Ray did not start ({error_line(str(error))}); if this machine is busy, try again"
        ) from error


def _wait_for_applications(client: Any, names: list[str], stopping: threading.Event) -> None:
    """Raises StartupError with the reason when an application cannot be deployed."""
    waiting = set(names)
    while waiting:
        _check_not_stopped(stopping)
        for status in client.list_serve_statuses():
            if status.app_status.status == ApplicationStatus.RUNNING:
                waiting.discard(status.name)
            elif status.app_status.status == ApplicationStatus.DEPLOY_FAILED:
                messages = [status.app_status.message, *(d.message for d in status.deployment_statuses)]
                reason = error_line("\n".join(messages))
                raise StartupError(f"the application {status.name!r} could not be started: {reason}")
        stopping.wait(POLL_S)


def error_line(message: str) -> str:
    """The line of a message with tracebacks that says most: the last that names an error, else the last."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    return (errors or lines or ["no reason was given"])[-1]


def _wait_for_answer(plan: LaunchPlan, stopping: threading.Event) -> None:
    """Return once the HTTP front passes requests to a replica."""
    host, port = plan.address.removeprefix("http://").rsplit(":", 1)
    while not _healthy(host, int(port)):
        _check_not_stopped(stopping)
        stopping.wait(POLL_S)


def _healthy(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host.strip("[]"), port, timeout=2)
    try:
        connection.request("GET", "/-/healthz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _watch(stopping: threading.Event, logs: Path) -> None:
    """Return when the stop is asked for.

    Args:
        stopping: set by a signal.
        logs: where Ray's logs will be found after a fault.

    Raises:
        StartupError: processes that Ray needs have ended.
    """
    ray_pids = ray_private.ray_pids()
    stopped = StoppedProcesses(WATCH_S)
    while not stopping.wait(WATCH_S):
        descendants.reap_children(keep=ray_pids)
        stopped.kill(spare=ray_pids)
        if dead := ray_private.dead_vital_processes():
            raise StartupError(f"Ray has ended ({', '.join(dead)}); see its logs in {logs}")


def _stop(plan: LaunchPlan) -> None:
    """End Serve, the local store, Ray, and what is left below this process; then the database is one file again."""
    if ray.is_initialized():
        _stop_serve()
        _stop_storage(plan.settings.namespace)
    ray.shutdown()
    descendants.end_all(END_GRACE_S)
    if (database := database_file(plan.settings.database_url)) is not None:
        try:
            fold_wal(database)
        except sqlite3.Error as error:
            log.warning("what the files beside %s hold was not written into it: %s", database, error)


def _stop_serve() -> None:
    """What does not end in time is ended with Ray."""
    try:
        client = ray_private.serve_client()
        if client is not None:
            client.shutdown(timeout_s=DRAIN_S)
    except (ray.exceptions.RayError, RayServeException, TimeoutError) as error:
        log.warning("Serve did not end in good order: %s", error)


def _keep_logs(logs: Path | None, kept: Path) -> None:
    """Move Ray's logs out of the folder that goes with this process, in the place of those of an earlier fault."""
    if logs is None:
        return
    shutil.rmtree(kept, ignore_errors=True)
    try:
        shutil.move(logs, kept)
        kept.chmod(stat.S_IRWXU)  # Ray opened it to all
    except OSError as error:
        log.warning("Ray's logs could not be kept in %s: %s", kept, error)


def _stop_storage(namespace: str) -> None:
    """The local store is written to disk and its sockets are removed when it may end by itself."""
    try:
        ray.get(ray.get_actor(ACTOR_NAME, namespace=namespace).stop.remote(), timeout=STORE_STOP_S)
    except ValueError:
        # There is none: the objects are kept elsewhere.
        return
    except ray.exceptions.RayError as error:
        log.warning("the local object store did not end in good order: %s", error)


def _check_not_stopped(stopping: threading.Event) -> None:
    if stopping.is_set():
        raise _Stopped


@contextlib.contextmanager
def _signals(stopping: threading.Event, tidy: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Handle SIGINT and SIGTERM, also where they were ignored; gives a function that sets the handlers again."""

    def handle(number: int, _frame: object) -> None:
        if stopping.is_set():
            descendants.kill_all()
            tidy()
            die(number)
        stopping.set()

    def listen() -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, handle)

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    listen()
    try:
        yield listen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
