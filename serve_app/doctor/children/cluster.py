"""What a Ray cluster says of itself: `cluster.py ADDRESS`. Joined as a driver that starts nothing."""

import logging
import platform
import sys
from typing import Any

import ray
from ray import serve

from serve_app.doctor.children.run import answer


def main(address: str) -> None:
    own = {"ray": ray.__version__, "python": platform.python_version()}
    try:
        ray.init(address=address, logging_level=logging.CRITICAL, log_to_driver=False, configure_logging=False)
    except (RuntimeError, ConnectionError, ValueError, OSError) as error:
        answer(own | {"error": " ".join(str(error).split()) or type(error).__name__})
        return
    nodes = [
        {"name": node["NodeManagerHostname"], "alive": node["Alive"], "resources": node["Resources"]}
        for node in ray.nodes()
    ]
    answer(own | {"nodes": nodes, "applications": _applications()})


def _applications() -> dict[str, Any]:
    found = serve.status().applications
    return {
        name: (
            str(one.status.value),
            one.message,
            {each: (str(status.status.value), status.message) for each, status in one.deployments.items()},
        )
        for name, one in found.items()
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
