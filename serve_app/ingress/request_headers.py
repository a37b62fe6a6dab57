"""What a request says in its headers: whose it is, and by which key its repeats are known."""

import re
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Header
from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from serve_app.access.tenants import TENANT_ALLOWED, TENANT_PATTERN

TENANT_HEADER = "OpenAI-Organization"
KEY_HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotent-Replayed"

_KEY = "[ -~]{1,255}"


def _matching(pattern: str, allowed: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise PydanticCustomError("text", "It must be {allowed}", {"allowed": allowed})
        return text

    return check


TenantName = Annotated[
    str,
    AfterValidator(_matching(TENANT_PATTERN, TENANT_ALLOWED)),
    WithJsonSchema({"type": "string", "pattern": f"^{TENANT_PATTERN}$"}),
]
IdempotencyKey = Annotated[
    str,
    AfterValidator(_matching(_KEY, "1 to 255 printable ASCII characters")),
    WithJsonSchema({"type": "string", "pattern": f"^{_KEY}$"}),
]


OrganizationHeader = Annotated[
    TenantName | None,
    Header(
        alias=TENANT_HEADER,
        description="the tenant; where keys are needed, it can be no other than the key's, and is best left out",
    ),
]
IdempotencyHeader = Annotated[
    IdempotencyKey | None,
    Header(alias=KEY_HEADER, description="the client's name for this request: repeated, it makes no second video"),
]

REPLAYED_DOCS: dict[str, Any] = {
    REPLAYED_HEADER: {
        "description": f"true if the video is the one that an earlier request with the same {KEY_HEADER} made",
        "schema": {"type": "string", "enum": ["true"]},
    }
}
