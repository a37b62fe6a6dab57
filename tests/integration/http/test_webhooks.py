import asyncio
import base64
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Concatenate

import pytest
from aiohttp import web
from openai import InvalidWebhookSignatureError, OpenAI
from sqlalchemy import Connection
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from deployments.errors import RegistryUnavailableError
from deployments.messages import Stage, VideoSpec
from deployments.tracing.context import TraceContext
from serve_app.access.secret_box import LostSecretError
from serve_app.access.targets import AddressInfo, check_target
from serve_app.config import HOUR_S, WebhookSettings
from serve_app.database.connection import Database, P, T
from serve_app.database.jobs import webhooks as webhooks_sql
from serve_app.database.jobs.webhooks import Delivery
from serve_app.jobs import Job, JobState
from serve_app.scheduling.webhook_pacing import MAX_PER_ORIGIN
from serve_app.webhooks.sender import Timing, WebhookSender, payload, signed_headers
from tests.support.http.webhook_receiver import ReceivedRequest, Reply, receiving
from tests.support.logs import begun_log
from tests.support.registry.deliveries import get_delivery
from tests.support.tracing.spans import traced
from tests.support.waiting import running

SPEC = VideoSpec("a red circle", "", 64, 64, 25, 24, 20, 3.0, 1)
SECRETS = {name: "whsec_" + base64.b64encode(name.encode() * 8).decode() for name in ("acme", "globex")}
SOON = WebhookSettings(allow_private=True, timeout_s=200, first_pause_s=0.01)
HELD_S = SOON.timeout_s + Timing().hold_margin_s


async def secret_of(tenant: str) -> str:
    return SECRETS[tenant]


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


@asynccontextmanager
async def sending(
    database: Database,
    settings: WebhookSettings = SOON,
    secret: Callable[[str], Awaitable[str]] = secret_of,
    **parts: Any,
) -> AsyncIterator[WebhookSender]:
    sender = WebhookSender(database, settings, secret, **parts)
    async with running(sender.run()):
        yield sender


async def add(
    database: Database,
    job_id: str,
    url: str,
    state: JobState = JobState.COMPLETED,
    tenant: str = "acme",
    traceparent: str | None = None,
) -> None:
    of = {"tenant": tenant, "webhook_url": url, "traceparent": traceparent}
    job = Job(f"video_{job_id}", "mochi-1", SPEC, state, Stage.DECODING, 1, 0.0, **of)  # type: ignore[arg-type]
    await database.run(webhooks_sql.add_delivery, job, now=time.time())


async def until_true(database: Database, job_id: str, condition: Callable[[Delivery], bool]) -> Delivery:
    """The delivery as soon as the condition is true of it."""
    while not condition(found := await get_delivery(database, job_id)):
        await asyncio.sleep(0.01)
    return found


async def until_done(database: Database, job_id: str) -> Delivery:
    return await until_true(database, job_id, lambda delivery: delivery.next_at is None)


async def until_tried(database: Database, job_id: str) -> Delivery:
    return await until_true(database, job_id, lambda delivery: delivery.attempts > 0)


def replying(*statuses: int, **headers: str) -> Reply:
    """These statuses in turn, the last one for ever."""
    left = list(statuses)

    async def reply(_: web.BaseRequest) -> web.Response:
        return web.Response(status=left.pop(0) if len(left) > 1 else left[0], headers=headers)

    return reply


def unwrapped(got: ReceivedRequest, tenant: str = "acme") -> dict[str, Any]:
    """The event, after the `openai` package and Standard Webhooks' own found its signature right."""
    client = OpenAI(api_key="x", webhook_secret=SECRETS[tenant])
    event: dict[str, Any] = client.webhooks.unwrap(got.body, got.headers).model_dump()
    assert Webhook(SECRETS[tenant]).verify(got.body, got.headers) == json.loads(got.body)
    return event


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (JobState.COMPLETED, "video.completed"),
        (JobState.FAILED, "video.failed"),
        (JobState.CANCELLED, "video.cancelled"),
    ],
)
async def test_an_end_is_sent_in_the_form_that_openais_package_unwraps(
    database: Database, state: JobState, kind: str
) -> None:
    async with receiving() as receiver, sending(database) as sender:
        await add(database, "1", receiver.url(), state)
        sender.wake()
        got = await receiver.next()
        delivery = await until_done(database, "1")
    assert json.loads(got.body) == {
        "id": "evt_1",
        "object": "event",
        "created_at": int(delivery.created_at),
        "type": kind,
        "data": {"id": "video_1"},
    }
    event = unwrapped(got)
    assert (event["id"], event["type"], event["data"]["id"]) == ("evt_1", kind, "video_1")
    assert got.headers["webhook-id"] == "evt_1"
    assert got.headers["content-type"] == "application/json"
    assert got.headers["user-agent"].startswith("mochi-serve")
    assert (delivery.status, delivery.error, delivery.attempts) == (204, None, 1)
    assert delivery.delivered_at is not None


