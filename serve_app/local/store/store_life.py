"""Whether the local object store still answers: one that stands still holds its ports and says nothing."""

import asyncio
import time
from dataclasses import dataclass

import psutil

from deployments.watchdog.watcher import Activities, Activity, Silence
from serve_app.local.preflight import LOOPBACK

_REQUEST = b"GET / HTTP/1.0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class StoreLifeTiming:
    """What counts as a hang, in seconds; as for our own processes, see `deployments.watchdog.watcher`."""

    look_s: float = 2.0  # between two questions, and how long one waits for its answer
    idle_s: float = 10.0
    silent_s: float = 120.0


async def until_it_hangs(port: int, guardian: int, timing: StoreLifeTiming = StoreLifeTiming()) -> None:
    """Return when the store has given no answer for too long; any answer will do, a refusal too.

    Args:
        port: of its S3 API.
        guardian: process id of the parent of the store.
        timing: how long that is.
    """
    silence = Silence(timing.look_s, timing.idle_s, timing.silent_s)
    activities: dict[int, Activities] = {}
    while True:
        asked = time.monotonic()
        if await _answers(port, timing.look_s):
            silence.end()
            for activity in activities.values():
                activity.begin()
            await asyncio.sleep(timing.look_s)
            continue
        elapsed_s = time.monotonic() - asked
        if silence.lasts(elapsed_s, _activity(activities, guardian, elapsed_s)):
            return


async def _answers(port: int, timeout_s: float) -> bool:
    """A refused connection is no answer either; it is counted after a pause of the whole time."""
    until = time.monotonic() + timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            try:
                writer.write(_REQUEST)
                return bool(await reader.read(1))
            finally:
                writer.close()
    except (OSError, TimeoutError):
        await asyncio.sleep(max(0.0, until - time.monotonic()))
        return False


def _activity(seen: dict[int, Activities], guardian: int, elapsed_s: float) -> Activity:
    """What the store did since it was last looked at."""
    try:
        stores = psutil.Process(guardian).children()
    except psutil.NoSuchProcess:
        return Activity.BUSY  # it ends, and is started again
    looks = [seen.setdefault(store.pid, Activities(store.pid)).look(elapsed_s) for store in stores]
    return looks[0] if looks else Activity.BUSY
