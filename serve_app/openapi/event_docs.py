"""The stream of events in the OpenAPI document."""

from typing import Any

from fastapi import Response
from pydantic import TypeAdapter

from serve_app.openapi.schemas import VideoEvent

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
