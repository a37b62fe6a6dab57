"""Sends the ends of jobs to the URLs that their clients named, signed in the form of Standard Webhooks.

Each is sent at least once. One that was not answered with a 2xx is sent again, after pauses that
double, until it is given up. The deliveries are in SQL (`serve_app.database.jobs.webhooks`), so that
none is lost when a registry dies.
"""

import asyncio
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from standardwebhooks.webhooks import EmptyWebhookSecretError, Webhook

from deployments.background import run_forever, wait_for
from deployments.errors import RegistryUnavailableError
from deployments.logs.ids import add_log_ids
from deployments.metrics import names
from deployments.metrics.recorder import RECORDER
from deployments.tracing.context import HEADER, context_of_job
from deployments.tracing.span import Attributes, Kind, Span
from deployments.tracing.tracer import TRACER
from serve_app.access.secret_box import LostSecretError
from serve_app.access.targets import Resolve, system_resolve
from serve_app.config import WebhookSettings
from serve_app.database.connection import Database
from serve_app.database.jobs import webhooks as webhooks_sql
from serve_app.database.jobs.webhooks import Delivery
from serve_app.scheduling.webhook_pacing import DeliveryLimits, next_try
from serve_app.webhooks.client import Answer, WebhookClient

log = logging.getLogger("ray.serve")

USER_AGENT = "mochi-serve-webhooks/1"


@dataclass(frozen=True, slots=True)
class Timing:
    """Pauses of the sender, seconds."""

    hold_margin_s: float = 30.0  # a delivery is held for its timeout and this on top, to write the result to SQL
    longest_pause_s: float = 60.0  # between two looks for what is due
    shortest_pause_s: float = 0.1  # what another registry holds at this moment looks due until it has committed
    outage_pause_s: float = 2.0  # while the database is away


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


def _begin_span(delivery: Delivery) -> Span:
    """One try. Of the URL it tells the host: the rest may be a secret of its owner."""
    context = context_of_job(delivery.job_id, delivery.traceparent)
    about: Attributes = {
        "http.request.method": "POST",
        "server.address": urlsplit(delivery.url).hostname or "",
        "mochi_serve.job.id": delivery.job_id,
        "mochi_serve.event.id": delivery.id,
        "http.request.resend_count": delivery.attempts,
    }
    return TRACER.begin("webhook", context.at(delivery.job_id, "job"), about, Kind.CLIENT)


async def _nothing_to_seal() -> None:
    pass


