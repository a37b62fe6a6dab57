"""What a model worker is connected to: its name in Serve, the registry, the object store.

The way from a worker or the ingress to the job registry, which may die and come back at any moment.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray import serve
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from deployments.errors import RegistryUnavailableError
from deployments.settings import StorageSettings, WorkerSettings
from deployments.storage.model_store import ModelBucket, OpenBucket
from deployments.storage.object_store import ObjectStore, Store


class Link(Protocol):
    """The way to the registry; see `deployments.replica.connections.RegistryLink`."""

    async def call(self, method: str, *args: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Connections:
    """replica: the id by which Serve's routers know this replica."""

    replica: str
    link: Link
    store: Store
    open_bucket: OpenBucket


def connect(settings: WorkerSettings) -> Connections:
    """The real ones; only inside a Serve replica."""
    return Connections(
        replica=serve.get_replica_context().replica_id.unique_id,
        link=RegistryLink(settings.registry, settings.namespace),
        store=ObjectStore(settings.storage),
        open_bucket=bucket_opener(settings.storage),
    )


def bucket_opener(storage: StorageSettings) -> OpenBucket:
    """Opens any bucket of the configured store, with its keys."""

    def open_bucket(name: str) -> ModelBucket:
        return ObjectStore(storage.model_copy(update={"bucket": name}))

    return open_bucket


FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 1.0


class RegistryLink:
    """Calls methods of the named actor; each of them is idempotent, so a call may be repeated.

    Ray restarts the actor and repeats the calls in flight itself; this finds it again when it was made anew.
    """

    def __init__(self, name: str, namespace: str) -> None:
        self._name = name
        self._namespace = namespace
        self._handle: Any = None

    async def call(self, method: str, *args: Any, timeout_s: float = 15) -> Any:
        """Call `method` and return its result; an exception that it raises comes out as it was raised.

        Raises:
            RegistryUnavailableError: no answer within timeout_s, in seconds, all repeats included.
        """
        deadline = time.monotonic() + timeout_s
        pause = FIRST_PAUSE_S
        seen: _Lost | None = None
        while True:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    return await self._call_once(method, args)
            except RayTaskError as error:
                raise _cause(error) from error
            except TimeoutError as error:
                what = "gave no answer within" if seen is None else f"{seen} for"
                raise self._unavailable(method, f"{what} {timeout_s:g} s") from error
            except _Lost as lost:
                seen = lost
                if time.monotonic() + pause >= deadline:
                    raise self._unavailable(method, f"{lost} for {timeout_s:g} s") from lost.__cause__
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE_S)

    async def _call_once(self, method: str, args: tuple[Any, ...]) -> Any:
        if self._handle is None:
            self._handle = await self._find()
        try:
            return await getattr(self._handle, method).remote(*args)
        except ActorDiedError as error:
            self._handle = None
            raise _Lost("is dead") from error
        except ActorUnavailableError as error:
            raise _Lost("could not be reached") from error

    async def _find(self) -> Any:
        try:
            return await asyncio.to_thread(ray.get_actor, self._name, namespace=self._namespace)
        except ValueError as error:
            raise _Lost("is not there") from error

    def _unavailable(self, method: str, what: str) -> RegistryUnavailableError:
        return RegistryUnavailableError(
            f"the job registry {self._name!r} {what} (call of {method}); "
            "it restarts by itself: try again in a few seconds"
        )


class _Lost(Exception):
    """This try did not reach the actor; another may."""


def _cause(error: RayTaskError) -> BaseException:
    cause: object = error.cause
    return cause if isinstance(cause, BaseException) else error
