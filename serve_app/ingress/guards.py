"""What stands between the routes and any browser: security headers, CORS, and whose pages may drive the server.

The guards are plain ASGI, around the routes from the inside out: CrashAnswer, CORS, BrowserGuard, SecurityHeaders. All
answers pass them, refusals and crashes too.
"""

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.access.exposure import is_loopback_header, keys_needed
from serve_app.config import AppSettings
from serve_app.errors import ApiError, ConfigError, InvalidRequestError, PermissionDeniedError, quote
from serve_app.ingress.error_answers import error_response, to_api_error

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
CORS_METHODS = ("GET", "HEAD", "POST", "DELETE")
# All that the `openai` packages read, and what our own answers tell.
EXPOSED_HEADERS = (
    "x-request-id",
    "retry-after",
    "x-should-retry",
    "openai-poll-after-ms",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "idempotent-replayed",
    "preference-applied",
    "x-ignored-parameters",
    "traceresponse",
    "x-video-id",
    "accept-ranges",
    "content-length",
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
    if not keys_needed(settings.access.mode):
        app.add_middleware(BrowserGuard, origins=origins, loopback_only=loopback_only)
    app.add_middleware(SecurityHeaders, headers=security_headers(settings))


def checked_origins(origins: Iterable[str]) -> tuple[str, ...]:
    """The origins as browsers write them. Raises ConfigError for what no browser sends as an origin."""
    written = tuple(origin.strip().rstrip("/").lower() for origin in origins)
    for origin in written:
        if origin != ANY_ORIGIN and not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"access.cors_origins: {origin!r} is no web origin; write scheme://host or scheme://host:port, "
                "for example https://studio.example.com, or '*' for all"
            )
    return written


def security_headers(settings: AppSettings) -> dict[str, str]:
    """The headers that every answer has unless its route says otherwise."""
    resource_policy = "cross-origin" if settings.access.cors_origins else "same-origin"
    return {
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "x-frame-options": "DENY",
        "content-security-policy": content_policy(settings),
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": resource_policy,
        "permissions-policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    }


# Of the web page, which has all that it loads from this server. blob: what it fetched with an API key, and previews
# that came as events.
PAGE_CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)


def content_policy(settings: AppSettings) -> str:
    """The Content-Security-Policy of all other answers: they may use this server, and the store that links lead to."""
    storage = settings.storage
    public = None if storage.redirect == "never" else storage.public_endpoint
    store = "" if public is None else f" http{'s' * storage.public_secure}://{public}"
    return (
        f"default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:{store}; "
        f"media-src 'self' blob:{store}; connect-src 'self'{store}; object-src 'none'; base-uri 'none'; "
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

    def _completed(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        completed = list(headers)
        present = {name.lower(): value for name, value in completed}
        completed += [header for header in self._headers if header[0] not in present]
        is_api_answer = present.get(b"content-type", b"").startswith((b"application/json", b"text/event-stream"))
        if is_api_answer and b"cache-control" not in present:
            completed.append((b"cache-control", b"no-store"))
        return completed


class BrowserGuard:
    """Keeps pages of other sites from driving a server that asks for no keys.

    A browser lets any page send requests to this machine, and where a site's name is made to stand for 127.0.0.1 (DNS
    rebinding) even read the answers. The first are known by Origin and Sec-Fetch-Site, which no page can forge; the
    second by a Host that is no name of this machine.

    Args:
        origins: whose pages may do all the same; may hold "*".
        loopback_only: the server is reached by names of this machine only.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...], loopback_only: bool) -> None:
        self._app = app
        self._origins = frozenset(origins)
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            return await self._app(scope, receive, send)
        await error_response(refusal)(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if self._loopback_only and not all(map(is_loopback_header, hosts)):
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
        # A browser says this itself: it counts where a proxy in front has changed the Host.
        if site == "same-origin" or ANY_ORIGIN in self._origins or origin.lower() in self._origins:
            return True
        return len(hosts) == 1 and is_same_host(origin, hosts[0])


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
        headers = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
        message = f"{bytes(answer.body).decode()}; see access.cors_origins."
        return error_response(InvalidRequestError(message, code="cors_refused", headers=headers))


class CrashAnswer:
    """Answers errors that no handler foresaw, inside the other guards, so that this answer has their headers too.

    Starlette's own place for it is outside of all middleware; the exception goes on to there, where it is logged.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = False

        async def send_noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        except Exception as error:
            if not started:
                await error_response(to_api_error(Request(scope), error))(scope, receive, send)
            raise
