"""What a model worker is connected to: its name in Serve, the registry, the object store."""

import logging
from dataclasses import dataclass

from ray import serve

from deployments.replica.registry_link import RegistryLink, WorkerRegistry, WorkerRegistryClient
from deployments.settings import StorageSettings, WorkerSettings
from deployments.storage.fetching.errands import BucketAlone, Exchange
from deployments.storage.models.store import OpenBucket, SourceKind, source_kind
from deployments.storage.object_store import Bucket, ObjectStore, Store
from deployments.weights_exchange.actor import node_exchange

_logger = logging.getLogger("ray.serve")


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
        exchange=_exchange(settings),
    )


def _exchange(settings: WorkerSettings) -> Exchange:
    """With other nodes, if that is wanted and the weights lie in the store; a node that cannot serve takes no part."""
    if not settings.model.weights_from_peers or source_kind(settings.model.source) is not SourceKind.BUCKET:
        return BucketAlone()
    try:
        return node_exchange(settings.namespace)
    except OSError as error:
        _logger.warning("weights cannot be served to other machines (%s): they come from the store alone", error)
        return BucketAlone()


def bucket_opener(storage: StorageSettings) -> OpenBucket:
    """Opens any bucket of the configured store, with its keys."""

    def open_bucket(name: str) -> Bucket:
        return ObjectStore(storage.model_copy(update={"bucket": name}))

    return open_bucket
