"""The web pages: everybody's at /, the operators' at /status, their files under /web. They need no network but this
server.

All files are read once, so a path can only name what was there at the start. Their names carry no versions: browsers
ask each time, and the ETag says that nothing changed. It is made of the content, so that it is the same at every
replica. (Starlette's StaticFiles and GZipMiddleware would read and compress each file for each request, take paths like
/web/./app.js, zip for who refuses it, answer HEAD otherwise than GET, and give both representations one tag.)
"""

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from deployments.settings import ModelSettings
from serve_app.ingress.guards import PAGE_CONTENT_POLICY

FOLDER = Path(__file__).parents[2] / "web"
INDEX = "index.html"
STATUS = "status.html"
EXAMPLES = "examples.json"
# Which file is sent as `EXAMPLES`, by the last part of the model's source: the included model knows few words.
EXAMPLES_OF = {"shapes": "examples/shapes.json"}
OTHER_EXAMPLES = "examples/general.json"

CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".woff2": "font/woff2",
}
COMPRESSED = (".woff2",)  # already
HEADERS = {"Cache-Control": "no-cache", "Content-Security-Policy": PAGE_CONTENT_POLICY, "Vary": "Accept-Encoding"}


@dataclass(frozen=True, slots=True)
class WebFile:
    """A file as it is sent."""

    data: bytes
    gzip_data: bytes | None  # the same, compressed; None where that would save nothing
    content_type: str
    etag: str  # without quotes


class WebPage:
    """The page's files, and its routes.

    Args:
        model: the one that is served; its example prompts are shown.
        folder: the page's files.

    Raises:
        OSError: a file cannot be read.
        KeyError: a file has a suffix without a content type.
    """

    def __init__(self, model: ModelSettings, folder: Path = FOLDER) -> None:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        self._files = {path.relative_to(folder).as_posix(): read_file(path) for path in paths}
        self._files[EXAMPLES] = self._files[examples_of(model)]
        self.routes: list[BaseRoute] = [
            Route("/", self.send_index),
            Route("/status", self.send_status),
            Route("/web/{path:path}", self.send_file),
        ]

    async def send_index(self, request: Request) -> Response:
        return _answer(request, self._files[INDEX])

    async def send_status(self, request: Request) -> Response:
        return _answer(request, self._files[STATUS])

    async def send_file(self, request: Request) -> Response:
        file = self._files.get(request.path_params["path"])
        if file is None:
            raise HTTPException(404)
        return _answer(request, file)


def examples_of(model: ModelSettings) -> str:
    """The file with prompts that suit the model."""
    return EXAMPLES_OF.get(Path(model.source).name, OTHER_EXAMPLES)


def read_file(path: Path) -> WebFile:
    """Raises as `WebPage` does."""
    data = path.read_bytes()
    gzip_data = None if path.suffix in COMPRESSED else gzip.compress(data, mtime=0)
    if gzip_data is not None and len(gzip_data) >= len(data):
        gzip_data = None
    return WebFile(data, gzip_data, CONTENT_TYPES[path.suffix], hashlib.sha256(data).hexdigest()[:32])


def _answer(request: Request, file: WebFile) -> Response:
    """The file as the browser takes it, or 304 if the browser has it."""
    data = file.data
    headers = HEADERS | {"ETag": f'"{file.etag}"'}
    if file.gzip_data is not None and "gzip" in _listed(request, "accept-encoding"):
        data = file.gzip_data
        # Another representation must have another tag: RFC 9110, 8.8.3.
        headers |= {"ETag": f'"{file.etag}-gzip"', "Content-Encoding": "gzip"}
    if headers["ETag"] in _listed(request, "if-none-match"):
        return Response(status_code=304, headers=headers)
    headers |= {"Content-Type": file.content_type, "Content-Length": str(len(data))}
    return Response(b"" if request.method == "HEAD" else data, headers=headers)


def _listed(request: Request, header: str) -> list[str]:
    """The members of a comma-separated header, without weights and marks of weakness; refused codings left out."""
    members = [member.replace(" ", "").partition(";") for member in request.headers.get(header, "").split(",")]
    return [name.removeprefix("W/") for name, _, weight in members if weight not in ("q=0", "q=0.0")]