class WebhookSender:
    """Sends what is due, in the background of a registry.

    Args:
        database: of the jobs and deliveries.
        settings: timeouts, pauses, and which addresses are allowed.
        get_secret: the `whsec_...` that webhooks of a tenant are signed with; may raise LostSecretError.
        seal_secrets: called once, before the first is sent; may raise LostSecretError.
        resolve: the addresses of a host and port.
        clock: Unix seconds.
        draw: 0 to 1, the jitter of pauses.
        timing: the sender's own pauses.
    """

    def __init__(
        self,
        database: Database,
        settings: WebhookSettings,
        get_secret: Callable[[str], Awaitable[str]],
        seal_secrets: Callable[[], Awaitable[None]] = _nothing_to_seal,
        resolve: Resolve = system_resolve,
        clock: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
        timing: Timing = Timing(),
    ) -> None:
        self._database = database
        self._settings = settings
        self._get_secret = get_secret
        self._seal_secrets = seal_secrets
        self._sealed = False
        self._resolve = resolve
        self._clock = clock
        self._draw = draw
        self._timing = timing
        self._limits = DeliveryLimits()
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """A job with a webhook has ended, and that is committed. Call it in the loop of `run`."""
        self._woken.set()

    async def run(self) -> None:
        """Send for ever; while the database is away, nothing is sent and it is asked again soon."""
        settings = self._settings
        async with (
            WebhookClient(settings.timeout_s, settings.allow_private, self._resolve) as client,
            asyncio.TaskGroup() as group,
        ):
            await run_forever(
                lambda: self._begin_due_and_wait(client, group), "webhooks", log, self._timing.outage_pause_s
            )

    async def _begin_due_and_wait(self, client: WebhookClient, group: asyncio.TaskGroup) -> float:
        """Begin what is due, and wait until more may be or somebody wakes the sender."""
        if not self._sealed:
            await self._try_to_seal()
        self._woken.clear()
        hold_s = self._settings.timeout_s + self._timing.hold_margin_s
        # SQL has its own thread: it gets a copy of the limits, which change here meanwhile.
        for delivery in await self._database.run(
            webhooks_sql.hold_due, now=self._clock(), hold_s=hold_s, limits=self._limits.copy()
        ):
            self._limits.begin(delivery.tenant, delivery.url)
            group.create_task(self._deliver(client, delivery))
        await wait_for(self._woken, await self._pause_s())
        return 0.0

    async def _try_to_seal(self) -> None:
        """Without the key, what is sent fails with that reason; nothing else does."""
        try:
            await self._seal_secrets()
        except LostSecretError as error:
            log.error(f"webhooks: {error}")
        self._sealed = True

    async def _pause_s(self) -> float:
        """Seconds until the next delivery may begin, if nobody wakes the sender before."""
        timing = self._timing
        if self._limits.free <= 0:
            return timing.longest_pause_s
        due_at = await self._database.run(webhooks_sql.next_due_at, limits=self._limits.copy())
        if due_at is None:
            return timing.longest_pause_s
        return min(timing.longest_pause_s, max(timing.shortest_pause_s, due_at - self._clock()))

    async def _deliver(self, client: WebhookClient, delivery: Delivery) -> None:
        """Try once and write the result to SQL. If that fails, it is tried again once its hold is over."""
        begun_by = context_of_job(delivery.job_id, delivery.traceparent)
        add_log_ids(job=delivery.job_id, tenant=delivery.tenant, trace=lambda: begun_by)
        try:
            with RECORDER.timing(names.WEBHOOK_SECONDS), _begin_span(delivery) as span:
                answer = await self._send(client, delivery, span)
            await self._write_result(delivery, answer)
        except RegistryUnavailableError as error:
            log.warning(f"webhooks: {delivery.id} may be sent once more, the database did not take its result: {error}")
        except Exception:  # the outermost of its task: a defect here must not end the others
            log.exception(f"webhooks: the result of {delivery.id} was not written; it is sent again")
        finally:
            self._limits.end(delivery.tenant, delivery.url)
            self._woken.set()

    async def _send(self, client: WebhookClient, delivery: Delivery, span: Span) -> Answer:
        answer = await self._try(client, delivery, span)
        if answer.status is not None:
            span.set({"http.response.status_code": answer.status})
        if answer.error is not None:
            # Not the error itself, which may name the URL.
            span.end(str(answer.status or "no_answer"))
        return answer

    async def _try(self, client: WebhookClient, delivery: Delivery, span: Span) -> Answer:
        body = payload(delivery)
        # Of the job, where the try itself is not traced: the receiver can go on with its trace all the same.
        context = span.traceparent or context_of_job(delivery.job_id, delivery.traceparent).traceparent
        try:
            secret = await self._get_secret(delivery.tenant)
            headers = signed_headers(delivery.id, body, secret, self._clock()) | {HEADER: context}
            return await client.post(delivery.url, body, headers)
        except RegistryUnavailableError:
            raise
        except LostSecretError as error:
            return Answer(None, f"it could not be signed: {error}")
        except (ValueError, EmptyWebhookSecretError):
            return Answer(None, "it could not be signed: the tenant's webhook secret is not whsec_ and base64")
        except Exception:  # counted as a try, so that a defect here comes to an end
            log.exception(f"webhooks: {delivery.id} could not be sent; it is tried again as if it were not taken")
            return Answer(None, "it could not be sent: an error of the server, which is in its log")

    async def _write_result(self, delivery: Delivery, answer: Answer) -> None:
        now = self._clock()
        if answer.error is None:
            await self._database.run(webhooks_sql.mark_delivered, delivery, now=now, status=answer.status)
            RECORDER.count(names.WEBHOOKS, "delivered")
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
            webhooks_sql.mark_failed, delivery, next_at=next_at, status=answer.status, error=answer.error
        )
        RECORDER.count(names.WEBHOOKS, "failed" if next_at is not None else "given_up")
        if next_at is None:
            # The path of the URL may be a secret of its owner.
            error = answer.error.replace(delivery.url, urlsplit(delivery.url).hostname or "")
            log.warning(
                f"webhooks: {delivery.id} for the job {delivery.job_id} is given up after {attempts} tries: {error}"
            )
