"""The OpenAPI document: what FastAPI makes of the routes, completed and corrected.

Its examples are made as the answers are made: they have every field, and values within the model's bounds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from fastapi import FastAPI
from fastapi.encoders import jsonable_encoder
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from deployments.messages import VIDEO_STAGES, ReplicaInfo, Stage, VideoSpec
from deployments.settings import ModelSettings
from serve_app.config import AppSettings
from serve_app.jobs import Health, Job, JobPage, JobState, Move, Place
from serve_app.openapi.media import event_schemas
from serve_app.openapi.schemas import DeletedVideo
from serve_app.openapi.views import to_health, to_history, to_model_list, to_page, to_video

Document = dict[str, Any]

DESCRIPTION = """
Text to video. A POST answers at once with a Video whose `id` is asked about later: until it is final
(`GET /v1/videos/{video_id}?wait=60`), or as a stream of events (`/v1/videos/{video_id}/events`).

The routes under `/v1/videos` are OpenAI's: its clients work unchanged. All errors are OpenAI's envelope, also those of
the HTTP front before the routes: 503 while no replica is there, 502 and 504 when one breaks off. Bounds and defaults
are those of the model that is served here.
""".strip()
TAGS = [
    {"name": "OpenAI", "description": "OpenAI's video API, and beside it: enhance, cancel, history, events"},
    {"name": "dialects", "description": "The same jobs by the routes of other servers, for their clients"},
    {"name": "short", "description": "Short paths for people and scripts, and the state of the server"},
    {"name": "unsupported", "description": "OpenAI's routes for what this model cannot do, answered with 400"},
]
SERVERS = [{"url": "/", "description": "this server"}]

EXAMPLE_VIDEO_ID = "video_018f6e2a7c1d0daf29c941694ac1871b"
EXAMPLE_PROMPT = "a red circle moving right"
EXAMPLE_TIME = 1_760_000_000.0  # Unix seconds

_VIDEO_ID_SCHEMA = {"pattern": "^video_[0-9a-f]{32}$"}
_PARAMETERS: dict[str, Document] = {
    "video_id": {"description": "the `id` of a Video", "example": EXAMPLE_VIDEO_ID, "schema": _VIDEO_ID_SCHEMA},
    "after": {"example": EXAMPLE_VIDEO_ID, "schema": _VIDEO_ID_SCHEMA},
    "character_id": {"description": "anything: there are no characters"},
}
_REQUEST_ID = {"description": "the request's own, or a new one", "schema": {"type": "string"}}
_RATE_HEADERS = {
    "x-ratelimit-limit-requests": {
        "description": "requests that the tenant may send in a minute; the three headers are there if it has a limit",
        "schema": {"type": "integer"},
    },
    "x-ratelimit-remaining-requests": {
        "description": "how many of them it may send at once now",
        "schema": {"type": "integer"},
    },
    "x-ratelimit-reset-requests": {
        "description": "when all of them may be sent again, as '1.5s' or '12ms'",
        "schema": {"type": "string"},
    },
}


@dataclass(frozen=True, slots=True)
class RequestBodies:
    """The bodies that routes read themselves, so that FastAPI cannot describe them."""

    schemas: Mapping[str, type[BaseModel]]  # by the name of the route
    content_types: Sequence[str]  # each body may be sent as any of them
    headers: Sequence[Document]  # that are read together with a body, as parameters


@dataclass(frozen=True, slots=True)
class DocumentText:
    """What a document says that is in no route."""

    description: str
    tags: Sequence[Document]
    servers: Sequence[Document]
    schemas: Mapping[str, Document]  # beside those of the routes
    answers: Callable[[], Sequence[BaseModel]]  # examples
    body_examples: Callable[[type[BaseModel]], Document]  # by what they show
    parameters: Mapping[str, Document]  # by the name of a parameter of a route, what is said of it


def video_text(settings: AppSettings) -> DocumentText:
    """Of the video API."""
    return DocumentText(
        description=DESCRIPTION,
        tags=TAGS,
        servers=SERVERS,
        schemas=event_schemas(),
        answers=partial(_answer_examples, settings),
        body_examples=partial(_body_examples, model=settings.model),
        parameters=_PARAMETERS,
    )


def install_document(app: FastAPI, text: DocumentText, keys_needed: bool, bodies: RequestBodies) -> None:
    """Make `/openapi.json` the completed document. It is made once, when it is first asked for.

    Args:
        app: with all its routes.
        keys_needed: whether a request without a key is refused, apart from the routes that never ask for one.
    """
    app.openapi = cache(partial(_make_document, app, text, keys_needed, bodies))  # type: ignore[method-assign]


def _make_document(app: FastAPI, text: DocumentText, keys_needed: bool, bodies: RequestBodies) -> Document:
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=text.description,
        routes=app.routes,
        tags=list(text.tags),
        servers=list(text.servers),
    )
    _complete_components(document["components"], text)
    for path, method, operation in _operations(document):
        # FastAPI makes the name of a route unique by its path and method; here the names are unique.
        suffix = f"{path.replace('{', '_').replace('}', '_').replace('/', '_')}_{method}"
        name = operation["operationId"] = operation["operationId"].removesuffix(suffix)
        if name in bodies.schemas:
            operation["requestBody"] = _request_body(bodies.schemas[name], bodies.content_types, text)
            operation["parameters"] += deepcopy(bodies.headers)
        _complete_responses(operation, method)
        for parameter in operation.get("parameters", ()):
            _complete_parameter(parameter, text.parameters)
        if "security" in operation and not keys_needed:
            operation["security"].append({})
    return document


def _operations(document: Document) -> Iterator[tuple[str, str, Document]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def _complete_components(components: Document, text: DocumentText) -> None:
    schemas = {**text.schemas, **components["schemas"]}
    for example in text.answers():
        schemas[type(example).__name__]["examples"] = [example.model_dump(mode="json")]
    # FastAPI adds them for a 422, with which no route answers.
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    components["schemas"] = schemas
    components["headers"] = {"X-Request-Id": _REQUEST_ID, **_RATE_HEADERS}


def _complete_responses(operation: Document, method: str) -> None:
    operation["responses"].pop("422", None)
    names = ["X-Request-Id", *(_RATE_HEADERS if "security" in operation else ())]
    for response in operation["responses"].values():
        if method == "head":
            response.pop("content", None)
        for example in response.get("content", {}).get("application/json", {}).get("examples", {}).values():
            # FastAPI leaves out what is null.
            example["value"]["error"].setdefault("param", None)
        headers = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
        response["headers"] = response.get("headers", {}) | headers


def _complete_parameter(parameter: Document, known: Mapping[str, Document]) -> None:
    schema = parameter["schema"]
    # A parameter that may be left out is no null: no URL and no header has one.
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) == 1:
        del schema["anyOf"]
        schema |= kinds[0]
    schema.pop("title", None)
    if "description" in parameter:
        schema.pop("description", None)
    own = known.get(parameter["name"], {})
    parameter |= own | {"schema": schema | own.get("schema", {})}


def _request_body(schema: type[BaseModel], content_types: Sequence[str], text: DocumentText) -> Document:
    content = {"schema": schema.model_json_schema(), "examples": text.body_examples(schema)}
    required = any(field.is_required() for field in schema.model_fields.values())
    body = {"required": required, "content": dict.fromkeys(content_types, content)}
    # As FastAPI writes what it describes itself: without the defaults that are null.
    document: Document = jsonable_encoder(body, exclude_none=True)
    return document


def _body_examples(schema: type[BaseModel], model: ModelSettings) -> dict[str, Any]:
    """The least that a request may say, and more; by what they show."""
    names = {info.alias or name for name, info in schema.model_fields.items()}
    least = {info.alias or name: EXAMPLE_PROMPT for name, info in schema.model_fields.items() if info.is_required()}
    more = {
        "size": f"{model.width.default}x{model.height.default}",
        "seed": 7,
        "priority": "batch",
        "num_inference_steps": model.num_inference_steps.maximum,
    }
    if "seed" in names:
        del more["num_inference_steps"]
    return {
        "least": {"summary": "all else as the server has it", "value": least},
        "more": {"summary": "some settings of its own", "value": least | {k: v for k, v in more.items() if k in names}},
    }


def _answer_examples(settings: AppSettings) -> tuple[BaseModel, ...]:
    model = settings.model
    job = _example_job(model)
    moves = (
        Move(EXAMPLE_TIME + 0.12, JobState.QUEUED, Stage.ENCODING, 1, "accepted"),
        Move(EXAMPLE_TIME + 0.15, JobState.ENCODING, Stage.ENCODING, 1, "claimed"),
    )
    replicas: dict[Stage, tuple[ReplicaInfo, ...]] = {
        stage: (ReplicaInfo(f"{stage}#1", stage, 4, "cuda:0", model.name),) for stage in VIDEO_STAGES
    }
    return (
        to_video(job, settings.retention),
        to_page(JobPage((job,), has_more=False), settings.retention),
        to_history(moves),
        to_model_list(model, settings.scheduling.draft_when_wait_over_s),
        to_health(Health(replicas, {JobState.QUEUED: 1}), "ok"),
        DeletedVideo(id=EXAMPLE_VIDEO_ID),
    )


def _example_job(model: ModelSettings) -> Job:
    spec = VideoSpec(
        prompt=EXAMPLE_PROMPT,
        negative_prompt="",
        width=model.width.default,
        height=model.height.default,
        num_frames=model.num_frames.default,
        fps=model.fps.default,
        num_inference_steps=model.num_inference_steps.default,
        guidance_scale=model.guidance_scale,
        seed=7,
    )
    return Job(
        id=EXAMPLE_VIDEO_ID,
        model=model.name,
        spec=spec,
        state=JobState.QUEUED,
        stage=Stage.ENCODING,
        attempt=1,
        created_at=EXAMPLE_TIME,
        place=Place(0, EXAMPLE_TIME, EXAMPLE_TIME + 9),
    )
