"""Videos out of a real store."""

from urllib.parse import parse_qs, urlsplit

import pytest

from deployments.errors import PermanentError
from deployments.keys import video_key
from deployments.settings import StorageSettings
from deployments.storage.object_store import ObjectStore
from serve_app.ingress.content import VideoStorage


async def test_videos_and_their_pictures_are_found_and_streamed(
    storage_settings: StorageSettings, object_store: ObjectStore
) -> None:
    videos = VideoStorage(storage_settings)
    await videos.ping()
    assert await videos.stat_video("video_1", "video") is None
    await object_store.put(video_key("video_1"), b"moving", "video/mp4")
    await object_store.put(video_key("video_1", "thumbnail"), b"still", "image/webp")
    await object_store.put(video_key("video_1", "spritesheet"), b"stills", "image/webp")
    info = await videos.stat_video("video_1", "video")
    assert info is not None and (info.size, info.content_type) == (6, "video/mp4")
    assert b"".join([c async for c in videos.stream_video("video_1", "video", 1, 3)]) == b"ovi"
    assert b"".join([c async for c in videos.stream_video("video_1", "thumbnail")]) == b"still"
    assert b"".join([c async for c in videos.stream_video("video_1", "spritesheet")]) == b"stills"
    with pytest.raises(PermanentError, match="video_2"):
        await anext(videos.stream_video("video_2", "video"))


def test_without_a_public_endpoint_there_are_no_links(storage_settings: StorageSettings) -> None:
    assert VideoStorage(storage_settings).signed_link("video_1", "video", "video_1.mp4", "video/mp4") is None


def test_a_link_is_for_the_public_host_as_long_as_the_settings_say(storage_settings: StorageSettings) -> None:
    public = {"public_endpoint": "videos.example.com", "public_secure": True, "signed_link_s": 120}
    videos = VideoStorage(storage_settings.model_copy(update=public))
    link = videos.signed_link("video_1", "spritesheet", "video_1.sprites.webp", "image/webp")
    assert link is not None
    url = urlsplit(link)
    assert (url.scheme, url.netloc) == ("https", "videos.example.com")
    assert url.path == f"/{storage_settings.bucket}/{video_key('video_1', 'spritesheet')}"
    query = parse_qs(url.query)
    assert query["X-Amz-Expires"] == ["120"]
    assert query["response-content-type"] == ["image/webp"]
    assert query["response-content-disposition"] == ["attachment; filename*=UTF-8''video_1.sprites.webp"]
