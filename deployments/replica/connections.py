"""What a model worker is connected to: its name in Serve, the registry, the object store."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ray import serve

from deployments.replica.registry_link import RegistryLink
from deployments.settings import StorageSettings, WorkerSettings
from deployments.storage.model_store import ModelBucket, OpenBucket
from deployments.storage.object_store import ObjectStore


class Link(Protocol):
    """The way to the registry; see `deployments.replica.registry_link.RegistryLink`."""

    async def call(self, method: str, *args: Any) -> Any: ...


class Store(Protocol):
    """The object store as workers use it; see `deployments.storage.object_store.ObjectStore`."""

    async def put(self, key: str, data: bytes, content_type: str) -> None: ...

    async def put_file(self, key: str, path: Path, content_type: str) -> None: ...

    async def get(self, key: str) -> bytes: ...

    async def list_keys(self, prefix: str) -> list[str]: ...

    async def delete(self, key: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Connections:
    """replica: the id by which Serve's routers know this replica."""

    replica: str
    link: Link
    store: Store
    open_bucket: OpenBucket


def connect(settings: WorkerSettings) -> Connections:
    """The real ones; only inside a Serve replica."""
    return Connections(
        replica=serve.get_replica_context().replica_id.unique_id,
        link=RegistryLink(settings.registry, settings.namespace),
        store=ObjectStore(settings.storage),
        open_bucket=bucket_opener(settings.storage),
    )


def bucket_opener(storage: StorageSettings) -> OpenBucket:
    """Opens any bucket of the configured store, with its keys."""

    def open_bucket(name: str) -> ModelBucket:
        return ObjectStore(storage.model_copy(update={"bucket": name}))

    return open_bucket
