"""Runs Ray, Serve and the applications in this process and below it, until told to stop."""

import contextlib
import functools
import http.client
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray._private import parameter
from ray.serve._private import api
from ray.serve.config import gRPCOptions
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from serve_app.config import AppSettings
from serve_app.errors import StartupError
from serve_app.local import descendants
from serve_app.local.plan import LaunchPlan
from serve_app.local.preflight import LOOPBACK
from serve_app.local.seaweed import ACTOR_NAME

OBJECT_STORE_BYTES = 150_000_000
POLL_S = 0.1
WATCH_S = 1.0
DRAIN_S = 10.0
STORE_STOP_S = 10.0
END_GRACE_S = 10.0
KILLED = 130
# A closed terminal is a wish to stop too.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
log = logging.getLogger(__name__)

_ERROR_LINE = re.compile(r"(?:[A-Za-z_]\w*\.)*\w*(?:Error|Exception)\b.*")


class _Stopped(Exception):
    """Told to stop while still starting."""


def run(plan: LaunchPlan, schema: ServeDeploySchema, announce: Callable[[], None], tidy: Callable[[], None]) -> None:
    """Start everything, call `announce` once the app answers, and return when told to stop and all has ended.

    The first SIGINT or SIGTERM stops in good order; the second kills at once, after calling `tidy`.

    Raises:
        StartupError: an application could not be deployed, or Ray ended; everything has ended by then.
    """
    descendants.adopt_orphans()
    stopping = threading.Event()
    with _signals(stopping, tidy) as listen:
        try:
            _start(plan, schema, stopping, listen)
            announce()
            _watch(stopping)
        except (_Stopped, SystemExit):
            pass
        finally:
            _stop(plan)


def _start(plan: LaunchPlan, schema: ServeDeploySchema, stopping: threading.Event, listen: Callable[[], None]) -> None:
    _start_ray(plan)
    # Ray has put a handler of its own in place.
    listen()
    check_gpus(plan.settings, ray.cluster_resources().get("GPU", 0))
    _go_on(stopping)
    client = _start_serve(schema)
    _go_on(stopping)
    client.deploy_apps(schema)
    _wait_for_applications(client, [app.name for app in schema.applications], stopping)
    if any(app.route_prefix is not None for app in schema.applications):
        _wait_for_answer(plan, stopping)


def _start_serve(schema: ServeDeploySchema) -> Any:
    """Serve's controller and HTTP front. Raises StartupError when one of them does not come up in a minute."""
    try:
        return api.serve_start(
            http_options=schema.http_options.model_dump(),
            proxy_location=schema.proxy_location,
            grpc_options=gRPCOptions(**schema.grpc_options.model_dump()),
            controller_options=schema.controller_options,
            global_logging_config=schema.logging_config,
        )
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise StartupError(
            f"Ray Serve or its HTTP front did not start ({error_line(str(error))}); if this machine is busy, try again"
        ) from error


def _start_ray(plan: LaunchPlan) -> None:
    sys.path.insert(0, os.getcwd())
    with _agent_on_a_free_port():
        ray.init(
            address="local",
            _node_ip_address=LOOPBACK,
            include_dashboard=True,
            dashboard_host=LOOPBACK,
            dashboard_port=plan.dashboard_port,
            object_store_memory=OBJECT_STORE_BYTES,
            namespace="serve",
            logging_level=logging.WARNING,
            log_to_driver=True,
        )


@contextlib.contextmanager
def _agent_on_a_free_port() -> Iterator[None]:
    """The agent that runs `ray job submit` always takes port 52365 under `ray.init`, which has no argument for another:
    beside a second Ray on the machine it would not start, without a word."""
    made = parameter.RayParams
    parameter.RayParams = functools.partial(made, dashboard_agent_listen_port=0)
    try:
        yield
    finally:
        parameter.RayParams = made