async def test_a_try_is_a_span_of_the_job_and_tells_its_receiver_of_it(database: Database) -> None:
    client = TraceContext("c" * 32, "d" * 16, True)
    with traced() as spans:
        async with receiving(replying(503, 204)) as receiver, sending(database):
            await add(database, "1", receiver.url("/hook?key=secret"), traceparent=client.traceparent)
            await until_done(database, "1")
    failed, taken = spans
    assert [got.headers["traceparent"] for got in receiver.requests] == [span.context.traceparent for span in spans]
    assert {span.context.trace_id for span in spans} == {client.trace_id}
    assert {span.parent_id for span in spans} == {client.at("video_1", "job").span_id}
    assert (failed.error, taken.error) == ("503", None)
    assert taken.attributes["http.response.status_code"] == 204 and taken.attributes["server.address"] == "127.0.0.1"
    assert "secret" not in repr(spans)


async def test_without_an_exporter_the_receiver_hears_of_the_trace_all_the_same(database: Database) -> None:
    client = TraceContext("c" * 32, "d" * 16, True)
    async with receiving() as receiver, sending(database):
        await add(database, "1", receiver.url(), traceparent=client.traceparent)
        assert (await receiver.next()).headers["traceparent"] == client.traceparent
        await add(database, "2", receiver.url())
        assert (await receiver.next()).headers["traceparent"].endswith("-00")


async def test_each_tenant_has_its_own_secret_and_a_changed_body_is_noticed(database: Database) -> None:
    async with receiving() as receiver, sending(database) as sender:
        await add(database, "1", receiver.url(), tenant="globex")
        sender.wake()
        got = await receiver.next()
    unwrapped(got, "globex")
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRETS["acme"]).verify(got.body, got.headers)
    forged = ReceivedRequest(got.path, got.headers, got.body.replace(b"completed", b"cancelled"))
    with pytest.raises(InvalidWebhookSignatureError):
        unwrapped(forged, "globex")


async def test_what_is_not_taken_is_sent_again_under_the_same_id_until_it_is(database: Database) -> None:
    async with receiving(replying(500, 404, 302, 429, 200)) as receiver, sending(database) as sender:
        await add(database, "1", receiver.url())
        sender.wake()
        delivery = await until_done(database, "1")
    assert (delivery.attempts, delivery.status, delivery.error) == (5, 200, None)
    assert len(receiver.requests) == 5
    assert {got.body for got in receiver.requests} == {payload(delivery)}
    assert {unwrapped(got)["id"] for got in receiver.requests} == {"evt_1"}


def test_the_timestamp_is_that_of_the_try_and_created_at_that_of_the_event() -> None:
    event = Delivery("evt_1", "video_1", "acme", "", "video.failed", 1000.9, 0, None, None, None, None)
    body = payload(event)
    assert json.loads(body)["created_at"] == 1000
    first, second = (signed_headers("evt_1", body, SECRETS["acme"], now) for now in (5000.2, 9000.7))
    assert (first["webhook-timestamp"], second["webhook-timestamp"]) == ("5000", "9000")
    assert first["webhook-signature"] != second["webhook-signature"]


async def test_gone_is_given_up_at_once(database: Database) -> None:
    async with receiving(replying(410)) as receiver, sending(database) as sender:
        await add(database, "1", receiver.url())
        sender.wake()
        delivery = await until_done(database, "1")
    assert (delivery.attempts, delivery.status, delivery.delivered_at) == (1, 410, None)
    assert delivery.error is not None and "410 Gone" in delivery.error
    assert len(receiver.requests) == 1


async def test_after_a_day_it_is_given_up_with_a_last_try_and_a_word_in_the_log(database: Database) -> None:
    def in_a_day() -> float:
        return time.time() + 24 * HOUR_S

    async with receiving(replying(500)) as receiver:
        await add(database, "1", receiver.url())
        with begun_log("registry") as lines:
            async with sending(database, clock=in_a_day):
                delivery = await until_done(database, "1")
    assert (delivery.attempts, delivery.status, len(receiver.requests)) == (1, 500, 1)
    (line,) = lines()
    assert "evt_1" in line["message"] and "given up after 1 tries" in line["message"]
    assert (line["job"], line["tenant"]) == (delivery.job_id, delivery.tenant)


