"""Sends a task to a replica of its stage by Ray's load-aware choice."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ray import serve
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import ReplicaUnavailableError

from deployments.messages import Directive, ReplicaInfo, Stage, StageTask
from serve_app.errors import NoReplicaError, ReplicaDiedError

MODEL_APPLICATION = "mochi"
DEPLOYMENTS = {
    Stage.ENCODING: "PromptEncoder",
    Stage.SAMPLING: "MochiSampler",
    Stage.DECODING: "VideoDecoder",
}
CHOICE_TIMEOUT_S = 5.0
# Serve has no class for it: the slot was given back before the task came (deployments/replica/serve_private.py).
SLOT_GONE = "unknown reserved slot"


def deployment_handle(stage: Stage) -> Any:
    """Serve's handle of the stage's deployment; only where Serve runs."""
    return serve.get_deployment_handle(DEPLOYMENTS[stage], app_name=MODEL_APPLICATION)


class StageRouter:
    """Holds one deployment handle a stage; a handle stays good across redeploys.

    Args:
        handle_of: gives the handle of a stage; asked once for each.
    """

    def __init__(self, handle_of: Callable[[Stage], Any] = deployment_handle) -> None:
        self._handle_of = cache(handle_of)

    async def __call__(self, task: StageTask, chosen: Callable[[str], None]) -> None:
        """Run the task on a replica and return when its call has ended.

        Args:
            chosen: told the replica's id before the task is sent.

        Raises:
            NoReplicaError: none took the task within a few seconds, or the one that was chosen has its slot no more, or
                is leaving; it was not begun.
            ReplicaDiedError: the replica's process ended during the call.
            Exception: whatever else ended the call.
        """
        method = self._handle_of(task.stage).run
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(CHOICE_TIMEOUT_S):
                    selection = await stack.enter_async_context(method.choose_replica(task))
            except TimeoutError:
                raise NoReplicaError(task.stage) from None
            chosen(selection.replica_id)
            try:
                await method.dispatch(selection, task)
            except ActorDiedError as error:
                raise ReplicaDiedError(selection.replica_id) from error
            except ReplicaUnavailableError as error:
                raise NoReplicaError(task.stage) from error
            except RuntimeError as error:
                if SLOT_GONE in str(error):
                    raise NoReplicaError(task.stage) from error
                raise


@dataclass(slots=True)
class ReplicaTable:
    """The replicas that announced themselves within the last `forget_s` seconds."""

    forget_s: float
    _seen: dict[str, tuple[ReplicaInfo, float]] = field(default_factory=dict)

    def announce(self, info: ReplicaInfo, now: float) -> bool:
        """True if this replica was not known, or has other slots than before."""
        before = self._seen.get(info.replica)
        self._seen[info.replica] = (info, now)
        return before is None or before[0].slots != info.slots

    def forget(self, replica: str) -> None:
        self._seen.pop(replica, None)

    def alive(self, stage: Stage, now: float) -> list[ReplicaInfo]:
        return [i for i, at in self._seen.values() if i.stage is stage and now - at < self.forget_s]

    def slots(self, stage: Stage, now: float) -> int:
        return sum(info.slots for info in self.alive(stage, now))

    def prune(self, now: float) -> None:
        self._seen = {k: v for k, v in self._seen.items() if now - v[1] < self.forget_s}

    def names(self) -> set[str]:
        return set(self._seen)


@dataclass(slots=True)
class Mailbox:
    """Directives on their way to the replicas, which hold a call open for them."""

    _mail: dict[str, dict[str, Directive]] = field(default_factory=dict)
    _bells: dict[str, asyncio.Event] = field(default_factory=dict)

    def post(self, replica: str, lease: str, directive: Directive) -> None:
        self._mail.setdefault(replica, {})[lease] = directive
        if replica in self._bells:
            self._bells[replica].set()

    def keep_only(self, replicas: set[str]) -> None:
        """Nobody will ask for the mail of others."""
        self._mail = {replica: mail for replica, mail in self._mail.items() if replica in replicas}

    async def collect(self, replica: str, wait_s: float) -> dict[str, Directive]:
        """What is there for the replica, or comes within wait_s seconds; by lease."""
        bell = self._bells[replica] = asyncio.Event()
        if replica not in self._mail and wait_s > 0:
            try:
                async with asyncio.timeout(wait_s):
                    await bell.wait()
            except TimeoutError:
                pass
        if self._bells.get(replica) is bell:
            del self._bells[replica]
        return self._mail.pop(replica, {})