def check_gpus(settings: AppSettings, there: float) -> None:
    """Raises StartupError when the first replicas would wait for ever for a GPU. there: GPUs that Ray found."""
    stages = {"encoder": settings.encoder, "sampler": settings.sampler, "decoder": settings.decoder}
    wanted = {name: stage.num_gpus * stage.min_replicas for name, stage in stages.items()}
    if sum(wanted.values()) > there:
        asked = ", ".join(f"{name} {gpus:g}" for name, gpus in wanted.items())
        raise StartupError(
            f"the profile needs {sum(wanted.values()):g} GPUs ({asked}) and this machine has {there:g}; "
            "let the stages share one by a num_gpus below 1 each, or use configs/shapes.yaml, which needs none"
        )


def _wait_for_applications(client: Any, names: list[str], stopping: threading.Event) -> None:
    """Raises StartupError with the reason when an application cannot be deployed."""
    waiting = set(names)
    while waiting:
        _go_on(stopping)
        for status in client.list_serve_statuses():
            if status.app_status.status == ApplicationStatus.RUNNING:
                waiting.discard(status.name)
            elif status.app_status.status == ApplicationStatus.DEPLOY_FAILED:
                reason = error_line(_messages(status))
                raise StartupError(f"the application {status.name!r} could not be started: {reason}")
        stopping.wait(POLL_S)


def _messages(status: Any) -> str:
    return "\n".join([status.app_status.message, *(d.message for d in status.deployment_statuses)])


def error_line(message: str) -> str:
    """The line of a message with tracebacks that says most: the last that names an error, else the last."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    return (errors or lines or ["no reason was given"])[-1]


def _wait_for_answer(plan: LaunchPlan, stopping: threading.Event) -> None:
    """Return once the HTTP front passes requests to a replica."""
    host, port = plan.address.removeprefix("http://").rsplit(":", 1)
    while not _healthy(host, int(port)):
        _go_on(stopping)
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


def _watch(stopping: threading.Event) -> None:
    """Return when told to stop. Raises StartupError when Ray's own processes have ended."""
    node = ray._private.worker._global_node
    own = {process.pid for _, process in node.live_processes()}
    while not stopping.wait(WATCH_S):
        descendants.reap(set(descendants.children(os.getpid())) - own)
        if dead := [kind for kind, _ in node.dead_processes() if kind in ("gcs_server", "raylet")]:
            raise StartupError(f"Ray has ended ({', '.join(dead)}); see its logs in {node.get_logs_dir_path()}")


def _stop(plan: LaunchPlan) -> None:
    """End Serve, the local store, Ray, and what is left below this process."""
    if ray.is_initialized():
        _stop_serve()
        _stop_storage(plan.settings.namespace)
    ray.shutdown()
    descendants.end_all(END_GRACE_S)


def _stop_serve() -> None:
    try:
        client = api._get_global_client(raise_if_no_controller_running=False)
        if client is not None:
            client.shutdown(timeout_s=DRAIN_S)
    except (ray.exceptions.RayError, RayServeException) as error:
        log.warning("Serve did not end in good order: %s", error)


def _stop_storage(namespace: str) -> None:
    """The local store is written to disk and its sockets are removed when it may end by itself."""
    try:
        ray.get(ray.get_actor(ACTOR_NAME, namespace=namespace).stop.remote(), timeout=STORE_STOP_S)
    except ValueError:
        # There is none: the objects are kept elsewhere.
        return
    except ray.exceptions.RayError as error:
        log.warning("the local object store did not end in good order: %s", error)


def _go_on(stopping: threading.Event) -> None:
    if stopping.is_set():
        raise _Stopped


@contextlib.contextmanager
def _signals(stopping: threading.Event, tidy: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Handle SIGINT and SIGTERM, also where they were ignored; gives a function that sets the handlers again."""

    def handle(_number: int, _frame: object) -> None:
        if stopping.is_set():
            descendants.kill_all()
            tidy()
            os._exit(KILLED)
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
