"""Parts of files, on disk and on their way."""

import tempfile
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.client.download import Part, download, find_part, part_path
from serve_app.client.errors import UnreachableError
from serve_app.client.http import Client


async def test_a_file_that_came_short_is_not_taken_for_whole(tmp_path: Path) -> None:
    """Where no Content-Length says it, as when a proxy sends the rest in chunks."""

    async def short(request: httpx.Request) -> httpx.Response:
        range_ = {"Content-Range": "bytes 0-9/10", "Transfer-Encoding": "chunked", "ETag": '"tag"'}
        return httpx.Response(206, headers=range_, stream=httpx.ByteStream(b"12345"))

    async with Client(patience_s=0.3, transport=httpx.MockTransport(short)) as client:
        with pytest.raises(UnreachableError, match="5 of 10 bytes"):
            await download(client, "video_1", tmp_path / "clip.mp4")
    assert not (tmp_path / "clip.mp4").exists()


@given(st.binary(min_size=1, max_size=60).map(lambda b: f'"{b.hex()}-2"'))
def test_a_part_tells_what_it_is_a_part_of(tag: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "clip.mp4"
        part_path(target, "video_1", tag).write_bytes(b"12345")
        assert find_part(target, "video_2") is None
        part = find_part(target, "video_1")
        assert part == Part(part_path(target, "video_1", tag), tag) and part.resume_at == 4
