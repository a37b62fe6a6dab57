"""The errors of each route in the OpenAPI document: it names their codes, and `CODES` says what each is."""

from dataclasses import dataclass
from typing import Any

from serve_app.openapi.schemas import ErrorBody, ErrorEnvelope

Responses = dict[int | str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Code:
    """A stable word for programs, and an answer with it."""

    status: int
    message: str
    param: str | None = None

    @property
    def type(self) -> str:
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"


CODES = {
    "invalid_value": Code(400, "Invalid 'fps': got 500. It must be an integer from 1 to 60.", "fps"),
    "missing_required_parameter": Code(400, "Missing required parameter: 'prompt'.", "prompt"),
    "unknown_parameter": Code(400, 'Unknown parameter: "steps". Allowed are: prompt, negative_prompt.', "steps"),
    "unsupported_parameter": Code(400, "Unsupported parameter: 'input_reference'.", "input_reference"),
    "unsupported_operation": Code(400, "This model cannot keep characters; describe them in the prompt."),
    "conflicting_parameters": Code(400, "'size' and 'width' say the same thing; give only one of them.", "size"),
    "model_not_found": Code(400, "The model \"sora-2\" is not served here; use 'mochi-1' or leave it out.", "model"),
    "prompt_too_long": Code(400, "Invalid 'prompt': it has 300 tokens, the text encoder takes 256.", "prompt"),
    "too_large": Code(400, "The video has 120 tokens, at most 80 fit.", "size"),
    "content_policy": Code(400, "This prompt is refused by the content policy of this server.", "prompt"),
    "invalid_body": Code(400, "The body is a list; it must be a JSON object."),
    "missing_api_key": Code(401, "This server needs an API key. Send one as 'Authorization: Bearer ms-...'."),
    "invalid_api_key": Code(401, "The API key is not known to this server."),
    "expired_api_key": Code(401, "The API key has expired."),
    "revoked_api_key": Code(401, "The API key was revoked."),
    "mismatched_organization": Code(401, 'The header OpenAI-Organization names the tenant "acme"; leave it out.'),
    "priority_not_allowed": Code(403, "The priority 'interactive' is above what this tenant may use.", "priority"),
    "origin_not_allowed": Code(403, 'Pages of "https://example.com" may not use this server.'),
    "host_not_allowed": Code(403, 'This server is for this machine only, and "example.com" is none of its names.'),
    "video_not_found": Code(404, 'There is no video "video_1".', "video_id"),
    "content_not_found": Code(404, "The thumbnail of this video is gone.", "video_id"),
    "preview_not_ready": Code(404, "The video is queued and has no preview now.", "video_id"),
    "request_timeout": Code(408, "The body was not whole after 30 s; send it faster, or smaller."),
    "idempotency_key_reused": Code(409, 'The Idempotency-Key "k" was used for another body.', "Idempotency-Key"),
    "video_final": Code(409, "The video is completed; there is nothing to cancel.", "video_id"),
    "video_not_ready": Code(409, "The video is sampling, 40% done; ask again when it is completed.", "video_id"),
    "request_too_large": Code(413, "The body is longer than the 1000000 bytes that are allowed."),
    "unsupported_media_type": Code(415, 'The Content-Type is "text/plain"; it must be application/json.'),
    "range_not_satisfiable": Code(416, "The range holds no byte of the file, which has 9000 bytes.", "Range"),
    "rate_limit_exceeded": Code(429, "This tenant may send 60 requests a minute; try again in 3 s."),
    "insufficient_quota": Code(429, "This tenant may use 3600 GPU-seconds a day (UTC): 3600 are used."),
    "queue_full": Code(429, "The queue is full: 10000 jobs wait already. Send the request again in 4 s."),
    "tenant_queue_full": Code(429, 'The queue is full: 2000 jobs of the tenant "acme" wait already.'),
    "internal_error": Code(500, "The server failed at this request."),
    "registry_unavailable": Code(503, "The job registry gave no answer; it restarts by itself."),
    "storage_unavailable": Code(503, "The object store does not answer."),
    "storage_refused": Code(503, "The object store refused the server's keys."),
    "safety_unavailable": Code(503, "Prompts cannot be checked now, so none is accepted."),
}
_EVERYWHERE = ("host_not_allowed", "internal_error")
_ASKED_WHO: tuple[str, ...] = (
    "invalid_value",
    "missing_api_key",
    "invalid_api_key",
    "expired_api_key",
    "revoked_api_key",
)
_ASKED_WHO += ("mismatched_organization", "rate_limit_exceeded", "registry_unavailable")
WRITING = ("origin_not_allowed",)
MAKING = (
    *WRITING,
    *("missing_required_parameter", "unknown_parameter", "prompt_too_long", "too_large", "content_policy"),
    *("invalid_body", "request_timeout", "request_too_large", "unsupported_media_type", "priority_not_allowed"),
    *("idempotency_key_reused", "insufficient_quota", "queue_full", "tenant_queue_full", "safety_unavailable"),
)
CREATING = (*MAKING, "unsupported_parameter", "conflicting_parameters", "model_not_found")
FILES: tuple[str, ...] = (
    "video_not_found",
    "content_not_found",
    "preview_not_ready",
    "video_not_ready",
    "range_not_satisfiable",
)
FILES += ("storage_unavailable", "storage_refused")

_SAID = {
    400: "The request is wrong: `param` names the field, `message` says what is allowed",
    401: "No API key, or no good one; only where the server needs keys",
    403: "It is more than the key's tenant may do, or the page of another site that asks",
    404: "There is no such thing, or it is another tenant's",
    408: "The body did not arrive in time",
    409: "The state of the video or of the Idempotency-Key does not allow it",
    413: "The body is too long",
    415: "The body has a content type, a charset or an encoding that is not read",
    416: "The range holds no byte of the file",
    429: "Too many requests, too many videos that wait, or a quota that is used up",
    500: "A fault of the server; its log tells more under the id of the answer's X-Request-Id",
    503: "A part of the service is away; it comes back by itself",
}
# Not as a model: FastAPI makes a field of its own of each, and an app has hundreds. The component comes with the routes
# that answer nothing else (serve_app/ingress/short_routes.py).
_ENVELOPE = {"$ref": "#/components/schemas/ErrorEnvelope"}
_RETRY_AFTER = {"description": "seconds", "required": True, "schema": {"type": "integer", "minimum": 1}}
_NO_RETRY = {"description": "the same request cannot succeed", "schema": {"type": "string", "const": "false"}}
_SIZE = {"description": "`bytes */SIZE` of the file", "required": True, "schema": {"type": "string"}}
_CHALLENGE = {"required": True, "schema": {"type": "string", "const": "Bearer"}}
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": _CHALLENGE},
    409: {"x-should-retry": _NO_RETRY},
    416: {"Content-Range": _SIZE},
    429: {"Retry-After": _RETRY_AFTER},
    503: {"Retry-After": _RETRY_AFTER},
}


def errors(*codes: str) -> Responses:
    """What a route may answer that asks who calls: these codes, and those of all such routes."""
    return open_errors(*_ASKED_WHO, *codes)


def open_errors(*codes: str) -> Responses:
    """What a route may answer that asks nobody for a key."""
    of_status: dict[int, list[str]] = {}
    for code in dict.fromkeys((*_EVERYWHERE, *codes)):
        of_status.setdefault(CODES[code].status, []).append(code)
    return {status: _response(status, of_status[status]) for status in sorted(of_status)}


def _response(status: int, codes: list[str]) -> dict[str, Any]:
    content = {"schema": _ENVELOPE, "examples": {code: _example(code) for code in codes}}
    described = {"description": _SAID[status], "headers": _HEADERS.get(status, {})}
    return described | {"content": {"application/json": content}}


def _example(code: str) -> dict[str, Any]:
    known = CODES[code]
    body = ErrorBody(message=known.message, type=known.type, param=known.param, code=code)
    return {"value": ErrorEnvelope(error=body).model_dump()}
