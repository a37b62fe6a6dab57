"""The errors of the control side, and `quote`, which writes a client's value into a message.

Each ApiError is an HTTP answer; `ingress.error_answers` maps all other errors to one.
"""

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from deployments.errors import MochiServeError


class ConfigError(MochiServeError):
    """The settings are wrong; the message names the key and what is allowed."""


class StartupError(MochiServeError):
    """The app cannot start here: a port is taken, the disk is full; the message says what to do."""


class IllegalMoveError(MochiServeError):
    """A job was asked to make a move that its state does not allow."""


class NoReplicaError(MochiServeError):
    """No replica of a stage took a task in time; the task was not begun."""

    def __init__(self, stage: str) -> None:
        super().__init__(f"no replica of the {stage} stage took the task")


class ReplicaDiedError(MochiServeError):
    """The process of the replica ended while it worked on a task."""

    def __init__(self, replica: str) -> None:
        super().__init__(f"the replica {replica} died")


class UnknownJobError(MochiServeError):
    """There is no job with this id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"there is no job {job_id!r}")
        self.job_id = job_id

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.job_id,)


class ApiError(MochiServeError):
    """An answer to an HTTP request, in OpenAI's envelope.

    Args:
        message: what was wrong, what is allowed, what to do.
        param: the field of the request that the message is about.
        code: a stable word in snake_case; None stands for `default_code`.
        headers: further headers of the answer.
    """

    status: ClassVar[int] = 500  # of the HTTP answer
    type: ClassVar[str] = "server_error"  # OpenAI's word for the kind of error
    default_code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code
        self.headers = dict(headers or {})


class InvalidRequestError(ApiError):
    """The request is wrong; sending it again unchanged cannot succeed."""

    status = 400
    type = "invalid_request_error"
    default_code = "invalid_value"


class NotFoundError(InvalidRequestError):
    """There is nothing at this path."""

    status = 404
    default_code = "not_found"


class MethodNotAllowedError(InvalidRequestError):
    """The path is right, the method is not; the header Allow lists those that are."""

    status = 405
    default_code = "method_not_allowed"


class UnauthenticatedError(InvalidRequestError):
    """The API key is missing, unknown, expired or revoked."""

    status = 401
    default_code = "invalid_api_key"

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message, code=code, headers={"WWW-Authenticate": "Bearer"})


class PermissionDeniedError(InvalidRequestError):
    """The API key is valid, but its tenant may not do this."""

    status = 403
    default_code = "permission_denied"


class ContentPolicyError(InvalidRequestError):
    """This server makes no video of this prompt; nothing was written."""

    default_code = "content_policy"


class RequestTimeoutError(InvalidRequestError):
    """The body of the request did not arrive in time."""

    status = 408
    default_code = "request_timeout"


class RateLimitError(ApiError):
    """The tenant sends more requests, or asks for more, than it may; nothing was written.

    Args:
        message: as of ApiError.
        code: `rate_limit_exceeded`, or `insufficient_quota` when the share of a day is used up.
        retry_after_s: seconds until the same request may succeed.
    """

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"

    def __init__(self, message: str, code: str, retry_after_s: int) -> None:
        headers = {"Retry-After": str(retry_after_s)}
        if code == "insufficient_quota":  # OpenAI's clients would repeat it within seconds
            headers["x-should-retry"] = "false"
        super().__init__(message, code=code, headers=headers)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, tuple[str, str, int]]:
        return type(self), (self.message, self.code, self.retry_after_s)


class VideoNotReadyError(InvalidRequestError):
    """The video cannot be downloaded: it is still being made, or it failed."""

    status = 409
    default_code = "video_not_ready"


class VideoUnfinishedError(ApiError):
    """The video is still being made at the end of the time that the request waits for it; it goes on."""

    status = 504
    default_code = "video_unfinished"


class VideoFailedError(ApiError):
    """The video that the request waited for could not be made; the code is that of the video's error."""

    default_code = "video_failed"


class VideoFinalError(InvalidRequestError):
    """The video cannot be cancelled any more: it is completed, or failed."""

    status = 409
    default_code = "video_final"


class TooLargeError(InvalidRequestError):
    """No sampler has the memory for this video, now or later.

    Args:
        tokens: tokens of the video: latent frames x height/16 x width/16.
        max_tokens: tokens of the largest video that fits.
        advice: what to ask for instead; empty from the registry, the ingress adds it.
    """

    default_code = "too_large"

    def __init__(self, tokens: int, max_tokens: int, advice: str = "") -> None:
        reason = (
            f"The video is too large for the samplers' memory: it has {tokens} tokens "
            f"(latent frames x height/16 x width/16), at most {max_tokens} fit."
        )
        super().__init__(f"{reason} {advice}".rstrip(), "size")
        self.tokens = tokens
        self.max_tokens = max_tokens
        self.advice = advice

    def __reduce__(self) -> tuple[type, tuple[int, int, str]]:
        return type(self), (self.tokens, self.max_tokens, self.advice)


