"""The web page: itself at /, its files under /web. It needs no network but this server.

All files are read once, so a path can only name what was there at the start. Their names carry no versions: browsers
ask each time, and the ETag tells them that nothing changed.
"""

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from deployments.settings import ModelSettings

FOLDER = Path(__file__).parents[1] / "web"
INDEX = "index.html"
EXAMPLES = "examples.json"
# Where the prompts of `EXAMPLES` come from, by the last part of the model's source: the included one knows few words.
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
COMPRESSED = (".woff2",)
# blob: what was fetched with an API key, and previews that came as events.
CONTENT_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "font-src 'self'",
        "connect-src 'self'",
        "img-src 'self' blob:",
        "media-src 'self' blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": CONTENT_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class WebFile:
    """A file as it is sent. zipped: the same with gzip, None where that would save nothing."""

    data: bytes
    zipped: bytes | None
    content_type: str
    etag: str


class WebPage:
    """The handlers; `add_to` gives them their routes.

    Args:
        model: the one that is served; its example prompts are shown.
        folder: the page's files.

    Raises:
        OSError: a file cannot be read. KeyError: one has a suffix without a content type.
    """

    def __init__(self, model: ModelSettings, folder: Path = FOLDER) -> None:
        self._files = read_files(folder)
        self._files[EXAMPLES] = self._files[examples_of(model)]

    def add_to(self, app: FastAPI) -> None:
        for path in ("/", "/web/{path:path}"):
            app.add_api_route(path, self.send, methods=["GET", "HEAD"], include_in_schema=False)

    async def send(self, request: Request) -> Response:
        """Answer with a file of the page, or with 304 if the browser has it."""
        file = self._files.get(request.path_params.get("path", INDEX))
        if file is None:
            raise HTTPException(404)
        etag, data, encoding = self._coded(request, file)
        headers = HEADERS | {"ETag": etag} | encoding
        if etag in _listed(request, "if-none-match"):
            return Response(status_code=304, headers=headers)
        headers |= {"Content-Type": file.content_type, "Content-Length": str(len(data))}
        return Response(b"" if request.method == "HEAD" else data, headers=headers)

    def _coded(self, request: Request, file: WebFile) -> tuple[str, bytes, dict[str, str]]:
        if file.zipped is None or "gzip" not in _listed(request, "accept-encoding"):
            return f'"{file.etag}"', file.data, {}
        # Another representation must have another tag: RFC 9110, 8.8.3.
        return f'"{file.etag}-gzip"', file.zipped, {"Content-Encoding": "gzip"}


def read_files(folder: Path) -> dict[str, WebFile]:
    """All files below the folder, by their path in it."""
    return {path.relative_to(folder).as_posix(): _read(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def examples_of(model: ModelSettings) -> str:
    """The file with prompts that suit the model."""
    return EXAMPLES_OF.get(Path(model.source).name, OTHER_EXAMPLES)


def _read(path: Path) -> WebFile:
    data = path.read_bytes()
    zipped = None if path.suffix in COMPRESSED else gzip.compress(data, mtime=0)
    smaller = zipped if zipped is not None and len(zipped) < len(data) else None
    return WebFile(data, smaller, CONTENT_TYPES[path.suffix], hashlib.sha256(data).hexdigest()[:32])


def _listed(request: Request, header: str) -> list[str]:
    """The members of a comma-separated header, without weights and marks of weakness; refused codings left out."""
    members = [member.replace(" ", "").partition(";") for member in request.headers.get(header, "").split(",")]
    return [name.removeprefix("W/") for name, _, weight in members if weight not in ("q=0", "q=0.0")]
