"""Answers that are no JSON in the OpenAPI document: the files of a video, and its stream of events."""

from typing import Any

from fastapi import Response
from pydantic import TypeAdapter

from serve_app.openapi.errors import FILE_ERRORS, Responses, error_responses
from serve_app.openapi.schemas import VideoEvent

_TRACE = "the W3C trace in which the video is made; its id is the video's own unless the request sent a traceparent"
TRACE_DOCS = {"description": _TRACE, "schema": {"type": "string"}}
_FILE_HEADERS = {
    "ETag": "of the file, which never changes; for If-None-Match and If-Range",
    "Last-Modified": "for If-Range",
    "Accept-Ranges": "`bytes`",
    "Cache-Control": "a private cache may keep a file for ever, and a preview not at all",
    "traceresponse": _TRACE,
}
_NAMED_FILE_HEADERS = _FILE_HEADERS | {"Content-Disposition": "the file's name"}
_PART_HEADERS = _NAMED_FILE_HEADERS | {"Content-Range": "`bytes FIRST-LAST/SIZE`"}
_LINK_HEADERS = {
    "Location": "the signed link, a key to the video until it expires",
    "Preference-Applied": "`redirect` if the request's Prefer asked for the link",
}

_BYTES = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("video/mp4", "image/webp")}

# Request headers, which the handler reads itself.
_RANGE = "one range in bytes; several, or what is none, give the whole file"
_IF_RANGE = "the ETag or Last-Modified that Range belongs to; of another file, the whole one is sent"
_PREFER = "`redirect` asks for a signed link where the store can be reached, as `redirect=true` does (RFC 7240)"
_IF_NONE_MATCH = "ETags of what the client has: 304 if the file is among them"


def content_docs(get: bool) -> dict[str, Any]:
    """How FastAPI is to describe a route to a file.

    Args:
        get: whether by GET; else by HEAD, which takes no range and is not redirected.
    """
    responses: Responses = {200: _response("The whole file", _NAMED_FILE_HEADERS, _BYTES)}
    parameters = [_request_header("If-None-Match", _IF_NONE_MATCH)]
    if get:
        responses[206] = _response("The bytes that Range asked for", _PART_HEADERS, _BYTES)
        named = {"Range": _RANGE, "If-Range": _IF_RANGE, "Prefer": _PREFER}
        parameters = [*(_request_header(name, text) for name, text in named.items()), *parameters]
    responses[304] = _response("The client has this file: If-None-Match names its ETag", _FILE_HEADERS)
    if get:
        where = (
            "asked for by `redirect` or Prefer, or storage.redirect is always; Location is good for a while, for GET"
        )
        responses[307] = _response(f"The store has it: {where}", _LINK_HEADERS)
    responses |= error_responses(*FILE_ERRORS)
    if not get:
        del responses[416]
    return {"responses": responses, "openapi_extra": {"parameters": parameters}}


def sync_response(headers: dict[str, Any]) -> dict[str, Any]:
    """The mp4 of a video that was made for this request.

    Args:
        headers: what answers to a request for a video have.
    """
    own = {
        "x-video-id": "of the video, as for all other routes",
        "x-model": "that made it",
        "x-inference-time-s": "seconds of devices that it took",
        "x-stage-durations": "wall time in seconds by part of the work, as JSON",
    }
    response = _response("The mp4", _NAMED_FILE_HEADERS | own, {"video/mp4": _BYTES["video/mp4"]})
    return response | {"headers": response["headers"] | headers}


def _response(
    description: str, headers: dict[str, str], content: dict[str, dict[str, Any]] | None = None
) -> dict[str, Any]:
    described = {name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()}
    response: dict[str, Any] = {"description": description}
    if content:
        response["content"] = content
    return response | {"headers": described}


def _request_header(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": {"type": "string"}}


_STREAM = """event: state
data: {"type":"state","video_id":"video_018f6e2a7c1d0daf29c941694ac1871b","number":2,"at":1760000000.15,\
"state":"encoding","stage":"encoding","attempt":1,"note":"claimed"}
id: 2.0

: ping

"""

# One event as clients read it. OpenAPI 3.1 cannot describe the items of a stream (3.2 can, by itemSchema).
_EVENT = {
    "type": "object",
    "description": "one event of the stream",
    "properties": {
        "event": {"type": "string", "enum": ["state", "progress", "preview", "done", "deleted"]},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/VideoEvent"},
        },
        "id": {"type": "string", "pattern": "^[0-9]{1,9}[.][0-9]{1,9}$"},
    },
    "required": ["event", "data", "id"],
}

EVENT_RESPONSES: Responses = {
    200: {
        "description": "Events `state`, `progress`, `preview`, and in the end `done` or `deleted`; the `data` of each "
        "is one line of JSON, a `VideoEvent`, whose `type` is the event's name; its `id` goes into Last-Event-ID",
        "content": {"text/event-stream": {"schema": _EVENT, "example": _STREAM}},
    }
}
# With EventSourceResponse FastAPI runs the handler only when its answer has begun, too late for a 404.
EVENT_DOCS: dict[str, Any] = {"response_class": Response}


def event_schemas() -> dict[str, Any]:
    """The events and their parts, for the components of the document."""
    schema = TypeAdapter(VideoEvent).json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
    kinds = schema.pop("$defs")
    return {**kinds, "VideoEvent": {**schema, "discriminator": {"propertyName": "type"}}}
