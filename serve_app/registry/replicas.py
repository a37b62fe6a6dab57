"""Sends a task to a replica of its stage by Ray's load-aware choice."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from ray import serve
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import ReplicaUnavailableError

from deployments.messages import Stage, StageTask
from serve_app.errors import NoReplicaError, ReplicaDiedError

MODEL_APPLICATION = "mochi"
DEPLOYMENTS = {
    Stage.ENCODING: "PromptEncoder",
    Stage.SAMPLING: "MochiSampler",
    Stage.DECODING: "VideoDecoder",
}
CHOICE_TIMEOUT_S = 5.0
# Serve has no class for it: the slot was given back before the task came (deployments/replica/reservations.py).
SLOT_GONE = "unknown reserved slot"


class StageRouter:
    """Holds one deployment handle a stage; a handle stays good across redeploys."""

    def __init__(self) -> None:
        self._handles: dict[Stage, Any] = {}

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
        method = self._handle(task.stage).run
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

    def _handle(self, stage: Stage) -> Any:
        if stage not in self._handles:
            name = DEPLOYMENTS[stage]
            self._handles[stage] = serve.get_deployment_handle(name, app_name=MODEL_APPLICATION)
        return self._handles[stage]
