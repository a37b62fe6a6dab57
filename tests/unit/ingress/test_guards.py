import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Response
from fastapi.responses import HTMLResponse, StreamingResponse
from hypothesis import given
from hypothesis import strategies as st

from deployments.settings import StorageSettings
from serve_app.config import AccessSettings, AppSettings
from serve_app.errors import ConfigError, NotFoundError
from serve_app.ingress.error_answers import install_error_handlers
from serve_app.ingress.guards import checked_origins, install_guards, is_same_host
from tests.support.http.fakes import shapes_settings

STUDIO = "https://studio.example.com"
# What the `openai` packages (Python and Node) read of an answer and a browser does not show by itself, but for
# retry-after-ms, which no answer here has.
READ_BY_OPENAI = {"x-request-id", "retry-after", "x-should-retry", "openai-poll-after-ms", "content-length"}
OUR_OWN = {"x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests", "etag"}
OUR_OWN |= {"idempotent-replayed", "preference-applied", "x-ignored-parameters", "x-video-id", "location"}
OUR_OWN |= {"accept-ranges", "content-range", "content-disposition"}


def with_access(**access: Any) -> AppSettings:
    return shapes_settings().model_copy(update={"access": AccessSettings(**access)})


def routes() -> FastAPI:
    app = FastAPI()
    install_error_handlers(app)
    app.add_api_route("/json", lambda: {"ok": True}, methods=["GET", "POST", "DELETE"])
    app.add_api_route("/page", lambda: HTMLResponse("<p>"))
    app.add_api_route("/own", lambda: Response(headers={"Cache-Control": "max-age=5", "X-Frame-Options": "SAMEORIGIN"}))
    app.add_api_route("/missing", missing)
    app.add_api_route("/crash", crash, methods=["GET", "POST"])
    app.add_api_route("/torn", lambda: StreamingResponse(torn()))
    return app


def missing() -> None:
    raise NotFoundError("not here")


def crash() -> None:
    raise RuntimeError("secret detail")


async def torn() -> Any:
    yield b"begun"
    raise RuntimeError("in the middle")


Ask = Callable[..., Any]


def asking(settings: AppSettings | None = None, loopback_only: bool = False) -> Ask:
    app = routes()
    install_guards(app, settings or shapes_settings(), loopback_only)

    async def ask(method: str, path: str, **headers: str) -> httpx.Response:
        # The exception of a crash goes on to the server; the answer is what counts here.
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            return await client.request(method, path, headers=named)

    return ask


def assert_refused(answer: httpx.Response, code: str) -> None:
    assert answer.status_code == 403
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, None)


