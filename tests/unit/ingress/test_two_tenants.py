"""Where keys are needed, one tenant's videos are to another as if they were not there, on every route there is."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
from starlette.routing import Route

from serve_app.ingress.app import create_app
from serve_app.jobs import JobState
from tests.support.http.fakes import FakeServices
from tests.support.http.keyed_services import keyed_services
from tests.support.http.memory_http import fed_client, unfed_client

UNKNOWN = "video_" + "0" * 32
BODY = {"prompt": "a red circle"}
# Each route of the app, by its methods: whether it needs a key, and whether it names a video.
PUBLIC = {
    ("GET", "/"),
    ("GET", "/status"),
    ("GET", "/web/{path:path}"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/openapi.json"),
}
# Named by hand, so that whoever adds a route says here what it shows to whom.
OF_A_VIDEO = {
    ("GET", "/v1/videos/{video_id}"),
    ("DELETE", "/v1/videos/{video_id}"),
    ("POST", "/v1/videos/{video_id}/cancel"),
    ("POST", "/v1/videos/{video_id}/remix"),
    ("POST", "/v1/videos/{video_id}/enhance"),
    ("GET", "/v1/videos/{video_id}/history"),
    ("GET", "/v1/videos/{video_id}/events"),
    ("GET", "/v1/videos/{video_id}/content"),
    ("GET", "/status/{video_id}"),
    ("POST", "/cancel/{video_id}"),
    ("GET", "/download/{video_id}"),
    ("GET", "/v1/videos/generations/{video_id}"),
    ("POST", "/v1/videos/generations/{video_id}/cancel"),
    ("GET", "/v1/videos/generations/{video_id}/download"),
}
LISTINGS = {("GET", "/v1/videos"), ("GET", "/jobs")}
MAKERS = {("POST", "/v1/videos"), ("POST", "/generate"), ("POST", "/v1/videos/generations")}
SYNC = {("POST", "/v1/videos/sync")}
OF_NOBODY = {
    ("GET", "/v1/models"),
    ("GET", "/v1/videos/models"),
    ("POST", "/v1/videos/edits"),
    ("POST", "/v1/videos/extensions"),
    ("POST", "/v1/videos/characters"),
    ("GET", "/v1/videos/characters/{character_id}"),
}
STATUS = {("GET", "/v1/status")}
# It tells of all tenants, and only some may read it.
OF_ALL = {("GET", "/metrics")}
# Whatever is read by GET answers HEAD, which shows no more than GET does.
PUBLIC |= {("HEAD", path) for method, path in PUBLIC if method == "GET"}
OF_A_VIDEO |= {("HEAD", path) for method, path in OF_A_VIDEO if method == "GET"}
OF_ALL |= {("HEAD", path) for _, path in OF_ALL}
OF_NOBODY |= {("HEAD", path) for method, path in LISTINGS | OF_NOBODY | STATUS if method == "GET"}
ALL = PUBLIC | OF_A_VIDEO | LISTINGS | MAKERS | SYNC | OF_NOBODY | STATUS | OF_ALL
STATES = ("queued", "sampling", "completed", "failed", "cancelled", "deleted")
FILES = ("video", "thumbnail", "spritesheet", "preview")


@dataclass
class World:
    """Videos of acme in every state, and the headers of acme and of globex, who has none."""

    services: FakeServices
    client: httpx.AsyncClient
    acme: dict[str, str]
    globex: dict[str, str]
    ids: dict[str, str]

    @property
    def of_acme(self) -> object:
        """All that can be changed of acme's videos."""
        registry = self.services.memory
        moves = {video_id: list(moves) for video_id, moves in registry.moves.items()}
        return (
            dict(registry.jobs),
            moves,
            dict(registry.deleted),
            dict(registry.keys),
            dict(self.services.store.objects),
        )


