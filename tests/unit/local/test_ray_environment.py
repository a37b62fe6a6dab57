"""The environment that Ray is started in."""

from pathlib import Path

import pytest

from serve_app.local.ray_environment import ensure_token, front_connections


def test_the_token_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "ray-token"
    ensure_token(path)
    token = path.read_text()
    ensure_token(path)
    assert path.read_text() == token and len(token) == 64
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("left", [b"", b" \n"])
def test_a_file_without_a_token_gets_one(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / "ray-token"
    path.write_bytes(left)
    path.chmod(0o644)
    ensure_token(path)
    assert len(path.read_text()) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    assert [child.name for child in tmp_path.iterdir()] == ["ray-token"]


@pytest.mark.parametrize(("open_files", "connections"), [(1024, 369), (4096, 1598), (10_270, 4068), (10**9, 4096)])
def test_the_front_takes_no_more_connections_than_it_may_have_files(open_files: int, connections: int) -> None:
    assert front_connections(open_files) == connections