@pytest.mark.parametrize("path", ["/json", "/page", "/missing", "/crash", "/nowhere"])
async def test_every_answer_has_the_security_headers(path: str) -> None:
    headers = (await asking()("GET", path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == "'self' data: blob:"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["object-src"] == "'none'"
    assert "camera=()" in headers["permissions-policy"]


async def test_api_answers_are_kept_in_no_cache_unless_they_say_so() -> None:
    ask = asking()
    assert (await ask("GET", "/json")).headers["cache-control"] == "no-store"
    assert (await ask("GET", "/missing")).headers["cache-control"] == "no-store"
    assert "cache-control" not in (await ask("GET", "/page")).headers
    own = (await ask("GET", "/own")).headers
    assert own.get_list("cache-control") == ["max-age=5"]
    assert own.get_list("x-frame-options") == ["SAMEORIGIN"]


async def test_a_page_may_load_from_the_store_that_downloads_are_redirected_to() -> None:
    storage = StorageSettings(public_endpoint="cdn.example.com:9000", public_secure=False)
    ask = asking(shapes_settings().model_copy(update={"storage": storage}))
    policy = (await ask("GET", "/page")).headers["content-security-policy"]
    for kind in ("img-src 'self' data: blob:", "media-src 'self' blob:", "connect-src 'self'"):
        assert f"{kind} http://cdn.example.com:9000;" in policy
    ask = asking(shapes_settings().model_copy(update={"storage": storage.model_copy(update={"redirect": "never"})}))
    assert "cdn.example.com" not in (await ask("GET", "/page")).headers["content-security-policy"]


async def test_a_crash_tells_nothing_and_has_all_headers() -> None:
    answer = await asking(with_access(cors_origins=(STUDIO,)))("GET", "/crash", Origin=STUDIO)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text
    assert answer.headers["access-control-allow-origin"] == STUDIO
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/crash", "/torn"])
async def test_a_crash_goes_on_to_the_server_and_is_answered_once(path: str, caplog: pytest.LogCaptureFixture) -> None:
    app, sent = routes(), []
    install_guards(app, shapes_settings(), False)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def receive() -> Any:
        await asyncio.Event().wait()

    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
    with pytest.raises((RuntimeError, ExceptionGroup)):
        await app(scope, receive, send)
    assert sent.count("http.response.start") == 1
    assert sum("RuntimeError" in record.message for record in caplog.records) <= 1


async def test_a_listed_origin_may_do_all() -> None:
    ask = asking(with_access(cors_origins=("HTTPS://Studio.example.com/",)))
    for method, path, status in (("GET", "/json", 200), ("POST", "/json", 200), ("GET", "/missing", 404)):
        answer = await ask(method, path, Origin=STUDIO, Sec_Fetch_Site="cross-site")
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == STUDIO
        assert "origin" in answer.headers["vary"].lower()
        exposed = set(answer.headers["access-control-expose-headers"].split(", "))
        assert exposed >= READ_BY_OPENAI | OUR_OWN
        assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    preflight = await ask(
        "OPTIONS",
        "/json",
        Origin=STUDIO,
        Access_Control_Request_Method="DELETE",
        Access_Control_Request_Headers="authorization,x-stainless-os",
    )
    assert preflight.status_code == 200
    assert "DELETE" in preflight.headers["access-control-allow-methods"]
    assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in preflight.headers


async def test_other_origins_are_told_nothing() -> None:
    ask = asking(with_access(cors_origins=(STUDIO,)))
    assert "access-control-allow-origin" not in (await ask("GET", "/json", Origin="https://evil.example")).headers
    assert_refused(await ask("POST", "/json", Origin="https://evil.example"), "origin_not_allowed")
    preflight = await ask("OPTIONS", "/json", Origin="https://evil.example", Access_Control_Request_Method="POST")
    assert preflight.status_code == 400
    assert preflight.json()["error"]["code"] == "cors_refused"
    assert "access-control-allow-origin" not in preflight.headers
    assert preflight.headers["x-content-type-options"] == "nosniff"


async def test_all_origins() -> None:
    ask = asking(with_access(cors_origins=("*",), mode="open-to-anyone"))
    answer = await ask("POST", "/json", Origin="https://any.example", Sec_Fetch_Site="cross-site")
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:3000"},
        {"Origin": "http://localhost:8000"},
        {"Origin": "http://127.0.0.1.evil.example:8000"},
        {"Origin": "http://[::"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:99999999"},
        {"Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
async def test_pages_of_others_may_not_act(method: str, headers: dict[str, str]) -> None:
    for loopback_only in (True, False):
        ask = asking(loopback_only=loopback_only)
        assert_refused(await ask(method, "/json", **headers), "origin_not_allowed")
        assert (await ask("GET", "/json", **headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://127.0.0.1:8000"},
        {"Origin": "http://127.0.0.1:8000", "Sec_Fetch_Site": "same-origin"},
        {"Origin": "HTTP://LOCALHOST:8000", "Host": "localhost:8000"},
        {"Origin": "http://localhost", "Host": "localhost:80"},
        {"Origin": "http://[::1]:8000", "Host": "[::1]:8000"},
        {"Sec_Fetch_Site": "none"},
    ],
)
async def test_the_own_page_and_programs_may_act(headers: dict[str, str]) -> None:
    assert (await asking(loopback_only=True)("POST", "/json", **headers)).status_code == 200


async def test_a_proxy_that_changes_the_host_does_not_shut_out_the_own_page() -> None:
    own = {"Host": "backend:8000", "Origin": "https://videos.example.com"}
    ask = asking(with_access(mode="open-to-anyone"))
    assert (await ask("POST", "/json", **own, Sec_Fetch_Site="same-origin")).status_code == 200
    assert_refused(await ask("POST", "/json", **own), "origin_not_allowed")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "192.168.1.5:8000", "0.0.0.0:8000", "x@127.0.0.1"]
)
async def test_a_name_made_to_stand_for_this_machine_is_refused(host: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        origin = f"http://{host}"
        answer = await asking(loopback_only=True)(
            method, "/json", Host=host, Origin=origin, Sec_Fetch_Site="same-origin"
        )
        assert_refused(answer, "host_not_allowed")
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert (await asking(loopback_only=False)("GET", "/json", Host=host)).status_code == 200


async def test_keys_are_guard_enough() -> None:
    ask = asking(with_access(mode="keys"), loopback_only=True)
    assert (await ask("POST", "/json", Host="proxy.example", Origin="https://other.example")).status_code == 200


@given(st.text(), st.text())
def test_any_header_has_an_answer(one: str, other: str) -> None:
    assert is_same_host(f"http://{one}", other) in (True, False)
    assert is_same_host(one, other) in (True, False)


def test_origins_are_written_as_browsers_do() -> None:
    given = ["https://A.example/", " http://localhost:3000", "http://[::1]:3000", "*"]
    assert checked_origins(given) == ("https://a.example", "http://localhost:3000", "http://[::1]:3000", "*")
    for wrong in ("a.example", "https://", "https://a.example/path", "null", "ftp://a", "https://*.example", ""):
        with pytest.raises(ConfigError, match="access.cors_origins"):
            checked_origins([wrong])
