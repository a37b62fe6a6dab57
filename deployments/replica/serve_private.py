"""The object with which Serve runs the replica that this process is.

It is no public API; the version of Ray is pinned, and tests with a real Serve use all that is used of it.
"""

from typing import Any

import ray


def own_replica() -> Any | None:
    """None outside of a replica."""
    if not ray.is_initialized():
        return None
    actor_id = ray.get_runtime_context().get_actor_id()
    actors = ray._private.worker.global_worker.actors
    return next((actor._replica_impl for key, actor in actors.items() if key.hex() == actor_id), None)
