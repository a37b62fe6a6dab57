"""The errors of each route in the OpenAPI document: by status, with an example for each code.

An example is an error as it is raised. It is written once, in the group of the routes that may answer it.
"""

from typing import Any

from serve_app.errors import (
    ApiError,
    BodyTooLargeError,
    ContentPolicyError,
    IdempotencyKeyReusedError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    QueueFullError,
    RangeNotWithinFileError,
    RateLimitError,
    RequestTimeoutError,
    ServiceUnavailableError,
    TooLargeError,
    UnauthenticatedError,
    UnsupportedMediaTypeError,
    VideoFailedError,
    VideoFinalError,
    VideoNotReadyError,
    VideoUnfinishedError,
)
from serve_app.openapi.schemas import ErrorEnvelope
from serve_app.openapi.views import to_error_body

Responses = dict[int | str, dict[str, Any]]


def _invalid(code: str, message: str, param: str | None = None) -> ApiError:
    return InvalidRequestError(message, param, code)


def _unavailable(code: str, message: str) -> ApiError:
    return ServiceUnavailableError(message, code=code)


UNSUPPORTED_OPERATION = _invalid(
    "unsupported_operation", "This model cannot keep characters; describe them in the prompt."
)
CONFLICTING_PARAMETERS = _invalid(
    "conflicting_parameters", "'size' and 'width' say the same thing; give only one of them.", "size"
)
VIDEO_NOT_FOUND = NotFoundError('There is no video "video_1".', "video_id", "video_not_found")
VIDEO_FINAL = VideoFinalError("The video is completed; there is nothing to cancel.", "video_id")
REGISTRY_UNAVAILABLE = _unavailable("registry_unavailable", "The job registry gave no answer; it restarts by itself.")

_ALL_ROUTES = (
    PermissionDeniedError(
        'This server is for this machine only, and "example.com" is none of its names.', code="host_not_allowed"
    ),
    ApiError("The server failed at this request."),
)
_ROUTES_WITH_KEY = (
    InvalidRequestError("Invalid 'fps': got 500. It must be an integer from 1 to 60.", "fps"),
    UnauthenticatedError(
        "This server needs an API key. Send one as 'Authorization: Bearer ms-...'.", "missing_api_key"
    ),
    UnauthenticatedError("The API key is not known to this server."),
    UnauthenticatedError("The API key has expired.", "expired_api_key"),
    UnauthenticatedError("The API key was revoked.", "revoked_api_key"),
    UnauthenticatedError(
        'The header OpenAI-Organization names the tenant "acme"; leave it out.', "mismatched_organization"
    ),
    RateLimitError("This tenant may send 60 requests a minute; try again in 3 s.", "rate_limit_exceeded", 3),
    REGISTRY_UNAVAILABLE,
)
WRITE_ERRORS = (
    PermissionDeniedError('Pages of "https://example.com" may not use this server.', code="origin_not_allowed"),
)
METRICS_ERRORS = (PermissionDeniedError("The metrics tell of all tenants.", code="metrics_not_allowed"),)
_MAKE_ERRORS = (
    *WRITE_ERRORS,
    _invalid("missing_required_parameter", "Missing required parameter: 'prompt'.", "prompt"),
    _invalid("unknown_parameter", 'Unknown parameter: "steps". Allowed are: prompt, negative_prompt.', "steps"),
    CONFLICTING_PARAMETERS,
    _invalid("prompt_too_long", "Invalid 'prompt': it has 300 tokens, the text encoder takes 256.", "prompt"),
    TooLargeError(120, 80),
    ContentPolicyError("This prompt is refused by the content policy of this server.", "prompt"),
    _invalid("invalid_body", "The body is a list; it must be a JSON object."),
    RequestTimeoutError("The body was not whole after 30 s; send it faster, or smaller."),
    BodyTooLargeError("The body is longer than the 1000000 bytes that are allowed."),
    UnsupportedMediaTypeError('The Content-Type is "text/plain"; it must be application/json.'),
    PermissionDeniedError(
        "The priority 'interactive' is above what this tenant may use.", "priority", "priority_not_allowed"
    ),
    IdempotencyKeyReusedError("k"),
    RateLimitError("This tenant may use 3600 GPU-seconds a day (UTC): 3600 are used.", "insufficient_quota", 3600),
    QueueFullError(10_000, None, 4),
    QueueFullError(2_000, "acme", 4),
    _unavailable("safety_unavailable", "Prompts cannot be checked now, so none is accepted."),
)
CREATE_ERRORS = (
    *_MAKE_ERRORS,
    _invalid("unsupported_parameter", "Unsupported parameter: 'input_reference'.", "input_reference"),
    _invalid("model_not_found", "The model \"sora-2\" is not served here; use 'mochi-1' or leave it out.", "model"),
)
DERIVE_ERRORS = (*_MAKE_ERRORS, VIDEO_NOT_FOUND)
_NO_FILE = (
    NotFoundError("The thumbnail of this video is gone.", "video_id", "content_not_found"),
    _unavailable("storage_unavailable", "The object store does not answer."),
    _unavailable("storage_refused", "The object store refused the server's keys."),
)
FILE_ERRORS = (
    VIDEO_NOT_FOUND,
    *_NO_FILE,
    NotFoundError("The video is queued and has no preview now.", "video_id", "preview_not_ready"),
    VideoNotReadyError("The video is sampling, 40% done; ask again when it is completed.", "video_id"),
    RangeNotWithinFileError("The range holds no byte of the file, which has 9000 bytes.", "Range"),
)

