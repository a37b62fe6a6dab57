"""The download of files in the OpenAPI document: the headers that go with each answer."""

from typing import Any

from serve_app.ingress.content import CONTENT_RESPONSES
from serve_app.openapi.errors import FILES, errors

_OF_FILES = {
    "ETag": "of the file, which never changes; for If-None-Match and If-Range",
    "Last-Modified": "for If-Range",
    "Accept-Ranges": "`bytes`",
    "Cache-Control": "a private cache may keep a file for ever, and a preview not at all",
}
_NAMED = {"Content-Disposition": "the file's name"}
_PART = {"Content-Range": "`bytes FIRST-LAST/SIZE`"}
_LINK = {"Location": "the signed link, a key to the video until it expires"}

# The handler reads them itself.
_CONDITIONS: list[dict[str, Any]] = [
    {"name": name, "in": "header", "required": False, "description": description, "schema": {"type": "string"}}
    for name, description in (
        ("Range", "one range in bytes; several, or what is none, give the whole file"),
        ("If-Range", "the ETag or Last-Modified that Range belongs to; of another file, the whole one is sent"),
        ("If-None-Match", "ETags of what the client has: 304 if the file is among them"),
    )
]


def content_docs(get: bool) -> dict[str, Any]:
    """The answers of GET or HEAD for a file."""
    headers = {200: _OF_FILES | _NAMED, 206: _OF_FILES | _NAMED | _PART, 304: _OF_FILES, 307: _LINK}
    sent = {status: _with_headers(CONTENT_RESPONSES[status], headers[status]) for status in (200, 206, 304, 307)}
    refused = errors(*FILES)
    if not get:
        for of_get in (206, 307):
            del sent[of_get]
        del refused[416]
    conditions = [condition for condition in _CONDITIONS if get or condition["name"] == "If-None-Match"]
    return {"responses": {**sent, **refused}, "openapi_extra": {"parameters": conditions}}


def _with_headers(response: dict[str, Any], named: dict[str, str]) -> dict[str, Any]:
    headers = {name: {"description": text, "schema": {"type": "string"}} for name, text in named.items()}
    return {**response, "headers": headers}
