"""What the checks look at."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from deployments.settings import StorageSettings
from serve_app.config import AppSettings
from serve_app.doctor.children.run import ask_child
from serve_app.local.plan import LaunchPlan
from serve_app.local.preflight import lock_file, running_server
from serve_app.local.store.seaweed_command import keys_file, own_store

AskChild = Callable[..., dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The configuration, and where a server runs with it, if one does."""

    plan: LaunchPlan  # neither the model nor who can reach the app was looked at
    server: psutil.Process | None = None  # that works on the data folder, on this machine
    url: str | None = None  # of a server that is to run
    api_key: str | None = field(default=None, repr=False)
    ray_address: str | None = None  # of a cluster: then the machine need hold no replicas itself
    deep: bool = False  # whether all bytes of the weights are read
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    root: Path = Path("/")  # of the file system
    ask: AskChild = ask_child
    unix_time: Callable[[], float] = time.time

    @property
    def settings(self) -> AppSettings:
        return self.plan.settings

    @property
    def data_in_use(self) -> bool:
        """Whether a server may have the data folder: also one in another container, whose process is not seen here."""
        return self.server is not None or lock_file(self.plan.data_dir).exists()

    @property
    def storage(self) -> StorageSettings | None:
        """How the object store is reached; None: it is the server's own, which does not run now."""
        if self.settings.storage.endpoint is not None:
            return self.settings.storage
        runs = self.server is not None and keys_file(self.plan.data_dir).exists()
        return own_store(self.settings.storage, self.plan.data_dir) if runs else None


def surroundings(
    plan: LaunchPlan, url: str | None, api_key: str | None, ray_address: str | None, deep: bool
) -> Surroundings:
    """As they are now. url: without one, that of the server that works on the data folder here, if one does."""
    server = running_server(plan.data_dir)
    return Surroundings(
        plan=plan,
        server=server,
        url=url or (plan.address if server is not None else None),
        api_key=api_key,
        ray_address=ray_address,
        deep=deep,
    )