class IdempotencyKeyReusedError(InvalidRequestError):
    """The Idempotency-Key belongs to another request of the same tenant."""

    status = 409
    default_code = "idempotency_key_reused"

    def __init__(self, key: str) -> None:
        super().__init__(
            f"The Idempotency-Key {quote(key)} was used for a request with another body; "
            "send the same body again, or a new key.",
            "Idempotency-Key",
            headers={"x-should-retry": "false"},
        )
        self.key = key

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.key,)


class QueueFullError(ApiError):
    """Too many jobs wait; nothing was written.

    Args:
        limit: how many jobs may wait.
        tenant: whose limit it is; None for the limit of all tenants together.
        retry_after_s: seconds until a place in the queue is expected to be free.
    """

    status = 429
    type = "rate_limit_error"
    default_code = "queue_full"

    def __init__(self, limit: int, tenant: str | None, retry_after_s: int) -> None:
        whose = "" if tenant is None else f" of the tenant {quote(tenant)}"
        super().__init__(
            f"The queue is full: {limit} jobs{whose} wait already. Send the request again in {retry_after_s} s.",
            code="queue_full" if tenant is None else "tenant_queue_full",
            headers={"Retry-After": str(retry_after_s)},
        )
        self.limit = limit
        self.tenant = tenant
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.limit, self.tenant, self.retry_after_s)


class BodyTooLargeError(InvalidRequestError):
    """The request's body is longer than the ingress takes."""

    status = 413
    default_code = "request_too_large"


class UnsupportedMediaTypeError(InvalidRequestError):
    """The request's body has a content type that this route does not read."""

    status = 415
    default_code = "unsupported_media_type"


class NotAcceptableError(InvalidRequestError):
    """None of the forms that an answer can have is one that the request's Accept allows."""

    status = 406
    default_code = "not_acceptable"


class OverloadedError(ApiError):
    """Too many requests wait for devices; nothing was begun.

    Args:
        message: as of ApiError.
        retry_after_s: seconds until there is room, as far as is known.
    """

    status = 429
    type = "rate_limit_error"
    default_code = "overloaded"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message, headers={"Retry-After": str(retry_after_s)})


class RequestUnfinishedError(ApiError):
    """The answer was not computed in the time that a request may take; what was computed is dropped."""

    status = 504
    default_code = "request_unfinished"


class RangeNotWithinFileError(InvalidRequestError):
    """The header Range asks for bytes behind the end of the file."""

    status = 416
    default_code = "range_not_satisfiable"


class ServiceUnavailableError(ApiError):
    """A part of the service does not answer; the header Retry-After gives the seconds until the next try."""

    status = 503
    default_code = "service_unavailable"


# So much of a longer value is quoted.
MAX_QUOTE_CHARACTERS = 60


class Described:
    """A value that `quote` names by `described`, not by its type."""

    described: ClassVar[str]


def conflict(one: str, other: str) -> InvalidRequestError:
    """The refusal of two parameters that may not be given together."""
    return InvalidRequestError(
        f"'{one}' and '{other}' say the same thing; give only one of them.", one, "conflicting_parameters"
    )


def quote(value: object) -> str:
    """A value from a client as an error message quotes it: as JSON, and short. It never raises.

    Lists, objects and other values are named by their kind alone.
    """
    match value:
        case list():
            return "a list"
        case dict():
            return "an object"
        case str() if len(value) > MAX_QUOTE_CHARACTERS:
            return f"{_printable(value[:MAX_QUOTE_CHARACTERS])}... ({len(value)} characters)"
        case str():
            return _printable(value)
        case None | bool() | int() | float():
            number = json.dumps(value)
            if len(number) <= MAX_QUOTE_CHARACTERS:
                return number
            return f"{number[:MAX_QUOTE_CHARACTERS]}... ({len(number)} digits)"
    return value.described if isinstance(value, Described) else f"a {type(value).__name__}"


def _printable(text: str) -> str:
    """As JSON. A surrogate without its pair, which UTF-8 does not have, is written as an escape."""
    json_text = json.dumps(text, ensure_ascii=False)
    return json_text.encode("utf-8", "backslashreplace").decode("utf-8")
