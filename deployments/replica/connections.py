"""What a model worker is connected to: its name in Serve, the registry, the object store."""

from dataclasses import dataclass

from ray import serve

from deployments.replica.registry_link import RegistryLink, WorkerRegistry, WorkerRegistryClient
from deployments.settings import StorageSettings, WorkerSettings
from deployments.storage.fetching.errands import BucketAlone, Exchange
from deployments.storage.model_store import OpenBucket
from deployments.storage.object_store import Bucket, ObjectStore, Store
from deployments.weights_exchange.actor import node_exchange


@dataclass(frozen=True, slots=True)
class Connections:
    """The ways out of a replica."""

    replica: str  # the id by which Serve's routers know it
    registry: WorkerRegistry
    store: Store
    open_bucket: OpenBucket
    exchange: Exchange = BucketAlone()  # of weights, with other nodes


def connect(settings: WorkerSettings) -> Connections:
    """The real ones; only inside a Serve replica."""
    return Connections(
        replica=serve.get_replica_context().replica_id.unique_id,
        registry=WorkerRegistryClient(RegistryLink(settings.registry, settings.namespace)),
        store=ObjectStore(settings.storage),
        open_bucket=bucket_opener(settings.storage),
        exchange=node_exchange(settings.namespace) if settings.model.weights_from_peers else BucketAlone(),
    )


def bucket_opener(storage: StorageSettings) -> OpenBucket:
    """Opens any bucket of the configured store, with its keys."""

    def open_bucket(name: str) -> Bucket:
        return ObjectStore(storage.model_copy(update={"bucket": name}))

    return open_bucket
