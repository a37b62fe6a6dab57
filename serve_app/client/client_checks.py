"""What a user gives to the client, checked before it is sent. Pure."""

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from serve_app.client.errors import UsageError

_VIDEO_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


def video_path(video_id: str) -> str:
    """The path of a video. Raises UsageError for what is no id."""
    if not _VIDEO_ID.fullmatch(video_id):
        raise UsageError(f"{video_id!r} is no id of a video; `mochi-serve list` shows them")
    return f"/v1/videos/{video_id}"


def checked_url(url: str) -> httpx.URL:
    """The server's address without /v1 and a closing slash. Raises UsageError for what is no address."""
    try:
        parsed = httpx.URL(url.strip().rstrip("/").removesuffix("/v1"))
        # httpx lets pass what is no port and no IPv6 address.
        _ = urlsplit(url).port
    except (httpx.InvalidURL, ValueError):
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(
            "the URL of the server must be like http://127.0.0.1:8000; set it with --url or MOCHI_SERVE_URL"
        )
    return parsed


def checked_key(key: str) -> str:
    """Raises UsageError, without the key, where it cannot be sent in a header."""
    if not re.fullmatch(r"[!-~]+", key):
        raise UsageError("the API key must be printable ASCII without spaces; check MOCHI_SERVE_API_KEY or --api-key")
    return key


def encoded(fields: Mapping[str, Any]) -> bytes:
    """Fields as JSON. Raises UsageError for what JSON cannot say."""
    try:
        return json.dumps(fields, allow_nan=False).encode("ascii")
    except ValueError:
        raise UsageError("a number of the request is not finite; give a decimal number") from None
