"""The download of files in the OpenAPI document: the headers that go with each answer.

The stream of events in the OpenAPI document.
"""

from typing import Any

from fastapi import Response
from pydantic import TypeAdapter

from serve_app.openapi.errors import FILE_ERRORS, error_responses
from serve_app.openapi.schemas import VideoEvent

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
    refused = error_responses(*FILE_ERRORS)
    if not get:
        for of_get in (206, 307):
            del sent[of_get]
        del refused[416]
    conditions = [condition for condition in _CONDITIONS if get or condition["name"] == "If-None-Match"]
    return {"responses": {**sent, **refused}, "openapi_extra": {"parameters": conditions}}


def _with_headers(response: dict[str, Any], named: dict[str, str]) -> dict[str, Any]:
    headers = {name: {"description": text, "schema": {"type": "string"}} for name, text in named.items()}
    return {**response, "headers": headers}


CONTENT_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {
        "description": text,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("video/mp4", "image/webp")},
    }
    for status, text in ((200, "The whole file"), (206, "The bytes that Range asked for"))
}


CONTENT_RESPONSES[307] = {
    "description": "The store has it: Location is a signed link for GET, good for a while (storage.public_endpoint)",
    "headers": {"Location": {"schema": {"type": "string", "format": "uri"}}},
}


CONTENT_RESPONSES[304] = {"description": "The client has this file: If-None-Match names its ETag"}


EVENTS = "VideoEvent"

_STREAM = """event: state
data: {"type":"state","video_id":"video_018f6e2a7c1d0daf29c941694ac1871b","number":2,"at":1760000000.15,\
"state":"encoding","stage":"encoding","attempt":1,"note":"claimed"}
id: 2.0

: ping

"""

# OpenAPI 3.1 has no word for the items of a stream (3.2 has, as itemSchema): this is each of them, as clients read it.
_EVENT = {
    "type": "object",
    "description": "one event of the stream",
    "properties": {
        "event": {"type": "string", "enum": ["state", "progress", "preview", "done", "deleted"]},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": f"#/components/schemas/{EVENTS}"},
        },
        "id": {"type": "string", "pattern": "^[0-9]{1,9}[.][0-9]{1,9}$"},
    },
    "required": ["event", "data", "id"],
}

EVENT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events `state`, `progress`, `preview`, and in the end `done` or `deleted`; the `data` of each "
        f"is one line of JSON, a `{EVENTS}`, whose `type` is the event's name; its `id` goes into Last-Event-ID",
        "content": {
            "text/event-stream": {
                "schema": _EVENT,
                "example": _STREAM,
            }
        },
    }
}
# Not EventSourceResponse: with that one FastAPI runs the handler only when its answer has begun, too late for a 404.
EVENT_DOCS: dict[str, Any] = {"response_class": Response}


def event_schemas() -> dict[str, Any]:
    """The events and what they are made of, for the components of the document."""
    schema = TypeAdapter(VideoEvent).json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
    kinds = schema.pop("$defs")
    return {**kinds, EVENTS: {**schema, "discriminator": {"propertyName": "type"}}}
