"""What can go wrong for a client of the API, and the exit code of the command line that each stands for."""

from typing import Any, ClassVar

import httpx

from deployments.errors import MochiServeError

OK = 0
FAILED = 1
WRONG_USAGE = 2
PARTLY_FAILED = 3
UNREACHABLE = 4
KEY_REFUSED = 5
INTERRUPTED = 130

EXIT_CODES = (
    f"Exit codes: {OK} all went well; {FAILED} the request or the video failed; {WRONG_USAGE} wrong usage, nothing was "
    f"done; {PARTLY_FAILED} some of a batch failed; {UNREACHABLE} the server does not answer; {KEY_REFUSED} the API "
    f"key is missing or refused; {INTERRUPTED} interrupted by Ctrl-C (128 and the number by other signals)."
)

# After a 429, a 503 and the like the same request may succeed; a 500 may be temporary or a mistake of the server.
TEMPORARY = frozenset({408, 429, 500, 502, 503, 504})
_MAX_BODY_CHARS = 200


class ClientError(MochiServeError):
    """A command cannot do what was asked; the message says what to do."""

    exit_code: ClassVar[int] = FAILED
    type: str = "client_error"
    code: str | None = None
    param: str | None = None

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.code

    def envelope(self) -> dict[str, Any]:
        """The error as the API sends errors: {"error": {"message", "type", "param", "code"}}."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class UsageError(ClientError):
    """The command line is wrong; nothing was done."""

    exit_code = WRONG_USAGE
    type = "usage_error"
    code = "wrong_usage"


class LocalFileError(ClientError):
    """A file of the user's cannot be read or written."""

    type = "file_error"
    code = "file_error"


class UnreachableError(ClientError):
    """The server gave no answer for as long as was waited."""

    exit_code = UNREACHABLE
    type = "connection_error"
    code = "server_unreachable"


class VideoDeletedError(ClientError):
    """The video was deleted while it was waited for."""

    type = "invalid_request_error"
    code = "video_deleted"

    def __init__(self, video_id: str) -> None:
        super().__init__(f"{video_id} was deleted, by somebody else or in another window; ask for it anew")


class RefusedError(ClientError):
    """The server answered with an error, in OpenAI's envelope or with whatever stands before it."""

    def __init__(self, response: httpx.Response) -> None:
        error = _error_object(response)
        super().__init__(str(error.get("message") or _summary(response)), _text(error.get("code")))
        self.status = response.status_code
        self.type = _text(error.get("type")) or "server_error"
        self.param = _text(error.get("param"))
        self.retry_after_s = retry_after(response)
        self._may_repeat = response.headers.get("x-should-retry") != "false"

    @property
    def temporary(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in TEMPORARY and self._may_repeat


class KeyRefusedError(RefusedError):
    """The server asks for an API key, or does not know the one it got."""

    exit_code = KEY_REFUSED


def refused_error(response: httpx.Response) -> RefusedError:
    """The error of an answer whose body has been read."""
    return KeyRefusedError(response) if response.status_code == 401 else RefusedError(response)


def retry_after(response: httpx.Response) -> float | None:
    """The header Retry-After in seconds, None where it is missing or a date."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() and len(value) < 10 else None


def _error_object(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}


def _summary(response: httpx.Response) -> str:
    text = " ".join(response.text.split())[:_MAX_BODY_CHARS]
    return f"The server answered {response.status_code} {response.reason_phrase}{': ' if text else ''}{text}"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
