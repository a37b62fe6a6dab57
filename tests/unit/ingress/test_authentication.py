from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Response
from fastapi.responses import StreamingResponse

from serve_app.access.tenants import AccessTable, ApiKey, Caller, Tenant, key_hash, key_hint, new_key
from serve_app.ingress.authentication import RateLimitHeaders, authenticate, install_authentication
from serve_app.ingress.error_answers import install_error_handlers
from serve_app.jobs import Tier

LIMITED, FREE, REVOKED, EXPIRED = (new_key() for _ in range(4))
LIMIT = 3
RATE_HEADERS = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")


def tenant(name: str, tier: Tier = Tier.STANDARD, requests_per_minute: int | None = None) -> Tenant:
    return Tenant(name, tier, "whsec_x", 0.0, requests_per_minute=requests_per_minute)


def kept(key: str, of: str, **ends: float) -> ApiKey:
    return ApiKey(f"key_{of}", of, key_hash(key), key_hint(key), "", 0.0, **ends)


@dataclass
class MemoryAccess:
    """What a replica knows, changed by the test."""

    keys_needed: bool = True
    tenants: list[Tenant] = field(default_factory=lambda: [tenant("acme", requests_per_minute=LIMIT), tenant("other")])
    asked: int = 0

    async def table_for(self, hashed: str) -> AccessTable:
        self.asked += 1
        keys = [
            kept(LIMITED, "acme"),
            kept(FREE, "other"),
            kept(REVOKED, "other", revoked_at=1.0),
            kept(EXPIRED, "other", expires_at=1.0),
        ]
        return AccessTable(1, {one.name: one for one in self.tenants}, {key.hash: key for key in keys})


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


Authenticated = Annotated[Caller, Depends(authenticate)]


async def whoami(caller: Authenticated) -> dict[str, Any]:
    key_tenant = None if caller.key_tenant is None else caller.key_tenant.name
    return {"tenant": caller.tenant, "key": caller.idempotency_key, "key_tenant": key_tenant}


async def with_number(caller: Authenticated, number: int) -> int:
    return number


async def plain_response(caller: Authenticated) -> Response:
    return Response("plain")


async def stream(caller: Authenticated) -> StreamingResponse:
    async def parts() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    return StreamingResponse(parts())


async def broken(caller: Authenticated) -> None:
    raise ZeroDivisionError


async def in_the_open() -> str:
    return "hello"


ROUTES = (whoami, with_number, plain_response, stream, broken, in_the_open)


@pytest.fixture
def access() -> MemoryAccess:
    return MemoryAccess()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def app(access: MemoryAccess, clock: Clock) -> FastAPI:
    app = FastAPI()
    install_error_handlers(app)
    install_authentication(app, access, clock)
    for route in ROUTES:
        app.add_api_route(f"/{route.__name__}", route)
    return app


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://test")


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


def bearer(key: str, **headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", **{name.replace("_", "-"): value for name, value in headers.items()}}


def error(answer: httpx.Response) -> tuple[int, str, str | None]:
    told = answer.json()["error"]
    return answer.status_code, told["code"], told["param"]


def remaining(answer: httpx.Response) -> str:
    told = answer.headers["x-ratelimit-remaining-requests"]
    assert isinstance(told, str)
    return told


async def test_a_key_is_its_tenant(client: httpx.AsyncClient) -> None:
    answer = await client.get("/whoami", headers=bearer(FREE, Idempotency_Key="k"))
    assert answer.json() == {"tenant": "other", "key": "k", "key_tenant": "other"}
    assert (await client.get("/whoami", headers=bearer(FREE, OpenAI_Organization="other"))).status_code == 200
    assert (await client.get("/whoami", headers={"authorization": f"bearer {FREE}"})).status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"Authorization": ""}, "invalid_api_key"),
        ({"Authorization": "Bearer"}, "invalid_api_key"),
        ({"Authorization": "Basic dTpw"}, "invalid_api_key"),
        ({"Authorization": FREE}, "invalid_api_key"),
        (bearer("sk-proj-123"), "invalid_api_key"),
        (bearer(FREE[:-1]), "invalid_api_key"),
        (bearer(FREE + " " + FREE), "invalid_api_key"),
        (bearer(new_key()), "invalid_api_key"),
        (bearer("\xff\xfe"), "invalid_api_key"),
        (bearer(REVOKED), "revoked_api_key"),
        (bearer(EXPIRED), "expired_api_key"),
        (bearer(FREE, OpenAI_Organization="acme"), "mismatched_organization"),
    ],
)
async def test_who_has_no_good_key_is_refused(client: httpx.AsyncClient, headers: dict[str, str], code: str) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    answer = await client.get("/whoami", headers=raw)
    assert error(answer) == (401, code, None)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert FREE[3:-1] not in answer.text
    assert not any(name in answer.headers for name in RATE_HEADERS)


async def test_a_stranger_learns_nothing_of_the_rest_of_the_request(client: httpx.AsyncClient) -> None:
    wrong = {"OpenAI-Organization": "not a name", "Idempotency-Key": ""}
    assert error(await client.get("/with_number?number=x", headers=wrong))[:2] == (401, "missing_api_key")
    assert error(await client.get("/whoami", headers=bearer(FREE) | wrong))[0] == 400


