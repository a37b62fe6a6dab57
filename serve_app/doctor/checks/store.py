"""The object store: reached, and one object of our own written, read, listed and deleted."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from uuid import uuid4

from deployments.errors import StorageRefusedError, WorkerError
from deployments.settings import StorageSettings
from deployments.storage.object_store import ListedObject, ObjectStore
from serve_app.doctor.checks.clock import clock_finding
from serve_app.doctor.checks.model_bytes import open_bucket
from serve_app.doctor.finding import Finding, State, fault, ok, skipped, split_fault
from serve_app.doctor.surroundings import Surroundings
from serve_app.errors import StartupError
from serve_app.local.store.seaweed_command import binary

PREFIX = "mochi-serve/doctor/"
"""No sweeper looks there: see `deployments.keys`, `retention.orphans`."""
LEFT_AFTER = timedelta(hours=1)  # then an object there is one that a killed doctor left
OPERATIONS = ("store_write", "store_read", "store_list", "store_delete")
NO_LISTING = "models, checkpoints and retention need a store that lists what it has: see its index, or its proxy"
ALLOW = "allow storage.access_key to {} every object of the bucket ({})"


def check_store(s: Surroundings) -> Iterator[Finding]:
    """Whatever happens, the object is deleted at the end, if the store lets us."""
    storage = s.storage
    if storage is None:
        yield _own_store()
        yield from (skipped(name, "the store runs with the server") for name in (*OPERATIONS, "store_clock"))
        return
    store = open_bucket(storage, storage.bucket)
    try:
        with asyncio.Runner() as runner:
            yield from _use(s, store, runner, storage)
    finally:
        store.close()


def _own_store() -> Finding:
    try:
        return ok("store", f"the server starts its own: {binary()}")
    except StartupError as error:
        return split_fault("store", str(error))


def _use(s: Surroundings, store: ObjectStore, runner: asyncio.Runner, storage: StorageSettings) -> Iterator[Finding]:
    try:
        runner.run(store.ping())
    except WorkerError as error:
        yield _fault_of(error)
        yield from (skipped(name, "see store") for name in (*OPERATIONS, "store_clock"))
        return
    yield ok("store", f"{storage.endpoint} answers and has the bucket {storage.bucket}")
    key, body = f"{PREFIX}{uuid4().hex}", uuid4().hex.encode()
    try:
        written = _write(store, runner, key, body)
        yield written
        if written.state is State.OK:
            yield from _read(s, store, runner, key, body)
            yield _list(store, runner, key)
        else:
            yield from (skipped(name, "nothing was written") for name in ("store_read", "store_clock", "store_list"))
    finally:
        yield _delete(store, runner, key)


def _write(store: ObjectStore, runner: asyncio.Runner, key: str, body: bytes) -> Finding:
    try:
        runner.run(store.put(key, body, "text/plain"))
    except WorkerError as error:
        advice = ALLOW.format("write", "s3:PutObject") + "; see that its disk has room"
        return fault("store_write", _told(error), advice)
    return ok("store_write", key)


def _read(s: Surroundings, store: ObjectStore, runner: asyncio.Runner, key: str, body: bytes) -> Iterator[Finding]:
    try:
        before = s.unix_time()
        found = runner.run(store.stat(key))
        after = s.unix_time()
        read = runner.run(store.get(key))
    except WorkerError as error:
        yield fault("store_read", _told(error), ALLOW.format("read", "s3:GetObject"))
        return
    if read != body:
        told = f"{key} holds {len(read)} other bytes than were written"
        yield fault("store_read", told, "see what stands between: a cache, a proxy that changes bodies")
    else:
        yield ok("store_read", "it holds what was written")
    if found is None or found.answered_at is None:
        yield skipped("store_clock", "the store sends no date")
    else:
        yield clock_finding("store_clock", "the object store", found.answered_at.timestamp(), before, after)


def _list(store: ObjectStore, runner: asyncio.Runner, key: str) -> Finding:
    try:
        listed = store.list_objects(PREFIX)
    except WorkerError as error:
        return fault("store_list", _told(error), ALLOW.format("list", "s3:ListBucket"))
    except ValueError as error:  # minio's, of a listing that is none of S3's
        return fault("store_list", f"its listing is not understood: {error}", NO_LISTING)
    left = left_behind(listed, key)
    if left:
        runner.run(store.delete_many(left))
    if key not in {found.key for found in listed}:
        told = f"{PREFIX} is listed without the object that was written just now ({len(listed)} others)"
        return fault("store_list", told, NO_LISTING)
    removed = f"; {len(left)} that an earlier doctor left are removed" if left else ""
    return ok("store_list", f"it is listed{removed}")


def left_behind(listed: list[ListedObject], key: str) -> list[str]:
    """Keys of objects that a doctor which was killed left, by the store's clock, which our own object tells."""
    now = next((found.modified for found in listed if found.key == key), None)
    if now is None:
        return []
    return [found.key for found in listed if found.modified is not None and now - found.modified > LEFT_AFTER]


def _delete(store: ObjectStore, runner: asyncio.Runner, key: str) -> Finding:
    try:
        runner.run(store.delete(key))
        is_left = runner.run(store.stat(key)) is not None
    except WorkerError as error:
        return fault("store_delete", f"{key} stays: {_told(error)}", ALLOW.format("delete", "s3:DeleteObject"))
    if is_left:
        told = f"{key} is still there though its deletion was confirmed"
        return fault("store_delete", told, "see the bucket's lock and versioning: what is deleted must be gone")
    return ok("store_delete", "it is deleted")


def _fault_of(error: WorkerError) -> Finding:
    if isinstance(error, StorageRefusedError):
        return split_fault("store", error.detail)
    advice = "see that the store runs, and check storage.endpoint, storage.secure and the network between"
    return fault("store", _told(error), advice)


def _told(error: WorkerError) -> str:
    return " ".join((error.detail or error.message).split())
