"""Who sends a request, and how often they may: a FastAPI dependency, and the headers of rate limits on every answer.

install_authentication(app, access)      # once, after all other middleware: what answers lies within it
async def route(caller: AuthenticatedCaller)
"""

import re
import time
from collections.abc import Callable
from typing import Annotated, Any, Protocol

from fastapi import Depends, FastAPI, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.logs.ids import add_log_ids
from serve_app.access.limits import RateLimits, whole_seconds
from serve_app.access.tenants import (
    TENANT_ALLOWED,
    TENANT_PATTERN,
    AccessTable,
    Caller,
    ShownKey,
    Tenant,
    shown_key_hash,
    tenant_of_key,
)
from serve_app.errors import RateLimitError, UnauthenticatedError, quote
from serve_app.ingress.request_trace import BEGUN
from serve_app.jobs import DEFAULT_TENANT

TENANT_HEADER = "OpenAI-Organization"
KEY_HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotent-Replayed"
# What `authenticate` reads beside the key, as ASGI writes it.
CALLER_HEADERS = frozenset({TENANT_HEADER.lower().encode(), KEY_HEADER.lower().encode()})

_IDEMPOTENCY_KEY = "[ -~]{1,255}"


def _matching(pattern: str, allowed: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise PydanticCustomError("text", "It must be {allowed}", {"allowed": allowed})
        return text

    return check


TenantName = Annotated[
    str,
    AfterValidator(_matching(TENANT_PATTERN, TENANT_ALLOWED)),
    WithJsonSchema({"type": "string", "pattern": f"^{TENANT_PATTERN}$"}),
]
IdempotencyKey = Annotated[
    str,
    AfterValidator(_matching(_IDEMPOTENCY_KEY, "1 to 255 printable ASCII characters")),
    WithJsonSchema({"type": "string", "pattern": f"^{_IDEMPOTENCY_KEY}$"}),
]


OrganizationHeader = Annotated[
    TenantName | None,
    Header(
        alias=TENANT_HEADER,
        description="the tenant; where keys are needed, it can be no other than the key's, and is best left out",
    ),
]
IdempotencyHeader = Annotated[
    IdempotencyKey | None,
    Header(alias=KEY_HEADER, description="the client's name for this request: repeated, it makes no second video"),
]

REPLAYED_DOCS: dict[str, Any] = {
    REPLAYED_HEADER: {
        "description": f"true if the video is the one that an earlier request with the same {KEY_HEADER} made",
        "schema": {"type": "string", "enum": ["true"]},
    }
}


# Where in a request's scope the headers for its answer lie: that may be any Response, or the answer to an error.
_RATE_HEADERS = "mochi_serve.rate_limit_headers"

bearer = HTTPBearer(
    auto_error=False,
    scheme_name="ApiKey",
    description="`Authorization: Bearer ms-...`, made by `mochi-serve keys create`. Ignored by a server that runs "
    "without keys (access.mode auto or open-to-anyone).",
)


OnAnswer = Callable[[Scope, int, float], None]
"""Called as an answer begins, with the request's scope, the status and the seconds since the request came."""


OnEnd = Callable[[Scope, int | None], None]
"""Called when all of an answer is sent, with the request's scope and the status; None if none was sent."""


class Access(Protocol):
    """The tenants and keys of a replica: `app.state.access`."""

    @property
    def keys_needed(self) -> bool:
        """Whether a request without a key is refused."""

    async def table_for(self, hashed: str) -> AccessTable:
        """Called on each request, with the hash of its key: it answers from memory, but for a key that it lacks."""


def _nothing(scope: Scope, status: int, seconds: float) -> None:
    pass


def _nothing_at_end(scope: Scope, status: int | None) -> None:
    pass


def install_authentication(
    app: FastAPI,
    access: Access,
    clock: Callable[[], float] = time.monotonic,
    on_answer: OnAnswer = _nothing,
    on_end: OnEnd = _nothing_at_end,
) -> None:
    """Give the app what `authenticate` needs.

    Args:
        clock: seconds that never go back.
        on_answer: see OnAnswer. It is called from here because a layer of its own would cost a read a tenth more.
        on_end: see OnEnd, likewise.
    """
    app.add_middleware(RateLimitHeaders, on_answer=on_answer, on_end=on_end)
    app.state.access = access
    app.state.rate_limits = RateLimits(clock)


async def shown_key(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> ShownKey | None:
    """The request's key, which is a good one, counted against its limit; None where no keys are needed.

    Raises:
        UnauthenticatedError: there is no key, or no good one.
        RateLimitError: the tenant sent too many requests in the last minute.
        RegistryUnavailableError: nobody can say now whether the key is a new one.
    """
    access: Access = request.app.state.access
    if not access.keys_needed:
        return None
    if credentials is None:
        raise _no_key(request)
    hashed = shown_key_hash(credentials.credentials)
    tenant = tenant_of_key(await access.table_for(hashed), hashed, time.time())
    _count_request(request, tenant)
    return ShownKey(tenant, hashed)


async def authenticate(
    key: Annotated[ShownKey | None, Depends(shown_key)],
    organization: OrganizationHeader = None,
    idempotency_key: IdempotencyHeader = None,
) -> Caller:
    """Who sends the request.

    FastAPI calls `shown_key` before it looks at the headers: a stranger is not even told that a header is wrong.

    Raises:
        UnauthenticatedError: as `shown_key` does, or the request names another tenant than its key's.
        RateLimitError: as `shown_key` does.
    """
    if key is None:
        caller = Caller(organization or DEFAULT_TENANT, idempotency_key)
        add_log_ids(tenant=caller.tenant)
        return caller
    add_log_ids(tenant=key.tenant.name)
    if organization is not None and organization != key.tenant.name:
        raise UnauthenticatedError(
            f"The header {TENANT_HEADER} names the tenant {quote(organization)}, to which the API key does not belong; "
            "leave the header out.",
            "mismatched_organization",
        )
    return Caller(key.tenant.name, idempotency_key, key.tenant, key.hash)


AuthenticatedCaller = Annotated[Caller, Depends(authenticate)]


async def authenticate_by_key(request: Request) -> Caller:
    """`authenticate`, called by hand, for a request with none of `CALLER_HEADERS`. Raises as it does."""
    return await authenticate(await shown_key(request, await bearer(request)))


class RateLimitHeaders:
    """Adds to each answer, also that of an error, how much is left of the tenant's limit of requests.

    Starlette answers an error that no handler foresaw outside of all middleware, unless a middleware within this one
    answers it, as `guards.CrashAnswer` does.
    """

    def __init__(self, app: ASGIApp, on_answer: OnAnswer = _nothing, on_end: OnEnd = _nothing_at_end) -> None:
        self._app = app
        self._on_answer = on_answer
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        scope[BEGUN] = time.time_ns()
        answered: int | None = None
        rate_limit_headers: dict[str, str] = scope.setdefault(_RATE_HEADERS, {})

        async def send_with_headers(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = message["status"]
                if rate_limit_headers:
                    MutableHeaders(scope=message).update(rate_limit_headers)
                self._on_answer(scope, message["status"], time.perf_counter() - begun)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            self._on_end(scope, answered)


def _no_key(request: Request) -> UnauthenticatedError:
    how = "Send one as 'Authorization: Bearer ms-...'."
    if "authorization" in request.headers:
        return UnauthenticatedError(f"The header Authorization holds no API key. {how}")
    return UnauthenticatedError(f"This server needs an API key. {how}", "missing_api_key")


def _count_request(request: Request, tenant: Tenant) -> None:
    if tenant.requests_per_minute is None:
        return
    limits: RateLimits = request.app.state.rate_limits
    result = limits.take(tenant.name, tenant.requests_per_minute)
    request.scope[_RATE_HEADERS].update(result.headers)
    if not result.granted:
        wait_s = whole_seconds(result.wait_s)
        message = f"This tenant may send {result.limit} requests a minute; try again in {wait_s} s."
        raise RateLimitError(message, "rate_limit_exceeded", wait_s)
