"""nginx with its defaults in front of a server, as whoever puts one there has it at first."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.servers.ports import free_ports
from tests.support.waiting import wait_until

# Debian's is not on the path of a user.
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

# Paths and ports of its own, and nothing else that is not the default.
_CONFIG = """
daemon off;
{user}
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    scgi_temp_path {folder}/scgi;
    uwsgi_temp_path {folder}/uwsgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://{target};
        }}
    }}
}}
"""


@contextmanager
def nginx_before(url: str) -> Iterator[str]:
    """Runs nginx before the server at `url`; gives the URL to ask instead."""
    assert NGINX is not None
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Started by root its workers would be nobody, who may not write here.
        user = f"user {pwd.getpwuid(os.geteuid()).pw_name};" if os.geteuid() == 0 else ""
        config = _CONFIG.format(folder=folder, user=user, port=port, target=urlsplit(url).netloc)
        (folder / "nginx.conf").write_text(config)
        process = subprocess.Popen([NGINX, "-e", folder / "error.log", "-p", folder, "-c", folder / "nginx.conf"])
        try:
            wait_until(lambda: _accepts(port) or process.poll() is not None)
            assert process.poll() is None, (folder / "error.log").read_text()
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
