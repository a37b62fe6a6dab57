"""Calls of the devices of an application that answers at once: the least loaded gets the next, and one that fails none.

A call that a device fails, leaves unanswered or dies with goes to another one. What the device itself refuses is the
answer. A call that fails wherever it goes, and breaks no device, is likely at fault itself: no breaker counts it, or a
few such calls would shut all devices to everybody.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Literal, Protocol, TypeVar

from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from deployments.background import run_forever
from deployments.errors import DeviceBrokenError, PermanentError
from deployments.metrics import names
from deployments.metrics.recorder import RECORDER
from serve_app.calls.breaker import BreakerRules, BreakerState
from serve_app.calls.device_table import TABLES, DeviceTable
from serve_app.errors import ServiceUnavailableError

log = logging.getLogger("ray.serve")
RULES = BreakerRules()


class Described(Protocol):
    """What a device says of itself."""

    @property
    def replica(self) -> str: ...

    @property
    def problem(self) -> str | None: ...


Info = TypeVar("Info", bound=Described)


@dataclass(frozen=True, slots=True)
class CallTiming:
    """Seconds of the calls of one application."""

    answer_s: float  # a call that is not answered by then counts as hanging
    choice_s: float = 10.0  # a device with room is waited for so long
    describe_every_s: float = 1.0  # between two times that all devices are asked what they are
    describe_s: float = 5.0  # they answer by then
    silent_s: float = 15.0  # what none has said again for so long is not true any more


@dataclass(frozen=True, slots=True)
class KnownDevice(Generic[Info]):
    """A device at a moment."""

    info: Info
    breaker: BreakerState
    failures: int  # in a row
    answered: int  # calls from here
    tries_again_in_s: float  # while its breaker is open


class Devices(Generic[Info]):
    """Those of one deployment, by a Serve handle.

    Args:
        application: its name in metrics and messages.
        deployment: its name in Serve.
        handle_of: gives the handle; asked once, at the first call.
        method: of the deployment, that is called.
        timing: see there.
        attempts: on different devices, if there are any.
    """

    def __init__(
        self,
        application: str,
        deployment: str,
        handle_of: Callable[[], Any],
        method: str,
        timing: CallTiming,
        rules: BreakerRules = RULES,
        attempts: int = 3,
    ) -> None:
        self._application = application
        self._handle_of = handle_of
        self._method = method
        self._timing = timing
        self._attempts = attempts
        self._infos: dict[str, Info] = {}
        self._described_at = -float("inf")
        self._table = TABLES[deployment] = DeviceTable(rules)
        self._choosing = asyncio.Lock()

    async def run(self) -> None:
        """Ask the devices what they are, for ever."""
        await run_forever(
            self._describe, f"asking the devices of {self._application}", log, self._timing.describe_every_s
        )

    @cached_property
    def _handle(self) -> Any:
        return self._handle_of()

    @property
    def known(self) -> tuple[KnownDevice[Info], ...]:
        """Those that answer now, by their names."""
        now = time.monotonic()
        devices = []
        for name, info in sorted(self._infos.items()):
            device = self._table.device(name)
            breaker = device.breaker
            devices.append(
                KnownDevice(info, breaker.state(now), breaker.failures, device.answered, breaker.opens_in(now))
            )
        return tuple(devices)

    async def call(self, cost: int, *args: Any) -> Any:
        """What a device answers.

        Args:
            cost: of the call, for the choice of the device.

        Raises:
            PermanentError: the device refused it.
            ServiceUnavailableError: no device is there, or none of those that were tried could do it.
        """
        failures: list[_CallFailed] = []
        with RECORDER.timing(names.CALL_SECONDS, self._application):
            for _ in range(self._attempts):
                try:
                    answer = await self._try(cost, args, avoid=frozenset(one.replica for one in failures))
                except _CallFailed as failure:
                    RECORDER.count(names.CALLS_FAILED, self._application, failure.reason)
                    log.warning(f"{self._application}: {failure}")
                    failures.append(failure)
                else:
                    self._count(failures)
                    return answer
        self._count(failures, is_at_fault=len({one.replica for one in failures}) > 1)
        raise ServiceUnavailableError(
            f"The devices failed at this {len(failures)} times; try again in a few seconds.",
            code="device_failed",
            headers={"Retry-After": str(max(1, round(self._table.rules.first_pause_s)))},
        )

    def _count(self, failures: Sequence["_CallFailed"], is_at_fault: bool = False) -> None:
        """Hold a call's failures against the devices; is_at_fault: itself, but where a device failed for sure."""
        for failure in failures:
            if failure.is_certain:
                continue  # it was counted at once
            if is_at_fault:
                self._table.device(failure.replica).breaker.give_back()
            else:
                self._fail(failure.replica)

    async def _try(self, cost: int, args: tuple[Any, ...], avoid: frozenset[str]) -> Any:
        """Raises _CallFailed."""
        async with contextlib.AsyncExitStack() as stack:
            selection, method = await self._choose(cost, avoid, stack)
            replica = selection.replica_id
            device = self._table.device(replica)
            try:
                async with asyncio.timeout(self._timing.answer_s):
                    answer = await method.dispatch(selection, *args)
            except TimeoutError:
                self._fail(replica, at_once=True)
                raise _CallFailed("timeout", replica, f"gave no answer in {self._timing.answer_s:g} s") from None
            except RayTaskError as error:
                if isinstance(error.cause, PermanentError):
                    device.breaker.succeed()
                    raise error.cause from None
                is_broken = isinstance(error.cause, DeviceBrokenError)
                if is_broken:
                    self._fail(replica, at_once=True)
                reason: Literal["broken", "failed"] = "broken" if is_broken else "failed"
                raise _CallFailed(reason, replica, f"failed: {error.cause or error}") from error
            except (RayActorError, RayServeException) as error:
                self._fail(replica, at_once=True)
                raise _CallFailed("died", replica, f"is gone: {error}") from error
            except BaseException:
                device.breaker.give_back()
                raise
            finally:
                device.in_flight -= cost
            device.breaker.succeed()
            device.answered += 1
            return answer

    async def _choose(self, cost: int, avoid: frozenset[str], stack: contextlib.AsyncExitStack) -> tuple[Any, Any]:
        """Serve's selection of a device, whose slot is reserved until `stack` is closed, and what to send it with."""
        method = getattr(self._handle, self._method)
        try:
            # One after the other: each choice counts what those before it have sent.
            async with asyncio.timeout(self._timing.choice_s), self._choosing:
                opens_in_s = self._table.opens_in(time.monotonic())
                if self._infos and opens_in_s != 0:
                    raise self._unavailable(opens_in_s)
                choice = method.choose_replica(avoid=avoid)
                selection = await choice.__aenter__()
                stack.push_async_exit(choice)
                device = self._table.device(selection.replica_id)
                device.breaker.begin(time.monotonic())
                device.in_flight += cost
        except TimeoutError:
            raise self._unavailable(None) from None
        return selection, method

    def _unavailable(self, opens_in_s: float | None) -> ServiceUnavailableError:
        wait_s = 2 if opens_in_s is None else max(1, round(opens_in_s))
        return ServiceUnavailableError(
            f"No device of {self._application} takes anything now; try again in {wait_s} s.",
            code="no_device",
            headers={"Retry-After": str(wait_s)},
        )

    def _fail(self, replica: str, at_once: bool = False) -> None:
        if self._table.device(replica).breaker.fail(time.monotonic(), at_once=at_once):
            RECORDER.count(names.BREAKERS_OPENED, self._application)

    async def call_all(self, method: str, timeout_s: float) -> list[Any]:
        """What all devices answer that do, in no order; those that fail or are late have no part in it."""
        try:
            told = await self._handle.broadcast(method).results_async(timeout_s=timeout_s, return_exceptions=True)
        except (RayError, RayServeException, TimeoutError) as error:
            log.debug(f"the devices of {self._application} were not reached: {error}")
            return []
        return [one for one in told if not isinstance(one, BaseException)]

    async def _describe(self) -> float:
        now = time.monotonic()
        infos: dict[str, Info] = {
            info.replica: info for info in await self.call_all("describe", self._timing.describe_s)
        }
        if infos:
            self._infos, self._described_at = infos, now
        elif now - self._described_at > self._timing.silent_s:
            self._infos = {}
        self._table.keep_only(self._infos, now)
        for name, info in self._infos.items():
            self._table.device(name).problem = info.problem
        for state, count in self._table.states(time.monotonic()).items():
            RECORDER.set(names.DEVICES, count, self._application, state)
        return self._timing.describe_every_s


class _CallFailed(Exception):
    """A call that a device did not do; another one may.

    Args:
        reason: `failed` may be the fault of the call; the others are the device's.
    """

    def __init__(self, reason: Literal["failed", "broken", "timeout", "died"], replica: str, what: str) -> None:
        super().__init__(f"{replica} {what}")
        self.reason = reason
        self.replica = replica

    @property
    def is_certain(self) -> bool:
        """Whether it is the device's fault for sure."""
        return self.reason != "failed"