async def test_a_route_without_the_dependency_needs_no_key(client: httpx.AsyncClient, access: MemoryAccess) -> None:
    assert (await client.get("/in_the_open")).json() == "hello"
    assert (await client.get("/openapi.json")).status_code == 200
    assert access.asked == 0


async def test_in_the_open_the_header_is_ignored(client: httpx.AsyncClient, access: MemoryAccess) -> None:
    access.keys_needed = False
    for headers in ({}, bearer("anything"), bearer(LIMITED), {"Authorization": "?"}):
        answer = await client.get("/whoami", headers=headers)
        assert answer.json() == {"tenant": "default", "key": None, "key_tenant": None}
        assert not any(name in answer.headers for name in RATE_HEADERS)
    named = await client.get("/whoami", headers=bearer("anything", OpenAI_Organization="mine"))
    assert named.json()["tenant"] == "mine"
    assert access.asked == 0


async def test_a_removed_tenant_is_refused_at_once(client: httpx.AsyncClient, access: MemoryAccess) -> None:
    assert (await client.get("/whoami", headers=bearer(FREE))).status_code == 200
    access.tenants.clear()
    assert error(await client.get("/whoami", headers=bearer(FREE)))[:2] == (401, "invalid_api_key")


async def test_the_rate_is_told_and_held(client: httpx.AsyncClient, clock: Clock) -> None:
    for left, reset in ((2, "20s"), (1, "40s"), (0, "1m0s")):
        answer = await client.get("/whoami", headers=bearer(LIMITED))
        assert answer.status_code == 200
        assert [answer.headers[name] for name in RATE_HEADERS] == [str(LIMIT), str(left), reset]
    refused = await client.get("/whoami", headers=bearer(LIMITED))
    assert error(refused) == (429, "rate_limit_exceeded", None)
    assert refused.headers["retry-after"] == "20" and remaining(refused) == "0"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert (await client.get("/whoami", headers=bearer(FREE))).status_code == 200
    clock.now += 20
    assert (await client.get("/whoami", headers=bearer(LIMITED))).status_code == 200
    assert (await client.get("/whoami", headers=bearer(LIMITED))).status_code == 429


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/whoami", 200),
        ("/plain_response", 200),
        ("/stream", 200),
        ("/with_number?number=x", 400),
    ],
)
async def test_every_answer_to_a_limited_tenant_tells_its_rate(
    client: httpx.AsyncClient, path: str, status: int
) -> None:
    answer = await client.get(path, headers=bearer(LIMITED))
    assert answer.status_code == status
    assert remaining(answer) == "2"
    assert len(answer.headers.get_list("x-ratelimit-remaining-requests")) == 1


async def test_around_the_app_it_tells_the_rate_at_a_500_too(app: FastAPI) -> None:
    async with client_of(RateLimitHeaders(app)) as client:
        answer = await client.get("/broken", headers=bearer(LIMITED))
        assert (answer.status_code, remaining(answer)) == (500, "2")
        answer = await client.get("/whoami", headers=bearer(LIMITED))
        assert answer.headers.get_list("x-ratelimit-remaining-requests") == ["1"]


async def test_a_wrong_header_counts_too(client: httpx.AsyncClient) -> None:
    answer = await client.get("/whoami", headers=bearer(LIMITED, OpenAI_Organization="not a name"))
    assert (answer.status_code, remaining(answer)) == (400, "2")
    answer = await client.get("/whoami", headers=bearer(LIMITED, OpenAI_Organization="other"))
    assert (answer.status_code, remaining(answer)) == (401, "1")


async def test_a_tenant_without_a_limit_is_told_none(client: httpx.AsyncClient) -> None:
    for _ in range(50):
        answer = await client.get("/whoami", headers=bearer(FREE))
        assert answer.status_code == 200 and not any(name in answer.headers for name in RATE_HEADERS)


async def test_a_new_limit_holds_at_once(client: httpx.AsyncClient, access: MemoryAccess) -> None:
    access.tenants[:] = [tenant("acme", requests_per_minute=1)]
    assert remaining(await client.get("/whoami", headers=bearer(LIMITED))) == "0"
    access.tenants[:] = [tenant("acme")]
    assert (await client.get("/whoami", headers=bearer(LIMITED))).status_code == 200


async def test_the_openapi_document_knows_the_keys(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    schemes = document["components"]["securitySchemes"]
    assert {name: (one["type"], one["scheme"]) for name, one in schemes.items()} == {"ApiKey": ("http", "bearer")}
    assert document["paths"]["/whoami"]["get"]["security"] == [{"ApiKey": []}]
    assert "security" not in document["paths"]["/in_the_open"]["get"]
    headers = {one["name"] for one in document["paths"]["/whoami"]["get"]["parameters"]}
    assert headers == {"OpenAI-Organization", "Idempotency-Key"}


async def test_what_is_not_http_passes() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    await RateLimitHeaders(app)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert seen == ["lifespan"]