SYNC_ERRORS = (
    VIDEO_NOT_FOUND,
    *_NO_FILE,
    VideoNotReadyError("The video video_1 is cancelled: the job was cancelled", "video_id"),
    VideoFailedError("The video video_1 is failed: it met a NaN"),
    VideoUnfinishedError("The video video_1 is sampling, 40% done, and goes on."),
)

_DESCRIPTIONS = {
    400: "The request is wrong: `param` names the field, `message` says what is allowed",
    401: "No API key, or no good one; only where the server needs keys",
    403: "It is more than the key's tenant may do, or the page of another site that asks",
    404: "There is no such thing, or it is another tenant's",
    406: "None of the forms of the answer is one that Accept allows",
    408: "The body did not arrive in time",
    409: "The state of the video or of the Idempotency-Key does not allow it",
    413: "The body is too long",
    415: "The body has a content type, a charset or an encoding that is not read",
    416: "The range holds no byte of the file",
    429: "Too many requests, too many videos that wait, or a quota that is used up",
    500: "A fault of the server; its log tells more under the id of the answer's X-Request-Id",
    503: "A part of the service is away; it comes back by itself",
    504: "It is not done in time; of a video, it goes on: `Location` is where to ask for it",
}
_RETRY_AFTER = {"description": "seconds", "required": True, "schema": {"type": "integer", "minimum": 1}}
_NO_RETRY = {"description": "the same request cannot succeed", "schema": {"type": "string", "const": "false"}}
_SIZE = {"description": "`bytes */SIZE` of the file", "required": True, "schema": {"type": "string"}}
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"type": "string", "const": "Bearer"}}},
    409: {"x-should-retry": _NO_RETRY},
    416: {"Content-Range": _SIZE},
    429: {"Retry-After": _RETRY_AFTER},
    503: {"Retry-After": _RETRY_AFTER},
    504: {
        "Location": {"description": "of the video", "required": True, "schema": {"type": "string"}},
        "x-should-retry": _NO_RETRY,
    },
}
# A reference, not a model: FastAPI makes a field of its own of each model, and an app has hundreds. The component comes
# with the routes that answer nothing else (serve_app/ingress/routes/short_routes.py).
_SCHEMA = {"$ref": "#/components/schemas/ErrorEnvelope"}


def error_responses(*errors: ApiError, needs_key: bool = True) -> Responses:
    """What a route may answer: these errors, and those of all routes.

    Args:
        needs_key: whether the route asks who calls, and so may answer the errors of all such routes too.
    """
    examples: dict[int, dict[str, Any]] = {}
    for error in (*_ALL_ROUTES, *(_ROUTES_WITH_KEY if needs_key else ()), *errors):
        envelope = ErrorEnvelope(error=to_error_body(error))
        examples.setdefault(error.status, {})[error.code] = {"value": envelope.model_dump()}
    responses: Responses = {}
    for status in sorted(examples):
        content = {"application/json": {"schema": _SCHEMA, "examples": examples[status]}}
        responses[status] = {
            "description": _DESCRIPTIONS[status],
            "headers": _HEADERS.get(status, {}),
            "content": content,
        }
    return responses
