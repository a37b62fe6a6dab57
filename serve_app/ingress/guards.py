"""What stands between the routes and any browser: security headers, CORS, and whose pages may drive the server.

The guards are plain ASGI, around the routes from the inside out: CrashAnswer, CORS, BrowserGuard, SecurityHeaders. All
answers pass them, refusals and crashes too.
"""

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.config import AppSettings
from serve_app.errors import ApiError, ConfigError, InvalidRequestError, PermissionDeniedError, quote
from serve_app.ingress.error_answers import to_api_error
from serve_app.openapi.schemas import ErrorEnvelope
from serve_app.openapi.views import to_error_body

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
CORS_METHODS = ("GET", "HEAD", "POST", "DELETE")
EXPOSED_HEADERS = (
    "x-request-id",
    "retry-after",
    "openai-poll-after-ms",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "idempotent-replayed",
    "content-range",
    "content-disposition",
    "etag",
    "location",
)
CORS_MAX_AGE_S = 600
ANY_ORIGIN = "*"

_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def install_guards(app: FastAPI, settings: AppSettings, loopback_only: bool) -> None:
    """Put the guards around the app; to be called once, before its first request.

    Args:
        loopback_only: only this machine reaches the server: it listens on a loopback address.

    Raises:
        ConfigError: access.cors_origins holds what is no origin.
    """
    origins = checked_origins(settings.access.cors_origins)
    # The last one added stands outermost.
    app.add_middleware(CrashAnswer)
    if origins:
        app.add_middleware(
            EnvelopedCORS,
            allow_origins=origins,
            allow_methods=CORS_METHODS,
            allow_headers=[ANY_ORIGIN],
            expose_headers=EXPOSED_HEADERS,
            max_age=CORS_MAX_AGE_S,
        )
    # A request that needs a key needs no guard: no other site's page has the key, and browsers do not add it.
    if settings.access.mode != "keys":
        app.add_middleware(BrowserGuard, origins=origins, loopback_only=loopback_only)
    app.add_middleware(SecurityHeaders, headers=security_headers(settings))


def checked_origins(given: Iterable[str]) -> tuple[str, ...]:
    """The origins as browsers write them. Raises ConfigError for what no browser sends as an origin."""
    found = tuple(origin.strip().rstrip("/").lower() for origin in given)
    for origin in found:
        if origin != ANY_ORIGIN and not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"access.cors_origins: {origin!r} is no web origin; write scheme://host or scheme://host:port, "
                "for example https://studio.example.com, or '*' for all"
            )
    return found


def security_headers(settings: AppSettings) -> dict[str, str]:
    """The headers that every answer has unless its route says otherwise."""
    shared = "cross-origin" if settings.access.cors_origins else "same-origin"
    return {
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "x-frame-options": "DENY",
        "content-security-policy": content_security_policy(settings),
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": shared,
        "permissions-policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    }


def content_security_policy(settings: AppSettings) -> str:
    """A page may use the app's own files only, and the store that downloads are redirected to."""
    store = settings.storage
    link = "" if store.public_endpoint is None else f" http{'s' * store.public_secure}://{store.public_endpoint}"
    return (
        f"default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:{link}; "
        f"media-src 'self' blob:{link}; connect-src 'self'{link}; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    )


class SecurityHeaders:
    """Adds headers to each answer that lacks them; API answers are kept in no cache unless they say so."""

    def __init__(self, app: ASGIApp, headers: dict[str, str]) -> None:
        self._app = app
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": self._completed(message.get("headers", ()))}
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _completed(self, given: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        headers = list(given)
        present = {name.lower(): value for name, value in headers}
        headers += [header for header in self._headers if header[0] not in present]
        if b"cache-control" not in present and _is_api_answer(present.get(b"content-type", b"")):
            headers.append((b"cache-control", b"no-store"))
        return headers


def _is_api_answer(content_type: bytes) -> bool:
    return content_type.startswith((b"application/json", b"text/event-stream"))


class BrowserGuard:
    """Keeps pages of other sites from driving a server that asks for no keys.

    A browser lets any page send requests to this machine, and where a site's name is made to stand for 127.0.0.1 (DNS
    rebinding) even read the answers. The first tell themselves by Origin and Sec-Fetch-Site, which no page can forge;
    the second by a Host that is no name of this machine.

    Args:
        origins: whose pages may do all the same; may hold "*".
        loopback_only: the server is reached by names of this machine only.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...], loopback_only: bool) -> None:
        self._app = app
        self._origins = frozenset(origins)
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refusal(scope) if scope["type"] == "http" else None
        if refused is None:
            return await self._app(scope, receive, send)
        await _enveloped(refused)(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if self._loopback_only and not all(map(is_loopback_host, hosts)):
            return PermissionDeniedError(
                f"This server is for this machine only, and {quote(', '.join(hosts))} is none of its names; "
                "use http://127.0.0.1 or http://localhost with the port.",
                code="host_not_allowed",
            )
        if scope["method"] in SAFE_METHODS or self._may_act(headers, hosts):
            return None
        return PermissionDeniedError(
            f"Pages of {quote(headers.get('origin', 'another site'))} may not use this server; its operator can add "
            "the origin to access.cors_origins.",
            code="origin_not_allowed",
        )

    def _may_act(self, headers: Headers, hosts: list[str]) -> bool:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is None:
            return site in (None, "same-origin", "none")
        # The browser's own word, for where a proxy in front has changed the Host.
        if site == "same-origin" or ANY_ORIGIN in self._origins or origin.lower() in self._origins:
            return True
        return len(hosts) == 1 and is_same_host(origin, hosts[0])


@lru_cache(maxsize=64)
def is_loopback_host(host: str) -> bool:
    """Whether the value of a header Host, with or without a port, is a name or an address of this machine."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if host.strip() != host or any(c in host for c in "/?#@\\"):
            return False
    except ValueError:
        return False
    name = name.removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_same_host(origin: str, host: str) -> bool:
    """Whether an origin names the host and port of a header Host, which tells no scheme."""
    try:
        page = urlsplit(origin.lower())
        own = urlsplit(f"//{host.lower()}")
        default = _DEFAULT_PORTS.get(page.scheme)
        return (
            page.hostname is not None
            and page.hostname == own.hostname
            and ((page.port or default) == (own.port or default))
        )
    except ValueError:
        return False


class EnvelopedCORS(CORSMiddleware):
    """Starlette's, with OpenAI's envelope for a preflight that is refused."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to OPTIONS with Access-Control-Request-Method."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        kept = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
        text = bytes(answer.body).decode()
        return _enveloped(InvalidRequestError(f"{text}; see access.cors_origins.", code="cors_refused", headers=kept))


class CrashAnswer:
    """Answers what no handler foresaw from inside the other guards, so that this answer has their headers too.

    Starlette's own place for it is outside of all middleware. The exception goes on to there, to be logged.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception as error:
            if not started:
                await _enveloped(to_api_error(Request(scope), error))(scope, receive, send)
            raise


def _enveloped(error: ApiError) -> JSONResponse:
    return JSONResponse(ErrorEnvelope(error=to_error_body(error)).model_dump(), error.status, error.headers)
