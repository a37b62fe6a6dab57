"""What a request says in its headers: whose it is, and by which key its repeats are known."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Header
from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from serve_app.jobs import DEFAULT_TENANT

TENANT_HEADER = "OpenAI-Organization"
KEY_HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotent-Replayed"

_TENANT = "[A-Za-z0-9._-]{1,64}"
_KEY = "[ -~]{1,255}"


def _matching(pattern: str, allowed: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise PydanticCustomError("text", "It must be {allowed}", {"allowed": allowed})
        return text

    return check


TenantName = Annotated[
    str,
    AfterValidator(_matching(_TENANT, "1 to 64 of the characters A-Z, a-z, 0-9, '.', '_' and '-'")),
    WithJsonSchema({"type": "string", "pattern": f"^{_TENANT}$"}),
]
IdempotencyKey = Annotated[
    str,
    AfterValidator(_matching(_KEY, "1 to 255 printable ASCII characters")),
    WithJsonSchema({"type": "string", "pattern": f"^{_KEY}$"}),
]


@dataclass(frozen=True, slots=True)
class Caller:
    """The headers of a request for a video; FastAPI fills it in and describes it.

    tenant: among tenants the work is shared out. idempotency_key: the same key and body make the same video.
    """

    tenant: Annotated[
        TenantName, Header(alias=TENANT_HEADER, description="whose video it is; the work is shared out among tenants")
    ] = DEFAULT_TENANT
    idempotency_key: Annotated[
        IdempotencyKey | None,
        Header(alias=KEY_HEADER, description="the client's name for this request: repeated, it makes no second video"),
    ] = None


REPLAYED_DOCS: dict[str, Any] = {
    REPLAYED_HEADER: {
        "description": f"true if the video is the one that an earlier request with the same {KEY_HEADER} made",
        "schema": {"type": "string", "enum": ["true"]},
    }
}
