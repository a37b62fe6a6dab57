"""Autoscaling by demand: running and waiting jobs of a stage, over the slots of a replica.

Serve's own policy looks at the requests at a handle; the registry never sends more than fits, so
that it would see none that wait. Serve applies the bounds and the delays to what is returned here.
"""

import logging
import math
import time
from typing import Any

import ray

log = logging.getLogger("ray.serve")

ASK_EVERY_S = 1.0


class DemandPolicy:
    """Called by the Serve controller about ten times a second; it never blocks and never raises.

    Args:
        registry: name of the registry actor.
        namespace: Ray's namespace that the actor is in.
        stage: the stage whose demand counts.
        slots: jobs that one replica works on at once.
    """

    def __init__(self, registry: str, namespace: str, stage: str, slots: int) -> None:
        self._registry = registry
        self._namespace = namespace
        self._stage = stage
        self._slots = slots
        self._pending: Any = None  # the reference to the registry's next answer
        self._asked_at = 0.0
        self._replicas_wanted: int | None = None  # by the last answer

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        try:
            self._poll_registry()
        except Exception as error:  # an exception here would wedge the status of every application
            log.warning(f"demand of {self._stage} is unknown, replicas stay as they are: {error!r}")
            self._pending = None
        wanted = context.target_num_replicas if self._replicas_wanted is None else self._replicas_wanted
        return wanted, {}

    def _poll_registry(self) -> None:
        if self._pending is None:
            if time.monotonic() - self._asked_at < ASK_EVERY_S:
                return
            self._asked_at = time.monotonic()
            actor = ray.get_actor(self._registry, namespace=self._namespace)
            self._pending = actor.demand.remote()
        ready, _ = ray.wait([self._pending], timeout=0)
        if ready:
            answer, self._pending = self._pending, None
            self._replicas_wanted = math.ceil(ray.get(answer)[self._stage] / self._slots)
