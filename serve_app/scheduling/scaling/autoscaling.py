"""Autoscaling by the work that waits: Serve's controller asks the registry, which knows all of it.

Serve's own policy looks at the requests at a handle; the registry never sends more than fits, so
that it would see none that wait. What is needed is decided in `capacity.py`; Serve applies the
bounds to what is returned here.
"""

import logging
import math
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol

import ray

from deployments.logs.lines import begin_log
from deployments.messages import Stage
from deployments.settings import LogSettings
from serve_app.scheduling.scaling.capacity import StageNeed, StageState
from serve_app.scheduling.scaling.scaler import Scaler

log = logging.getLogger("ray.serve")

ASK_EVERY_S = 1.0


class Asks(Protocol):
    """A way to ask the registry that never blocks; any error may be raised."""

    def __call__(self, state: StageState) -> StageNeed | None:
        """The answer to an earlier question, if it has come; otherwise asks, unless a question is out."""
        ...


class RegistryQuestions:
    """Asks the registry's actor, one question at a time.

    Args:
        registry: the name of the actor.
        namespace: Ray's namespace that it is in.
    """

    def __init__(self, registry: str, namespace: str) -> None:
        self._registry = registry
        self._namespace = namespace
        self._pending: Any = None  # the reference to the next answer

    def __call__(self, state: StageState) -> StageNeed | None:
        if self._pending is None:
            actor = ray.get_actor(self._registry, namespace=self._namespace)
            self._pending = actor.capacity.remote(state)
        ready, _ = ray.wait([self._pending], timeout=0)
        if not ready:
            return None
        answer, self._pending = self._pending, None
        need: StageNeed = ray.get(answer)
        return need


class CapacityPolicy:
    """Called by the Serve controller about ten times a second; it never blocks and never raises.

    While the registry does not answer, the last number is held.

    Args:
        registry: name of the registry actor.
        namespace: Ray's namespace that the actor is in.
        stage: whose replicas are counted.
        slots: jobs that one replica works on at once.
        minimum: replicas that there always are.
        maximum: replicas that there may be.
        downscale_delay_s: as in `Scaler`.
        log_format: see LogSettings.
        ask: asks the registry; by its actor if None.
        clock: a monotonic one.
    """

    def __init__(
        self,
        registry: str,
        namespace: str,
        stage: str,
        slots: int,
        minimum: int,
        maximum: int,
        downscale_delay_s: float | None,
        log_format: Literal["text", "json"] = "text",
        ask: Asks | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if ask is None:  # in Serve's controller
            begin_log(LogSettings(format=log_format), "controller")
        self._stage = Stage(stage)
        self._slots = slots
        self._bounds = (minimum, maximum)
        self._scaler = Scaler(downscale_delay_s)
        self._ask = ask or RegistryQuestions(registry, namespace)
        self._clock = clock
        self._asked_at = -math.inf
        self._is_out = False  # a question is
        self._last: int | None = None

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        try:
            self._last = self._replicas(context)
        except Exception as error:  # an exception here would wedge the status of every application
            log.warning(f"the need for {self._stage} replicas is unknown, they stay as they are: {error!r}")
            self._is_out = False
        return context.target_num_replicas if self._last is None else self._last, {}

    def _replicas(self, context: Any) -> int:
        now, target = self._clock(), int(context.target_num_replicas)
        if self._is_out or now - self._asked_at >= ASK_EVERY_S:
            if not self._is_out:
                self._is_out, self._asked_at = True, now
            need = self._ask(StageState(self._stage, target, self._slots, *self._bounds))
            if need is not None:
                self._is_out = False
                self._scaler.take(need, target, now)
        running = [replica.unique_id for replica in context.running_replicas]
        return self._scaler.replicas(target, running, now)
