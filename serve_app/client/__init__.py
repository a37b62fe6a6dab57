"""The public client of the API, for programs; the command line is made of it.

    async with Client("http://127.0.0.1:8000") as client:
        video = await client.create({"prompt": "a red circle moving right"})
        video = await client.wait_until_done(video["id"])
        await download(client, video["id"], Path("video.mp4"))

docs/clients.md has it as a program, docs/api.md the fields. Every error is a ClientError.
"""

from serve_app.client.download import Variant, download
from serve_app.client.errors import (
    ClientError,
    KeyRefusedError,
    LocalFileError,
    RefusedError,
    UnreachableError,
    UsageError,
    VideoDeletedError,
)
from serve_app.client.http import DEFAULT_URL, Client, Event, Video

__all__ = [
    "DEFAULT_URL",
    "Client",
    "ClientError",
    "Event",
    "KeyRefusedError",
    "LocalFileError",
    "RefusedError",
    "UnreachableError",
    "UsageError",
    "Variant",
    "Video",
    "VideoDeletedError",
    "download",
]