@pytest.fixture(params=["feed", "registry"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Reads are answered from the feed, or by the registry where the feed is interrupted."""
    services, headers = keyed_services("acme", "globex")
    async with fed_client(services) if request.param == "feed" else unfed_client(services) as client:
        if request.param == "registry":
            # The feed alone knows the keys.
            services.feed.known_access = services.memory.feed.access
        ids = await acmes_videos(services, client, headers["acme"])
        yield World(services, client, headers["acme"], headers["globex"], ids)


async def acmes_videos(services: FakeServices, client: httpx.AsyncClient, acme: dict[str, str]) -> dict[str, str]:
    registry, ids = services.memory, {}
    for name in STATES:
        headers = acme | {"Idempotency-Key": f"order {name}"}
        ids[name] = str((await client.post("/v1/videos", json=BODY, headers=headers)).json()["id"])
    registry.move(ids["sampling"], JobState.SAMPLING, step=4, preview_step=4)
    registry.previews[ids["sampling"]] = b"webp so far"
    registry.complete(ids["completed"])
    for variant in ("video", "thumbnail", "spritesheet"):
        services.add_file(ids["completed"], variant, variant.encode() * 100)
    registry.move(ids["failed"], JobState.FAILED)
    await registry.cancel(ids["cancelled"])
    await client.delete(f"/v1/videos/{ids['deleted']}", headers=acme)
    await registry.feed.flush()
    return ids


def routes() -> set[tuple[str, str]]:
    app = create_app(keyed_services()[0])
    assert all(isinstance(route, Route) for route in app.routes)
    return {(m, route.path) for route in app.routes if isinstance(route, Route) for m in route.methods or ()}


def test_every_route_is_here() -> None:
    assert routes() == ALL
    assert {route for route in routes() if "{video_id}" in route[1]} == OF_A_VIDEO


def ways(method: str, path: str, headers: dict[str, str]) -> list[dict[str, object]]:
    """All that may be asked of a route, as arguments of a request."""
    bare: list[dict[str, object]] = [{"headers": headers}]
    if path.startswith("/download") or path.endswith("/content"):
        more: tuple[dict[str, str], ...] = (
            {},
            {"Range": "bytes=0-3"},
            {"Range": "bytes=9999-"},
            {"If-None-Match": "*"},
        )
        return [
            {"headers": headers | extra, "params": {"variant": variant, "redirect": redirect}}
            for variant in FILES
            for redirect in ("true", "false")
            for extra in more
        ]
    if method == "POST" and path.endswith(("/remix", "/enhance")):
        prompt = BODY if path.endswith("/remix") else {}
        return [{"headers": headers, "json": prompt | extra} for extra in ({}, {"priority": "batch"})]
    if path.endswith("/events"):
        return bare + [{"headers": headers | {"Last-Event-ID": event}} for event in ("1.0", "0.0", "9.9")]
    if method == "GET" and not path.endswith("/history"):
        return bare + [{"headers": headers, "params": {"wait": "0"}}, {"headers": headers, "params": {"wait": "30"}}]
    return bare


async def told(client: httpx.AsyncClient, method: str, path: str, video_id: str, way: dict[str, object]) -> object:
    answer = await client.request(method, path.replace("{video_id}", video_id), **way)  # type: ignore[arg-type]
    headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
    return answer.status_code, headers, answer.text.replace(video_id, "ID")


@pytest.mark.parametrize(("method", "path"), sorted(OF_A_VIDEO))
async def test_anothers_video_is_as_none(world: World, method: str, path: str) -> None:
    before = world.of_acme
    for way in ways(method, path, world.globex):
        nothing = await told(world.client, method, path, UNKNOWN, way)
        assert nothing[0] == 404  # type: ignore[index]
        for state, video_id in world.ids.items():
            assert await told(world.client, method, path, video_id, way) == nothing, (state, way)
    assert world.of_acme == before


@pytest.mark.parametrize(("method", "path"), sorted(OF_A_VIDEO))
async def test_its_owner_gets_it(world: World, method: str, path: str) -> None:
    """The refusals above are no accident: the same requests by acme are answered."""
    state = {"cancel": "queued", "remix": "queued", "enhance": "queued"}.get(path.split("/")[-1], "completed")
    if "cancel" in path:
        state = "queued"
    way = ways(method, path, world.acme)[0]
    answer = await world.client.request(method, path.replace("{video_id}", world.ids[state]), **way)  # type: ignore[arg-type]
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/v1/videos/{}/content", "/download/{}"])
async def test_an_etag_of_another_tells_nothing(world: World, path: str) -> None:
    url = path.format(world.ids["completed"])
    etag = (await world.client.head(url, headers=world.acme)).headers["etag"]
    assert (await world.client.get(url, headers=world.acme | {"If-None-Match": etag})).status_code == 304
    for headers in ({"If-None-Match": etag}, {"If-Range": etag, "Range": "bytes=0-1"}):
        assert (await world.client.get(url, headers=world.globex | headers)).status_code == 404


@pytest.mark.parametrize(("method", "path"), sorted(LISTINGS))
async def test_listings_hold_none_of_another(world: World, method: str, path: str) -> None:
    mine = (await world.client.post("/v1/videos", json=BODY, headers=world.globex)).json()["id"]
    filters = [{}, {"tenant": "acme"}, {"tenant": "globex"}, {"order": "asc"}, {"limit": "1"}, {"created_after": "0"}]
    for params in filters:
        page = (await world.client.request(method, path, params=params, headers=world.globex)).json()
        assert ([video["id"] for video in page["data"]], page["has_more"]) == ([mine], False), params
    for state in STATES[:-1]:
        page = (await world.client.request(method, path, params={"state": state}, headers=world.globex)).json()
        assert [video["id"] for video in page["data"]] == ([mine] if state == "queued" else [])
    theirs = (await world.client.request(method, path, headers=world.acme)).json()["data"]
    assert {video["id"] for video in theirs} == {world.ids[state] for state in STATES[:-1]}


async def test_the_status_tells_of_no_other_tenant(world: World) -> None:
    world.services.memory.announce_all()
    url = "/v1/status"
    assert (await world.client.get(url)).status_code == 401
    acme = (await world.client.get(url, headers=world.acme)).json()
    assert [one["id"] for one in acme["running"]] == [world.ids["sampling"]]
    assert [(one["tenant"], one["count"]) for one in acme["waiting"]] == [("acme", 1)]
    globex = await world.client.get(url, headers=world.globex)
    assert (globex.json()["running"], globex.json()["waiting"]) == ([], [])
    assert "acme" not in globex.text and "video_" not in globex.text
    assert globex.json()["replicas"] == acme["replicas"], "how busy they are is no secret"


@pytest.mark.parametrize(("method", "path"), sorted(LISTINGS))
async def test_a_cursor_of_another_is_none(world: World, method: str, path: str) -> None:
    def way(after: str) -> dict[str, object]:
        return {"params": {"after": after}, "headers": world.globex}

    nothing = await told(world.client, method, path, UNKNOWN, way(UNKNOWN))
    assert nothing[0] == 400  # type: ignore[index]
    for video_id in world.ids.values():
        assert await told(world.client, method, path, video_id, way(video_id)) == nothing


@pytest.mark.parametrize(("method", "path"), sorted(MAKERS))
async def test_idempotency_keys_are_each_tenants_own(world: World, method: str, path: str) -> None:
    body = {"text": "a blue circle"} if path == "/generate" else BODY
    headers = world.globex | {"Idempotency-Key": "order queued"}
    made = await world.client.request(method, path, json=body, headers=headers)
    assert made.status_code in (200, 202)
    assert "idempotent-replayed" not in made.headers
    assert made.json()["id"] not in world.ids.values()
    assert made.json()["tenant"] == "globex"


@pytest.mark.parametrize(("method", "path"), sorted(ALL - PUBLIC))
async def test_a_request_in_anothers_name_is_401(world: World, method: str, path: str) -> None:
    before = world.of_acme
    headers = world.globex | {"OpenAI-Organization": "acme"}
    url = path.replace("{video_id}", world.ids["completed"]).replace("{character_id}", "x")
    answer = await world.client.request(method, url, headers=headers)
    assert answer.status_code == 401
    assert method == "HEAD" or answer.json()["error"]["code"] == "mismatched_organization"
    assert world.of_acme == before


@pytest.mark.parametrize(("method", "path"), sorted(ALL - PUBLIC))
async def test_without_a_good_key_it_is_401(world: World, method: str, path: str) -> None:
    before = world.of_acme
    for authorization in (None, "Bearer ms-" + "A" * 43, "Basic YTpi", "Bearer", "Bearer "):
        headers = {"If-None-Match": "*"} if authorization is None else {"Authorization": authorization}
        answers = set()
        for video_id in (*world.ids.values(), UNKNOWN):
            url = path.replace("{video_id}", video_id).replace("{character_id}", "x")
            answer = await world.client.request(method, url, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), authorization
            answers.add(answer.text)
        assert len(answers) == 1, authorization
    assert world.of_acme == before


@pytest.mark.parametrize(("method", "path"), sorted(PUBLIC))
async def test_the_rest_needs_no_key_and_tells_of_no_video(world: World, method: str, path: str) -> None:
    world.services.memory.announce_all()
    answer = await world.client.request(method, path.replace("{path:path}", "app.css"))
    assert answer.status_code in (200, 404, 405)
    assert answer.status_code == 200 or path.startswith("/web/") or (method, path) == ("HEAD", "/openapi.json")
    assert all(video_id not in answer.text for video_id in world.ids.values())


async def test_a_remix_of_ones_own_is_not_anothers(world: World) -> None:
    url = f"/v1/videos/{world.ids['completed']}/remix"
    remixed = (await world.client.post(url, json=BODY, headers=world.acme)).json()
    assert (remixed["tenant"], remixed["remixed_from_video_id"]) == ("acme", world.ids["completed"])
    assert (await world.client.get(f"/v1/videos/{remixed['id']}", headers=world.globex)).status_code == 404


async def test_without_keys_everybody_sees_everything(client: httpx.AsyncClient) -> None:
    made = (await client.post("/v1/videos", json=BODY, headers={"OpenAI-Organization": "acme"})).json()["id"]
    headers = {"OpenAI-Organization": "globex"}
    assert (await client.get(f"/v1/videos/{made}", headers=headers)).json()["tenant"] == "acme"
    assert [video["id"] for video in (await client.get("/jobs", headers=headers)).json()["data"]] == [made]
