"""The ends of jobs are told to the URLs that their clients named, signed in the Standard Webhooks form.

At least once each: what was not taken with a 2xx is sent again, after pauses that double, until it is given up. The
deliveries are in SQL (`webhooks_sql`), so that a registry that dies at any moment leaves none undone.
"""

import asyncio
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime

from standardwebhooks.webhooks import EmptyWebhookSecretError, Webhook

from deployments.errors import RegistryUnavailableError
from serve_app.access.targets import Resolve, system_resolve
from serve_app.config import WebhookSettings
from serve_app.database import webhooks as webhooks_sql
from serve_app.database.connection import Database
from serve_app.database.webhooks import Delivery
from serve_app.scheduling.webhook_pacing import DeliveryLimits, next_try
from serve_app.webhooks.client import Answer, WebhookClient

log = logging.getLogger("ray.serve")

USER_AGENT = "mochi-serve-webhooks/1"
# A delivery is held for its timeout and this on top: for the database to be told what came of it.
HOLD_MARGIN_S = 30.0
LOOK_EVERY_S = 60.0
OUTAGE_PAUSE_S = 2.0
# What another registry claims at this moment looks due until it has done so.
SHORTEST_PAUSE_S = 0.1


def payload(delivery: Delivery) -> bytes:
    """The body of a delivery, as OpenAI's webhooks have it; the same in all tries."""
    event = {
        "id": delivery.id,
        "object": "event",
        "created_at": int(delivery.created_at),
        "type": delivery.type,
        "data": {"id": delivery.job_id},
    }
    return json.dumps(event, separators=(",", ":")).encode()


def signed_headers(event_id: str, body: bytes, secret: str, now: float) -> dict[str, str]:
    """The headers of a try at `now`, Unix seconds.

    Raises:
        ValueError: the secret is not `whsec_` and base64.
        EmptyWebhookSecretError: there is nothing after that.
    """
    timestamp = int(now)
    signature = Webhook(secret).sign(event_id, datetime.fromtimestamp(timestamp, UTC), body.decode())
    return {
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature,
    }


class WebhookSender:
    """Sends what is due, in the background of a registry.

    Args:
        database: of the jobs and deliveries.
        settings: timeouts, pauses, and where to.
        secret_of: the `whsec_...` that webhooks of a tenant are signed with.
        resolve: the addresses of a host and port.
        clock: Unix seconds. draw: 0 to 1, the jitter of pauses.
    """

    def __init__(
        self,
        database: Database,
        settings: WebhookSettings,
        secret_of: Callable[[str], Awaitable[str]],
        resolve: Resolve = system_resolve,
        clock: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._settings = settings
        self._secret_of = secret_of
        self._resolve = resolve
        self._clock = clock
        self._draw = draw
        self._lanes = DeliveryLimits()
        self._news = asyncio.Event()

    def wake(self) -> None:
        """A job with a webhook has ended, and that is committed. Call it in the loop of `run`."""
        self._news.set()

    async def run(self) -> None:
        """Send for ever; while the database is away, nothing is sent and it is asked again soon."""
        settings = self._settings
        async with (
            WebhookClient(settings.timeout_s, settings.allow_private, self._resolve) as client,
            asyncio.TaskGroup() as group,
        ):
            while True:
                self._news.clear()
                pause_s = await self._begin_due(client, group)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._news.wait()

    async def _begin_due(self, client: WebhookClient, group: asyncio.TaskGroup) -> float:
        """Begin what is due; returns the seconds until more may be, if nobody wakes the sender before."""
        try:
            for delivery in await self._claim():
                self._lanes.enter(delivery.tenant, delivery.url)
                group.create_task(self._deliver(client, delivery))
            return await self._pause_s()
        except RegistryUnavailableError as error:
            log.warning(f"webhooks: nothing can be sent now, it is tried again: {error}")
        except Exception:  # the outermost loop: a defect here must not end the registry
            log.exception("webhooks: what is due could not be begun; it is tried again")
        return OUTAGE_PAUSE_S

    async def _claim(self) -> list[Delivery]:
        hold_s = self._settings.timeout_s + HOLD_MARGIN_S
        return await self._database.run(
            webhooks_sql.claim_due, now=self._clock(), hold_s=hold_s, lanes=self._lanes.copy()
        )

    async def _pause_s(self) -> float:
        if self._lanes.free <= 0:
            return LOOK_EVERY_S
        due_at = await self._database.run(webhooks_sql.next_due_at, lanes=self._lanes.copy())
        if due_at is None:
            return LOOK_EVERY_S
        return min(LOOK_EVERY_S, max(SHORTEST_PAUSE_S, due_at - self._clock()))

    async def _deliver(self, client: WebhookClient, delivery: Delivery) -> None:
        """One try and the note of what came of it. Without that note it is tried again once its hold is over."""
        try:
            await self._note(delivery, await self._try(client, delivery))
        except RegistryUnavailableError as error:
            log.warning(f"webhooks: {delivery.id} may be sent once more, the database did not take its result: {error}")
        except Exception:  # the outermost of its task: a defect here must not end the others
            log.exception(f"webhooks: what came of {delivery.id} was not written; it is sent again")
        finally:
            self._lanes.leave(delivery.tenant, delivery.url)
            self._news.set()

    async def _try(self, client: WebhookClient, delivery: Delivery) -> Answer:
        body = payload(delivery)
        try:
            secret = await self._secret_of(delivery.tenant)
            return await client.post(delivery.url, body, signed_headers(delivery.id, body, secret, self._clock()))
        except RegistryUnavailableError:
            raise
        except (ValueError, EmptyWebhookSecretError):
            return Answer(None, "it could not be signed: the tenant's webhook secret is not whsec_ and base64")
        except Exception:  # counted as a try, so that a defect here comes to an end
            log.exception(f"webhooks: {delivery.id} could not be sent; it is tried again as if it were not taken")
            return Answer(None, "it could not be sent: an error of the server, which is in its log")

    async def _note(self, delivery: Delivery, answer: Answer) -> None:
        now = self._clock()
        if answer.error is None:
            await self._database.run(webhooks_sql.delivered, delivery, now=now, status=answer.status)
            return
        attempts = delivery.attempts + 1
        next_at = next_try(
            status=answer.status,
            retry_after=answer.retry_after,
            attempts=attempts,
            created_at=delivery.created_at,
            now=now,
            settings=self._settings,
            jitter=self._draw(),
        )
        await self._database.run(
            webhooks_sql.failed, delivery, next_at=next_at, status=answer.status, error=answer.error
        )
        if next_at is None:
            told = f"{delivery.id} for the job {delivery.job_id} is given up after {attempts} tries"
            log.warning(f"webhooks: {told}: {answer.error}")