async def test_retry_after_is_respected(database: Database) -> None:
    now = time.time() + 1000

    async with receiving(replying(503, **{"Retry-After": "120"})) as receiver:
        await add(database, "1", receiver.url())
        async with sending(database, clock=lambda: now):
            delivery = await until_tried(database, "1")
    assert delivery.next_at == now + 120


async def test_a_redirect_is_not_followed(database: Database) -> None:
    async with receiving() as inner:
        async with receiving(replying(307, Location=inner.url())) as receiver, sending(database) as sender:
            await add(database, "1", receiver.url())
            sender.wake()
            delivery = await until_tried(database, "1")
        assert inner.requests == []
    assert delivery.status == 307 and delivery.delivered_at is None


async def test_an_idle_sender_sends_at_once_when_it_is_woken(database: Database) -> None:
    by_itself = Timing(longest_pause_s=100_000.0)
    async with receiving() as receiver, sending(database, timing=by_itself) as sender:
        for job_id in "123":
            await add(database, job_id, receiver.url())
            sender.wake()
            async with asyncio.timeout(300):
                assert (await receiver.next()).headers["webhook-id"] == f"evt_{job_id}"
            await until_done(database, job_id)


class Gate:
    """A reply that is held back until the gate is open."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, _: web.BaseRequest) -> web.Response:
        await self.open.wait()
        return web.Response(status=200)


async def test_a_slow_target_holds_up_no_other(database: Database) -> None:
    gate = Gate()
    async with receiving(gate) as slow, receiving() as quick:
        for n in range(30):
            await add(database, f"slow{n}", slow.url())
        await add(database, "quick", quick.url())
        async with sending(database):
            await until_done(database, "quick")
            assert slow.most_open_requests <= MAX_PER_ORIGIN
            gate.open.set()
            for n in range(30):
                await until_done(database, f"slow{n}")
    assert slow.most_open_requests <= MAX_PER_ORIGIN
    assert len({got.headers["webhook-id"] for got in slow.requests}) == len(slow.requests) == 30


async def test_a_target_that_hangs_is_a_failure_after_the_timeout(database: Database) -> None:
    impatient = WebhookSettings(allow_private=True, timeout_s=0.1, first_pause_s=0.01)
    async with receiving(Gate()) as receiver, sending(database, impatient) as sender:
        await add(database, "1", receiver.url())
        sender.wake()
        delivery = await until_tried(database, "1")
    assert (delivery.status, delivery.error) == (None, "there was no answer within 0.1 s")
    assert delivery.next_at is not None


async def test_of_two_registries_only_one_sends(database_url: str, database: Database) -> None:
    other = Database(database_url)
    async with receiving() as receiver:
        for n in range(40):
            await add(database, str(n), receiver.url(), tenant=("acme", "globex")[n % 2])
        async with sending(database), sending(other):
            for n in range(40):
                await until_done(database, str(n))
    other.close()
    assert len(receiver.requests) == 40


class LosesResults(Database):
    """A database whose process dies before the result of a delivery is written."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.asked = asyncio.Event()

    async def run(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        if function is webhooks_sql.mark_delivered:
            self.asked.set()
            await asyncio.Event().wait()
        return await super().run(function, *args, **kwargs)


async def test_a_delivery_without_a_result_is_sent_again_under_its_id(database_url: str, database: Database) -> None:
    dying = LosesResults(database_url)
    async with receiving() as receiver:
        await add(database, "1", receiver.url())
        async with sending(dying):
            await dying.asked.wait()
        dying.close()
        assert (await get_delivery(database, "1")).attempts == 0
        async with sending(database, clock=lambda: time.time() + HELD_S):
            await until_done(database, "1")
    assert [got.headers["webhook-id"] for got in receiver.requests] == ["evt_1", "evt_1"]


KILLED = """
import asyncio, sys
from serve_app.config import WebhookSettings
from serve_app.database.connection import Database
from serve_app.webhooks.sender import WebhookSender

async def secret_of(tenant):
    return sys.argv[2]

async def main():
    settings = WebhookSettings(allow_private=True, timeout_s=200)
    await WebhookSender(Database(sys.argv[1]), settings, secret_of).run()

asyncio.run(main())
"""


async def test_after_a_kill_in_the_middle_it_is_delivered(database_url: str, database: Database) -> None:
    gate = Gate()
    async with receiving(gate) as receiver:
        await add(database, "1", receiver.url())
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, database_url, SECRETS["acme"])
        try:
            first = await receiver.next()
        finally:
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()
        gate.open.set()
        async with sending(database, clock=lambda: time.time() + HELD_S):
            delivery = await until_done(database, "1")
        second = await receiver.next()
    assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])
    assert (delivery.status, delivery.attempts) == (200, 1)


