"""The link from a worker or the ingress to the job registry, which may die and come back at any moment."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from deployments.errors import RegistryUnavailableError
from deployments.messages import Directive, ReplicaInfo, Report
from deployments.metrics.recorder import Snapshot

FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 1.0

P = ParamSpec("P")
T = TypeVar("T")
Method = Callable[Concatenate[Any, P], Awaitable[T]]
"""A method of the registry, as it stands in a class: `WorkerRegistry.announce`."""


class WorkerRegistry(Protocol):
    """The job registry as a worker sees it. Either call may be repeated, and may raise RegistryUnavailableError."""

    async def announce(self, info: ReplicaInfo, wait: bool) -> dict[str, Directive]:
        """Announce a replica, again and again.

        Args:
            info: what it is, and the slots it has now.
            wait: hold the call open for a moment, so that a directive for the replica reaches it at
                once.

        Returns:
            Directives for its leases, by lease.
        """
        ...

    async def report(self, report: Report) -> Directive:
        """Take an event of a task; answers what the worker is to do with it."""
        ...

    async def push_metrics(self, snapshot: Snapshot) -> None:
        """What this process has counted since it began."""
        ...

    async def report_all(self, reports: list[Report]) -> list[Directive]:
        """As `report`, for all tasks of a replica at once; the answers in the same order."""
        ...


class Link(Protocol):
    """Carries calls to the registry."""

    async def call(self, method: Method[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the method of that name and return its result; what it raises comes out as it was raised.

        Raises:
            RegistryUnavailableError: there was no answer. Nobody knows whether it was done.
        """
        ...


class RegistryLink:
    """Calls the methods of a named actor. Each of them is idempotent, so a call may be repeated.

    Args:
        name: of the actor.
        namespace: Ray's, that it is in.
        timeout_s: how long a call may take with all its repeats, seconds.

    Ray restarts the actor and repeats the calls in flight itself; this finds it again when it was
    made anew.
    """

    def __init__(self, name: str, namespace: str, timeout_s: float = 15) -> None:
        self._name = name
        self._namespace = namespace
        self._timeout_s = timeout_s
        self._handle: Any = None

    async def call(self, method: Method[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        deadline = time.monotonic() + self._timeout_s
        pause_s = FIRST_PAUSE_S
        last: _NotReachedError | None = None
        while True:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    answer: T = await self._call_once(method.__name__, args, kwargs)
                    return answer
            except RayTaskError as error:
                cause: object = error.cause
                raise (cause if isinstance(cause, BaseException) else error) from error
            except TimeoutError as error:
                what = "gave no answer within" if last is None else f"{last} for"
                raise self._unavailable(method.__name__, what) from error
            except _NotReachedError as error:
                last = error
                if time.monotonic() + pause_s >= deadline:
                    raise self._unavailable(method.__name__, f"{last} for") from error.__cause__
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def _call_once(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._handle is None:
            self._handle = await self._find()
        try:
            return await getattr(self._handle, method).remote(*args, **kwargs)
        except ActorDiedError as error:
            self._handle = None
            raise _NotReachedError("is dead") from error
        except ActorUnavailableError as error:
            raise _NotReachedError("could not be reached") from error

    async def _find(self) -> Any:
        try:
            return await asyncio.to_thread(ray.get_actor, self._name, namespace=self._namespace)
        except ValueError as error:
            raise _NotReachedError("is not there") from error

    def _unavailable(self, method: str, what: str) -> RegistryUnavailableError:
        return RegistryUnavailableError(
            f"the job registry {what} {self._timeout_s:g} s; it restarts by itself: try again in a few seconds",
            f"{self._name!r}, call of {method}",
        )


class _NotReachedError(Exception):
    """This try did not reach the actor; another may."""


class WorkerRegistryClient(WorkerRegistry):
    """The registry over a link."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def announce(self, info: ReplicaInfo, wait: bool) -> dict[str, Directive]:
        return await self._link.call(WorkerRegistry.announce, info, wait)

    async def report(self, report: Report) -> Directive:
        return await self._link.call(WorkerRegistry.report, report)

    async def push_metrics(self, snapshot: Snapshot) -> None:
        await self._link.call(WorkerRegistry.push_metrics, snapshot)

    async def report_all(self, reports: list[Report]) -> list[Directive]:
        return await self._link.call(WorkerRegistry.report_all, reports)
