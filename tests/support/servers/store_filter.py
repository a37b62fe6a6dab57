"""Stands before a real object store and refuses, or falsifies, single kinds of requests."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, bytes] | None
"""Status and body in the place of the store's answer; None passes the request on."""
_HOP = {"connection", "transfer-encoding", "content-length"}
EMPTY_LIST = (
    b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>any</Name><Prefix></Prefix>'
    b"<KeyCount>0</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated></ListBucketResult>"
)


def denied(code: str = "AccessDenied") -> Answer:
    return 403, f"<Error><Code>{code}</Code><Message>refused by policy</Message></Error>".encode()


@contextmanager
def store_filter(store: str, decide: Callable[[str, str], Answer]) -> Iterator[str]:
    """Gives its host:port.

    Args:
        store: host:port of the real one.
        decide: by method and path with query.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            answer = decide(self.command, self.path)
            status, headers, content = (
                (answer[0], {}, answer[1]) if answer else _ask(store, self.command, self.path, self.headers, body)
            )
            self.send_response_only(status)
            length = headers.pop("Content-Length", str(len(content)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, name="store filter")
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _ask(store: str, method: str, path: str, headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
    """With the client's own header Host, which its signature covers."""
    connection = http.client.HTTPConnection(store, timeout=60)
    try:
        connection.request(method, path, body, dict(headers.items()))
        answer = connection.getresponse()
        content = answer.read()
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP}
        if method == "HEAD" and answer.headers["content-length"]:
            kept["Content-Length"] = answer.headers["content-length"]
        return answer.status, kept, content
    finally:
        connection.close()