class Rebinding:
    """Tells a public address first and a private one from then on."""

    def __init__(self, private: str) -> None:
        self._private = private
        self._asked = 0

    async def __call__(self, host: str, port: int) -> Sequence[AddressInfo]:
        self._asked += 1
        address = "1.1.1.1" if self._asked == 1 else self._private
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))]


@pytest.mark.parametrize("private", ["127.0.0.1", "::1", "169.254.169.254"])
async def test_a_name_that_becomes_private_after_the_check_is_not_connected_to(
    database: Database, private: str
) -> None:
    resolve = Rebinding(private)
    strict = WebhookSettings(first_pause_s=0.01)
    async with receiving() as receiver:
        url = f"http://hook.example.com:{receiver.port}/"
        await check_target(url, False, resolve)
        await add(database, "1", url)
        async with sending(database, strict, resolve=resolve):
            delivery = await until_tried(database, "1")
    assert delivery.status is None
    assert delivery.error is not None and f"{private} is not a public address" in delivery.error
    assert receiver.requests == []


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "169.254.169.254", "localhost", "2130706433"])
async def test_a_private_target_in_the_table_is_not_connected_to(database: Database, host: str) -> None:
    async with receiving() as receiver, sending(database, WebhookSettings()) as sender:
        await add(database, "1", f"http://{host}:{receiver.port}/")
        sender.wake()
        delivery = await until_tried(database, "1")
        assert delivery.status is None and delivery.error is not None
        assert receiver.requests == []


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_ü", "whsec_a"])
async def test_a_secret_that_cannot_sign_is_a_failure_that_does_not_show_it(database: Database, secret: str) -> None:
    async def broken(_: str) -> str:
        return secret

    async with receiving() as receiver, sending(database, secret=broken) as sender:
        await add(database, "1", receiver.url())
        sender.wake()
        delivery = await until_tried(database, "1")
    assert delivery.error == "it could not be signed: the tenant's webhook secret is not whsec_ and base64"
    assert receiver.requests == []


async def test_a_defect_costs_a_try_and_holds_up_no_other(database: Database) -> None:
    async with receiving() as receiver, sending(database) as sender:
        await add(database, "1", receiver.url(), tenant="unknown")
        await add(database, "2", receiver.url())
        sender.wake()
        assert (await until_done(database, "2")).status == 204
        assert "an error of the server" in str((await until_tried(database, "1")).error)


class AwayOnce(Database):
    """Away for the first call of each kind."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.seen: set[object] = set()

    async def run(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        if function not in self.seen:
            self.seen.add(function)
            raise RegistryUnavailableError("the job database does not work")
        return await super().run(function, *args, **kwargs)


async def test_a_database_that_is_away_is_asked_again(database_url: str, database: Database) -> None:
    away = AwayOnce(database_url)
    ahead = [0.0]  # of the clock, seconds
    async with receiving() as receiver:
        await add(database, "1", receiver.url())
        async with sending(away, clock=lambda: time.time() + ahead[0], timing=Timing(outage_pause_s=0.01)) as sender:
            await receiver.next()
            ahead[0] = HELD_S  # its result was not written: it is sent again when its hold is over
            sender.wake()
            assert (await receiver.next()).headers["webhook-id"] == "evt_1"
            await until_done(database, "1")
        assert webhooks_sql.mark_delivered in away.seen
    away.close()


async def test_a_lost_key_of_the_secrets_is_the_reason_and_may_come_back(database: Database) -> None:
    lost = True

    async def secret(tenant: str) -> str:
        if lost:
            raise LostSecretError("another key")
        return await secret_of(tenant)

    async def seal() -> None:
        raise LostSecretError("another key")

    async with receiving() as receiver, sending(database, secret=secret, seal_secrets=seal) as sender:
        await add(database, "a", receiver.url())
        sender.wake()
        assert (await until_tried(database, "a")).error == "it could not be signed: another key"
        lost = False
        assert unwrapped(await receiver.next())["id"] == "evt_a"
