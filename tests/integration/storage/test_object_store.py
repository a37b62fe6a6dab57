"""ObjectStore against a real SeaweedFS, also one that is away, killed, or refuses."""

import asyncio
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path

import pytest
import urllib3
from pydantic import SecretStr

from deployments.errors import PermanentError, StorageRefusedError, StorageUnavailableError, WorkerError
from deployments.settings import StorageSettings
from deployments.storage.object_store import CHUNK_BYTES, PAGE, PART_BYTES, ObjectStore
from serve_app.local.preflight import free_ports


async def _collect(store: ObjectStore, key: str, offset: int = 0, length: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in store.stream(key, offset, length)])


async def test_what_is_put_is_got_and_known(object_store: ObjectStore) -> None:
    await object_store.put("known/a", b"hello", "video/mp4")
    assert await object_store.get("known/a") == b"hello"
    info = await object_store.stat("known/a")
    assert info is not None
    assert (info.size, info.content_type) == (5, "video/mp4")
    assert info.etag and '"' not in info.etag
    assert info.modified is not None and info.modified.tzinfo is not None


async def test_a_second_put_replaces_and_changes_the_etag(object_store: ObjectStore) -> None:
    await object_store.put("again", b"one", "text/plain")
    first = await object_store.stat("again")
    await object_store.put("again", b"two!", "text/plain")
    second = await object_store.stat("again")
    assert await object_store.get("again") == b"two!"
    assert first is not None and second is not None and first.etag != second.etag


async def test_an_empty_object(object_store: ObjectStore) -> None:
    await object_store.put("empty", b"", "text/plain")
    assert await object_store.get("empty") == b""
    assert await _collect(object_store, "empty") == b""


async def test_what_is_absent(object_store: ObjectStore) -> None:
    assert await object_store.stat("absent") is None
    await object_store.delete("absent")
    with pytest.raises(PermanentError, match="absent") as caught:
        await object_store.get("absent")
    assert caught.value.code == "object_missing"
    with pytest.raises(PermanentError, match="absent"):
        await _collect(object_store, "absent")


async def test_a_deleted_object_is_gone(object_store: ObjectStore) -> None:
    await object_store.put("gone", b"x", "text/plain")
    await object_store.delete("gone")
    assert await object_store.stat("gone") is None


async def test_a_file_of_several_parts(object_store: ObjectStore, tmp_path: Path) -> None:
    data = bytes(range(256)) * (PART_BYTES // 256) + b"the rest"
    path = tmp_path / "big"
    path.write_bytes(data)
    await object_store.put_file("big", path, "application/octet-stream")
    assert await object_store.get("big") == data


@pytest.mark.parametrize(("offset", "length"), [(0, None), (0, 1), (5, 700_000), (999_999, None), (7, 0)])
async def test_streams_a_part(object_store: ObjectStore, offset: int, length: int | None) -> None:
    data = bytes(i * 7 % 251 for i in range(1_000_000))
    await object_store.put("streamed", data, "video/mp4")
    end = None if length is None else offset + length
    assert await _collect(object_store, "streamed", offset, length) == data[offset:end]


async def test_a_stream_comes_in_small_chunks_and_frees_its_connection(object_store: ObjectStore) -> None:
    await object_store.put("stopped", bytes(20 * CHUNK_BYTES), "video/mp4")
    for _ in range(100):
        async with aclosing(object_store.stream("stopped")) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                assert 0 < len(chunk) <= CHUNK_BYTES
                break
    assert await object_store.get("stopped") == bytes(20 * CHUNK_BYTES)


async def test_many_at_once(object_store: ObjectStore) -> None:
    await asyncio.gather(*(object_store.put(f"many/{i:03}", bytes([i]), "text/plain") for i in range(100)))
    assert await object_store.list_keys("many/") == [f"many/{i:03}" for i in range(100)]
    assert await asyncio.gather(*(object_store.get(f"many/{i:03}") for i in range(100))) == [
        bytes([i]) for i in range(100)
    ]


async def test_a_listing_of_several_pages_may_be_deleted_while_it_is_read(object_store: ObjectStore) -> None:
    keys = [f"paged/{i % 50:02}/{i:05}" for i in range(2 * PAGE + 500)]
    for first in range(0, len(keys), 100):
        await asyncio.gather(*(object_store.put(key, b"x", "text/plain") for key in keys[first : first + 100]))
    await object_store.put("paged-beside", b"x", "text/plain")
    listed: list[str] = []
    async for page in object_store.list_pages("paged/"):
        assert 0 < len(page) <= PAGE
        assert all(entry.modified is not None and entry.modified.tzinfo is not None for entry in page)
        listed += [entry.key for entry in page]
        await object_store.delete_many([entry.key for entry in page])
    assert sorted(listed) == sorted(keys)
    assert await object_store.list_keys("paged") == ["paged-beside"]


async def test_an_empty_listing_has_no_page(object_store: ObjectStore) -> None:
    assert [page async for page in object_store.list_pages("nothing/")] == []


async def test_many_are_deleted_in_more_than_one_request_whether_they_are_there_or_not(
    object_store: ObjectStore,
) -> None:
    await object_store.put("last", b"x", "text/plain")
    await object_store.delete_many([f"not/there/{i}" for i in range(PAGE)] + ["last"])
    assert await object_store.stat("last") is None
    await object_store.delete_many([])


async def test_the_store_tells_its_clock(object_store: ObjectStore) -> None:
    await object_store.put("clock", b"x", "text/plain")
    info = await object_store.stat("clock")
    assert info is not None and info.answered_at is not None and info.modified is not None
    # Both tell whole seconds.
    assert timedelta(0) <= info.answered_at - info.modified < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("code", "error"), [("AccessDenied", StorageRefusedError), ("InternalError", StorageUnavailableError)]
)
async def test_what_could_not_be_deleted_is_said(
    storage_settings: StorageSettings, code: str, error: type[WorkerError]
) -> None:
    body = f"<DeleteResult><Error><Key>kept</Key><Code>{code}</Code><Message>no</Message></Error></DeleteResult>"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"</Delete>")
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        store = ObjectStore(storage_settings.model_copy(update={"endpoint": f"127.0.0.1:{port}"}))
        with pytest.raises(error, match=f"kept: {code}"):
            await store.delete_many(["kept"])


