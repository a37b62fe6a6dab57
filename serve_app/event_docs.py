"""The stream of events in the OpenAPI document."""

from typing import Any

from fastapi import Response
from pydantic import TypeAdapter

from serve_app.api_schemas import VideoEvent

_SCHEMA = TypeAdapter(VideoEvent).json_schema(mode="serialization")
EVENT_DOCS: dict[str, Any] = {
    # Not EventSourceResponse: with that FastAPI runs the handler only when its answer has begun, too late for a 404.
    "response_class": Response,
    "responses": {
        200: {
            "description": "Events `state`, `progress`, `preview`, and in the end `done` or `deleted`; "
            "`data` is a JSON object whose `type` is the event's name",
            "content": {
                "text/event-stream": {
                    "schema": {"type": "string", "x-event-data": _SCHEMA},
                    "example": 'event: progress\ndata: {"type":"progress","step":3}\nid: 4.3\n\n',
                }
            },
        }
    },
}
