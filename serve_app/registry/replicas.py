"""The replicas: which ones are there, and how tasks and directives get to them."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from ray import serve
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import ReplicaUnavailableError

from deployments.background import wait_for
from deployments.messages import Directive, ReplicaInfo, Stage, StageTask
from serve_app.errors import NoReplicaError, ReplicaDiedError

MODEL_APPLICATION = "mochi"
PROTEIN_APPLICATION = "proteins"
DEPLOYMENTS = {
    Stage.ENCODING: (MODEL_APPLICATION, "PromptEncoder"),
    Stage.SAMPLING: (MODEL_APPLICATION, "MochiSampler"),
    Stage.DECODING: (MODEL_APPLICATION, "VideoDecoder"),
    Stage.EMBEDDING: (PROTEIN_APPLICATION, "ProteinFiles"),
}
"""The application and the deployment of each stage, by their names in Serve."""
CHOICE_TIMEOUT_S = 5.0
# Serve has no class for it: the slot was given back before the task came
# (deployments/replica/serve_private.py).
SLOT_GONE = "unknown reserved slot"


def deployment_handle(stage: Stage) -> Any:
    """Serve's handle of the stage's deployment; only where Serve runs."""
    application, deployment = DEPLOYMENTS[stage]
    return serve.get_deployment_handle(deployment, app_name=application)


class StageRouter:
    """Sends a task to a replica of its stage by Ray's load-aware choice.

    It holds one deployment handle a stage; a handle stays good across redeploys.

    Args:
        handle_of: gives the handle of a stage; asked once for each.
    """

    def __init__(self, handle_of: Callable[[Stage], Any] = deployment_handle) -> None:
        self._handle_of = handle_of
        # Not by `functools.cache`, which cannot be pickled: the router travels to the actor.
        self._handles: dict[Stage, Any] = {}

    async def __call__(self, task: StageTask, accept: Callable[[str], bool]) -> None:
        """Run the task on a replica and return when its call has ended.

        Args:
            accept: called with the id of a replica that has room, before the task is sent; whether it may go there.

        Raises:
            NoReplicaError: none took the task within a few seconds, or the one that was chosen has
                its slot no more, or is leaving; it was not begun.
            ReplicaDiedError: the replica's process ended during the call.
            Exception: whatever else ended the call.
        """
        if task.stage not in self._handles:
            self._handles[task.stage] = self._handle_of(task.stage)
        method = self._handles[task.stage].run
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(CHOICE_TIMEOUT_S):
                    selection = await _choose(method, task, accept, stack)
            except TimeoutError:
                raise NoReplicaError(task.stage) from None
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


async def _choose(method: Any, task: StageTask, accept: Callable[[str], bool], stack: AsyncExitStack) -> Any:
    """Serve's selection of a replica that is accepted; its slot stays reserved until `stack` is closed."""
    # Serve prefers the replica with most room: one that was refused would be chosen again and again if it
    # did not keep the slot reserved meanwhile.
    async with AsyncExitStack() as refused:
        while True:
            choice = method.choose_replica(task)
            selection = await choice.__aenter__()
            if accept(selection.replica_id):
                stack.push_async_exit(choice)
                return selection
            refused.push_async_exit(choice)


@dataclass(slots=True)
class ReplicaTable:
    """The replicas that announced themselves within the last `forget_s` seconds."""

    forget_s: float
    _announced: dict[str, tuple[ReplicaInfo, float]] = field(default_factory=dict)  # with the moment, by name

    def announce(self, info: ReplicaInfo, now: float) -> bool:
        """True if this replica is new here, or has other slots than before."""
        before = self._announced.get(info.replica)
        self._announced[info.replica] = (info, now)
        return before is None or before[0].slots != info.slots

    def forget(self, replica: str) -> None:
        self._announced.pop(replica, None)

    def alive(self, stage: Stage, now: float) -> list[ReplicaInfo]:
        return [info for info, at in self._announced.values() if info.stage is stage and now - at < self.forget_s]

    def slots(self, stage: Stage, now: float) -> int:
        return sum(info.slots for info in self.alive(stage, now))

    def prune(self, now: float) -> None:
        """Forget those that are silent."""
        self._announced = {name: entry for name, entry in self._announced.items() if now - entry[1] < self.forget_s}

    def names(self) -> set[str]:
        return set(self._announced)


@dataclass(slots=True)
class Mailbox:
    """Directives on their way to the replicas, each of which holds a call open for them."""

    _mail: dict[str, dict[str, Directive]] = field(default_factory=dict)  # by replica, then by lease
    _bells: dict[str, asyncio.Event] = field(default_factory=dict)  # of the calls that are held open, by replica

    def post(self, replica: str, lease: str, directive: Directive) -> None:
        self._mail.setdefault(replica, {})[lease] = directive
        if replica in self._bells:
            self._bells[replica].set()

    def keep_only(self, replicas: set[str]) -> None:
        """Throw the mail of all others away: nobody will collect it."""
        self._mail = {replica: mail for replica, mail in self._mail.items() if replica in replicas}

    async def collect(self, replica: str, wait_s: float) -> dict[str, Directive]:
        """The directives for the replica that are there or come within wait_s seconds; by lease."""
        bell = self._bells[replica] = asyncio.Event()
        if replica not in self._mail and wait_s > 0:
            await wait_for(bell, wait_s)
        if self._bells.get(replica) is bell:  # a newer call of the replica may have put its own there
            del self._bells[replica]
        return self._mail.pop(replica, {})
