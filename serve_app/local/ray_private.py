"""What a start needs of Ray and Serve and finds under no public name: read this file when Ray is upgraded."""

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import parameter, services, worker
from ray.serve._private import api
from ray.serve.config import gRPCOptions
from ray.serve.schema import ServeDeploySchema

# Without them nothing of Ray works; other processes, such as its dashboard, may be away.
VITAL_PROCESSES = ("gcs_server", "raylet")
_LOOK_S = 0.2


@contextlib.contextmanager
def agent_on_free_port() -> Iterator[None]:
    """Within this context, `ray.init` has the agent that runs `ray job submit` choose a free port.

    `ray start` has an option for that; `ray.init` has none, and no environment variable names the port. The agent would
    always take 52365, and beside a second Ray on the machine it would not start, without a word.
    """
    ray_params = parameter.RayParams
    parameter.RayParams = functools.partial(ray_params, dashboard_agent_listen_port=0)
    try:
        yield
    finally:
        parameter.RayParams = ray_params


def raylet_lives(parent: psutil.Process | None = None) -> bool:
    """Whether a raylet runs below `parent`, by default this process."""
    for process in (parent or psutil.Process()).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == "raylet" and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


@contextlib.contextmanager
def patient_start(seconds: float, lives: Callable[[], bool] = raylet_lives) -> Iterator[None]:
    """Within this context, `ray.init` waits that long for the node to register, while its raylet lives.

    Its own bound of half a minute is a constant; a busy machine takes longer.

    Args:
        seconds: how long.
        lives: tells whether it does.
    """
    get_node = services.get_node

    def wait_for_node(gcs_address: str, node_id: str) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            try:
                return get_node(gcs_address, node_id)
            except RuntimeError:
                if time.monotonic() > deadline or not lives():
                    raise
            time.sleep(_LOOK_S)

    services.get_node = wait_for_node
    try:
        yield
    finally:
        services.get_node = get_node


@contextlib.contextmanager
def lines_to(take: Callable[[Mapping[str, Any]], None]) -> Iterator[None]:
    """Within this context a Ray that is begun gives `take` what it would print: lines of workers, and its own events.

    Args:
        take: called in threads of Ray's with a batch: `lines`, `pid`, and where it has them `actor_name`, `is_err`.
    """
    printed = worker.print_to_stdstream
    worker.print_to_stdstream = lambda data, ignore_prefix: take(data)
    try:
        yield
    finally:
        worker.print_to_stdstream = printed


def start_serve(schema: ServeDeploySchema) -> Any:
    """Start Serve's controller and HTTP front and return Serve's client, which the public `serve.start` does not."""
    return api.serve_start(
        http_options=schema.http_options.model_dump(),
        proxy_location=schema.proxy_location,
        grpc_options=gRPCOptions(**schema.grpc_options.model_dump()),
        controller_options=schema.controller_options,
        global_logging_config=schema.logging_config,
    )


def serve_client() -> Any:
    """Serve's client; None where Serve does not run."""
    return api._get_global_client(raise_if_no_controller_running=False)


def ray_pids() -> set[int]:
    """The processes that Ray itself has started for this node, and that it waits for."""
    return {process.pid for _, process in _node().live_processes()}


def dead_vital_processes() -> list[str]:
    """Kinds of the processes that have ended and without which nothing works."""
    return [kind for kind, _ in _node().dead_processes() if kind in VITAL_PROCESSES]


def logs_folder() -> Path | None:
    """Where Ray writes its logs, also those of a start that failed; None where there are none."""
    node = _node()
    if node is not None:
        return Path(node.get_logs_dir_path())
    logs = Path(os.environ.get("RAY_TMPDIR", ""), "ray", "session_latest", "logs")
    return logs.resolve() if logs.is_dir() else None


def _node() -> Any:
    return ray._private.worker._global_node
