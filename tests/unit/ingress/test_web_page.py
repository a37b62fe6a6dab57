import gzip
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from serve_app.ingress.error_answers import install_error_handlers
from serve_app.ingress.guards import install_guards
from serve_app.ingress.routes.web_page import CONTENT_TYPES, FOLDER, WebPage, examples_of
from tests.support.http.fakes import shapes_settings

SCRIPTS = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.js"))
PAGES = {"index.html": "app.js", "status.html": "status/app.js"}
OWN_SCRIPTS = [name for name in SCRIPTS if not name.startswith("vendor/")]


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    settings = shapes_settings()
    app = FastAPI(docs_url=None, redoc_url=None, redirect_slashes=False, routes=WebPage(settings.model).routes)
    install_error_handlers(app)
    install_guards(app, settings, loopback_only=False)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def imports_of(name: str) -> set[str]:
    """The modules that one imports, as paths below the page's folder."""
    code = (FOLDER / name).read_text(encoding="utf-8")
    targets = re.findall(r"(?:\bfrom|^import)\s*[\"'](\.[^\"'\s]+)[\"']", code, re.MULTILINE)
    return {(FOLDER / name).parent.joinpath(t).resolve().relative_to(FOLDER.resolve()).as_posix() for t in targets}


def loaded_from(name: str) -> set[str]:
    found: set[str] = set()
    todo = [name]
    while todo:
        one = todo.pop()
        if one not in found:
            found.add(one)
            todo += imports_of(one)
    return found


@pytest.mark.parametrize(("path", "name"), [("/", "index.html"), ("/status", "status.html")])
async def test_the_pages_are_at_their_paths(client: httpx.AsyncClient, path: str, name: str) -> None:
    answer = await client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.content == (FOLDER / name).read_bytes()


@pytest.mark.parametrize("suffix", sorted(CONTENT_TYPES))
async def test_each_kind_of_file_has_its_type(client: httpx.AsyncClient, suffix: str) -> None:
    path = next(path for path in sorted(FOLDER.rglob(f"*{suffix}")))
    answer = await client.get(f"/web/{path.relative_to(FOLDER).as_posix()}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, CONTENT_TYPES[suffix])
    assert answer.content == path.read_bytes()


@pytest.mark.parametrize("path", ["/", "/status", "/web/app.js", "/web/vendor/figtree-latin-wght-normal.woff2"])
async def test_a_browser_that_has_the_file_gets_it_no_second_time(client: httpx.AsyncClient, path: str) -> None:
    first = await client.get(path)
    assert first.headers["cache-control"] == "no-cache"
    for known in (first.headers["etag"], f'"other", W/{first.headers["etag"]}'):
        again = await client.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    other = await client.get(path, headers={"If-None-Match": '"other"'})
    assert other.status_code == 200


async def test_what_is_zipped_has_a_tag_of_its_own(client: httpx.AsyncClient) -> None:
    plain = await client.get("/web/app.js", headers={"Accept-Encoding": "identity"})
    async with client.stream("GET", "/web/app.js", headers={"Accept-Encoding": "br, gzip;q=0.5"}) as zipped:
        raw = b"".join([chunk async for chunk in zipped.aiter_raw()])
    assert (zipped.headers["content-encoding"], gzip.decompress(raw)) == ("gzip", plain.content)
    assert zipped.headers["etag"] != plain.headers["etag"]
    assert plain.headers["vary"] == zipped.headers["vary"] == "Accept-Encoding"
    refused = await client.get("/web/app.js", headers={"Accept-Encoding": "gzip; q=0"})
    assert "content-encoding" not in refused.headers


@pytest.mark.parametrize("path", ["/", "/status", "/web/app.js"])
async def test_head_tells_what_get_would(client: httpx.AsyncClient, path: str) -> None:
    head, get = await client.head(path), await client.get(path)
    assert (head.status_code, head.content, head.headers) == (200, b"", get.headers)


@pytest.mark.parametrize(
    "path",
    [
        "/web/",
        "/web/css",
        "/web/none.js",
        "/web/../web_page.py",
        "/web/css/../app.js",
        "/web/./app.js",
        "/web/..%2fweb_page.py",
        "/web//app.js",
        "/web/app.js%00",
        "/web/..%5cweb_page.py",
        "/web//etc/passwd",
    ],
)
async def test_only_files_of_the_page_are_there(client: httpx.AsyncClient, path: str) -> None:
    # A dot that is written as it is, httpx would resolve itself.
    answer = await client.get(path.replace("/.", "/%2e").replace("%2e.", "%2e%2e"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")


async def test_other_methods_are_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/web/app.js")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


async def test_the_policy_lets_nothing_in_from_elsewhere(client: httpx.AsyncClient) -> None:
    for path in ("/", "/status", "/web/app.js", "/web/icon.svg"):
        headers = (await client.get(path)).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert {policy[kind] for kind in ("script-src", "style-src", "connect-src", "font-src")} == {"'self'"}
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


async def test_the_examples_suit_the_model(client: httpx.AsyncClient) -> None:
    shown = (await client.get("/web/examples.json")).json()
    assert "a red circle moving right" in shown["prompts"]
    model = shapes_settings().model.model_copy(update={"source": "genmo/mochi-1-preview"})
    assert examples_of(model) == "examples/general.json"
    other = json.loads((FOLDER / examples_of(model)).read_text())
    assert other["prompts"] and not set(other["prompts"]) & set(shown["prompts"])


@pytest.mark.parametrize("name", [*PAGES, *OWN_SCRIPTS, *sorted(p.name for p in (FOLDER / "css").iterdir())])
def test_nothing_is_asked_of_another_host(name: str) -> None:
    path = FOLDER / ("css" if name.endswith(".css") else "") / name
    found = re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", path.read_text(encoding="utf-8"))
    assert found == []


@pytest.mark.parametrize(("page", "entry"), PAGES.items())
def test_each_page_loads_exactly_the_modules_that_it_uses(page: str, entry: str) -> None:
    text = (FOLDER / page).read_text(encoding="utf-8")
    preloaded = re.findall(r'rel="modulepreload" href="web/([^"]+)"', text)
    assert sorted(preloaded) == sorted(loaded_from(entry) - {entry})
    assert f'src="web/{entry}"' in text


def test_every_module_is_used() -> None:
    used = set().union(*map(loaded_from, PAGES.values()))
    assert set(SCRIPTS) - used == {"theme-early.js", "types.js"}


def test_every_link_of_the_pages_is_there() -> None:
    for page in PAGES:
        for link in re.findall(r'(?:href|src)="web/([^"]+)"', (FOLDER / page).read_text(encoding="utf-8")):
            assert (FOLDER / link).is_file(), link
    for sheet in (FOLDER / "css").iterdir():
        for link in re.findall(r'url\("([^"]+)"\)', sheet.read_text(encoding="utf-8")):
            assert (sheet.parent / link).is_file(), link


def test_every_vendored_file_is_listed_with_its_licence() -> None:
    vendor = FOLDER / "vendor"
    readme = (vendor / "README.md").read_text(encoding="utf-8")
    for path in vendor.iterdir():
        listed = path.name in readme or f"{path.name.split('-latin')[0]}-*" in readme
        assert listed or path == Path(vendor / "README.md"), path.name
