"""Pods as namespaces: a network address, process ids, a host name, /tmp and /dev/shm of their own.

The run itself is in namespaces, as process 1, at the address of the services beside the pods. So whatever ends it ends
every pod and every network with it, and nothing of them reaches the machine's own network.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support import ROOT
from tests.support.servers.server import title_of

NETWORK = "10.77.0"
SERVICES = f"{NETWORK}.1"
FOLDER = "MOCHI_CLUSTER_TEST_FOLDER"
PROGRAMS = ("ip", "mount", "nsenter", "unshare", "redis-server")
LOOK_S = 0.2
_NAMESPACES = ("unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc")

# $1 name, $2 address, $3 folder, $4 link, the rest is the command. The link ends where the process 1 is that is seen.
_ENTER = f"""
set -e
ip link set lo up
tries=0
until ip link add eth0 type veth peer name "$4" netns 1; do
  # The kernel takes a moment to remove the link of a pod that has ended.
  tries=$((tries + 1)); [ $tries -lt 100 ]
  nsenter --net=/proc/1/ns/net ip link del "$4" || true
  sleep 0.2
done
ip addr add "$2/24" dev eth0
ip link set eth0 up
ip route add default via {SERVICES}
nsenter --net=/proc/1/ns/net ip link set "$4" master pods up
exec unshare --mount --pid --uts --fork --kill-child --mount-proc sh -ec '
hostname "$1"
mount --bind "$3/tmp" /tmp
mount -t tmpfs -o size=1g tmpfs /dev/shm
shift 4
exec "$@"' pod "$@"
"""


def why_no_pods() -> str | None:
    """Why this machine can have no pods; None if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "cluster-test needs root on Linux: its pods are namespaces"
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"cluster-test needs the programs {', '.join(missing)}, which are not on this machine"
    tried = subprocess.run(
        [*_NAMESPACES, "ip", "link", "add", "pods", "type", "bridge"], capture_output=True, text=True
    )
    if tried.returncode:
        return f"cluster-test needs CAP_NET_ADMIN and CAP_SYS_ADMIN for its namespaces: {tried.stderr.strip()}"
    return None


def run_inside(module: str, arguments: Sequence[str], environ: Mapping[str, str], limit_s: float) -> int:
    """Run the module in namespaces of its own, with FOLDER naming a folder that is removed; gives its exit code.

    limit_s: then it is ended. A signal ends it too.
    """
    # Not below /tmp, which is another one inside.
    with tempfile.TemporaryDirectory(prefix="cluster-", dir="/var/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # Postgres has a user of its own
        command = [*_NAMESPACES, sys.executable, "-m", module, *arguments]
        inside = subprocess.Popen(command, env={**os.environ, **environ, FOLDER: folder})
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: inside.kill())
        try:
            return inside.wait(limit_s)
        except subprocess.TimeoutExpired:
            sys.stderr.write(f"not done within {limit_s:g} s; all of it was ended\n")
            return 1
        finally:
            inside.kill()
            inside.wait()


def make_network(folder: Path) -> None:
    """The bridge of the pods, and a /tmp of our own. Called once, inside."""
    (folder / "tmp").mkdir()
    for command in (
        "ip link set lo up",
        "ip link add pods type bridge",
        f"ip addr add {SERVICES}/24 dev pods",
        "ip link set pods up",
        f"mount --bind {folder / 'tmp'} /tmp",
    ):
        subprocess.run(command.split(), check=True)


@dataclass
class Pod:
    """A pod and the command that it runs, which is its process 1.

    number: the last part of its address. folder: of its log and its /tmp.
    """

    name: str
    number: int
    folder: Path
    command: Sequence[str]
    environ: Mapping[str, str]
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def address(self) -> str:
        return f"{NETWORK}.{self.number}"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def last_words(self) -> str:
        """The last error in its log, or else its last line."""
        lines = self.log.read_text(errors="replace").splitlines()
        told = [line for line in lines if "Error" in line] or lines or [""]
        return told[-1][:300]

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it as a new pod: with an empty /tmp."""
        shutil.rmtree(self.folder / "tmp", ignore_errors=True)
        (self.folder / "tmp").mkdir(parents=True)
        command = [
            "unshare",
            "--net",
            "sh",
            "-c",
            _ENTER,
            "pod",
            self.name,
            self.address,
            str(self.folder),
            f"pod{self.number}",
            *self.command,
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self.environ),
                cwd=ROOT,
                start_new_session=True,
            )

    def run(self, command: Sequence[str], timeout_s: float) -> str:
        """What the command prints that is run in the pod, as `kubectl exec` does."""
        first = self._first()
        assert first is not None, f"the pod {self.name} does not run"
        enter = ["nsenter", "--target", str(first.pid), "--mount", "--pid", "--net", "--uts", "--wd=."]
        done = subprocess.run(
            [*enter, *command], env=dict(self.environ), cwd=ROOT, capture_output=True, text=True, timeout=timeout_s
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def processes(self, title: str) -> list[psutil.Process]:
        """Those in the pod whose command line begins so."""
        first = self._first()
        below = [] if first is None else first.children(recursive=True)
        return [process for process in below if title_of(process).startswith(title)]

    def kill(self) -> None:
        """End it at once, with all its processes: a machine that is gone."""
        if self._process is not None and self._process.poll() is None:
            self._signal(signal.SIGKILL)
            self._process.kill()
            self._process.wait()

    def terminate(self, grace_s: float) -> float:
        """End it as Kubernetes does: SIGTERM to its process 1, SIGKILL after the grace period. Gives the seconds."""
        begun = time.monotonic()
        self._signal(signal.SIGTERM)
        while self.runs and time.monotonic() < begun + grace_s:
            time.sleep(LOOK_S)
        self.kill()
        return time.monotonic() - begun

    def _signal(self, number: signal.Signals) -> None:
        if (first := self._first()) is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                first.send_signal(number)

    def _first(self) -> psutil.Process | None:
        """Its process 1, seen from here."""
        if self._process is None or self._process.poll() is not None:
            return None
        below = psutil.Process(self._process.pid).children()
        return below[0] if below else None