async def test_a_listing_tells_sizes_and_etags(object_store: ObjectStore) -> None:
    for name in ("config.json", "weights"):
        await object_store.put(f"models/tiny/{name}", name.encode(), "text/plain")
    await object_store.put("models/tiny-2/other", b"not this one", "text/plain")
    listed = await asyncio.to_thread(object_store.list_objects, "models/tiny/")
    assert [(found.key, found.size) for found in listed] == [
        ("models/tiny/config.json", 11),
        ("models/tiny/weights", 7),
    ]
    info = await object_store.stat("models/tiny/weights")
    assert info is not None and listed[1].etag == info.etag
    assert await asyncio.to_thread(object_store.list_objects, "models/none/") == []


async def test_a_range_tells_the_etag_of_the_whole_object(object_store: ObjectStore, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * (PART_BYTES // 256) + b"the rest")  # of several parts, as large files are
    await object_store.put_file("ranges/weights", path, "application/octet-stream")

    def read(offset: int, length: int) -> tuple[str, bytes]:
        with object_store.open_range("ranges/weights", offset, length) as found:
            return found.etag, b"".join(found.chunks)

    (listed,) = await asyncio.to_thread(object_store.list_objects, "ranges/")
    assert await asyncio.to_thread(read, PART_BYTES - 2, 6) == (listed.etag, b"\xfe\xffthe ")
    with pytest.raises(PermanentError, match="absent") as caught:
        await asyncio.to_thread(object_store.open_range("absent", 0, 1).__enter__)
    assert caught.value.code == "object_missing"


async def _ask(method: str, url: str, **headers: str) -> urllib3.BaseHTTPResponse:
    return await asyncio.to_thread(urllib3.request, method, url, headers=headers)


@pytest.fixture
def public_store(storage_settings: StorageSettings) -> ObjectStore:
    """The session's store, which clients reach under another name."""
    assert storage_settings.endpoint is not None
    public = storage_settings.endpoint.replace("127.0.0.1", "localhost")
    assert public != storage_settings.endpoint
    return ObjectStore(storage_settings.model_copy(update={"public_endpoint": public, "public_secure": False}))


async def test_a_presigned_link_needs_no_keys_and_names_the_file(object_store: ObjectStore) -> None:
    await object_store.put("linked", b"a video", "text/plain")
    response = await _ask("GET", object_store.presigned_get("linked", 60, "mein vidéo.mp4", "video/mp4"))
    assert response.data == b"a video"
    assert "mein%20vid%C3%A9o.mp4" in response.headers["content-disposition"]
    assert response.headers["content-type"] == "video/mp4"


async def test_a_link_is_signed_for_the_public_host(
    public_store: ObjectStore, storage_settings: StorageSettings
) -> None:
    await public_store.put("public", bytes(range(100)), "video/mp4")
    url = public_store.presigned_get("public", 60, "a.mp4", "video/mp4")
    assert url.startswith("http://localhost:")
    assert (await _ask("GET", url)).data == bytes(range(100))
    part = await _ask("GET", url, Range="bytes=10-19")
    assert (part.status, part.data, part.headers["content-range"]) == (206, bytes(range(10, 20)), "bytes 10-19/100")
    assert storage_settings.endpoint is not None
    other_host = url.replace(url.split("/")[2], storage_settings.endpoint)
    assert (await _ask("GET", other_host)).status == 403


async def test_a_forged_link_is_refused(public_store: ObjectStore) -> None:
    await public_store.put("mine", b"mine", "video/mp4")
    await public_store.put("theirs", b"theirs", "video/mp4")
    url = public_store.presigned_get("mine", 60, "a.mp4", "video/mp4")
    assert (await _ask("GET", url)).data == b"mine"
    last = "0" if url[-1] != "0" else "1"
    forged = {
        "unsigned": url.split("?")[0],
        "another object": url.replace("/mine?", "/theirs?"),
        "longer": url.replace("X-Amz-Expires=60", "X-Amz-Expires=6000"),
        "another type": url.replace("video%2Fmp4", "text%2Fhtml"),
        "another signature": url[:-1] + last,
    }
    for what, link in forged.items():
        assert link != url, what
        assert (await _ask("GET", link)).status == 403, what
    for method in ("PUT", "DELETE"):
        assert (await _ask(method, url)).status == 403
    assert await public_store.get("mine") == b"mine"


async def test_a_link_expires(public_store: ObjectStore) -> None:
    await public_store.put("short", b"x", "video/mp4")
    url = public_store.presigned_get("short", 1, "a.mp4", "video/mp4")
    async with asyncio.timeout(300):
        while (await _ask("GET", url)).status != 403:
            await asyncio.sleep(0.1)


async def test_a_link_asks_nothing_of_the_store(storage_settings: StorageSettings) -> None:
    away = {"endpoint": f"127.0.0.1:{free_ports(1)[0]}", "public_endpoint": "videos.example.com:8443"}
    store = ObjectStore(storage_settings.model_copy(update=away))
    assert store.presigned_get("a", 60, "a.mp4", "video/mp4").startswith("https://videos.example.com:8443/")


@pytest.mark.parametrize("field", ["access_key", "secret_key"])
async def test_wrong_keys_are_refused(storage_settings: StorageSettings, field: str) -> None:
    wrong = ObjectStore(storage_settings.model_copy(update={field: SecretStr("wrong")}))
    for attempt in (wrong.get("known"), wrong.put("known", b"", "text/plain"), wrong.list_keys("")):
        with pytest.raises(StorageRefusedError) as caught:
            await attempt
        assert caught.value.code == "storage_refused"
        assert str(storage_settings.endpoint) in str(caught.value)
        assert "127.0.0.1" not in caught.value.message and wrong.bucket not in caught.value.message


async def test_a_bucket_is_made_once(storage_settings: StorageSettings) -> None:
    store = ObjectStore(storage_settings.model_copy(update={"bucket": "another-bucket"}))
    with pytest.raises(StorageRefusedError, match="no bucket 'another-bucket'"):
        await store.ping()
    await asyncio.gather(store.ensure_bucket(), store.ensure_bucket())
    await store.ping()


async def test_a_store_that_is_away(storage_settings: StorageSettings) -> None:
    nowhere = f"127.0.0.1:{free_ports(1)[0]}"
    store = ObjectStore(storage_settings.model_copy(update={"endpoint": nowhere}))
    with pytest.raises(StorageUnavailableError, match=nowhere):
        await store.get("x")


async def test_a_store_that_fails_half_way(storage_settings: StorageSettings) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        store = ObjectStore(storage_settings.model_copy(update={"endpoint": f"127.0.0.1:{port}"}))
        with pytest.raises(StorageUnavailableError):
            await store.get("x")
        with pytest.raises(StorageUnavailableError):
            await _collect(store, "x")


async def test_a_store_that_is_ill_is_asked_again(storage_settings: StorageSettings) -> None:
    asked = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while await reader.readuntil(b"\r\n\r\n"):
            asked += 1
            status = b"503 Service Unavailable" if asked < 3 else b"200 OK"
            writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 2\r\n\r\nok")
            await writer.drain()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        store = ObjectStore(storage_settings.model_copy(update={"endpoint": f"127.0.0.1:{port}"}))
        assert await store.get("x") == b"ok"
        assert asked == 3
        store.close()


async def test_a_store_that_hangs_is_not_asked_again(storage_settings: StorageSettings) -> None:
    asked = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        endpoint = {"endpoint": f"127.0.0.1:{port}"}
        store = ObjectStore(storage_settings.model_copy(update=endpoint), read_timeout_s=0.1)
        with pytest.raises(StorageUnavailableError, match="timed out"):
            await store.get("x")
    assert asked == 1


def test_settings_without_an_endpoint_are_refused() -> None:
    with pytest.raises(ValueError, match="endpoint"):
        ObjectStore(StorageSettings())
