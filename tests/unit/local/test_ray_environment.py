"""The environment that Ray is started in."""

from pathlib import Path

from serve_app.local.ray_environment import ensure_token


def test_the_token_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "ray-token"
    ensure_token(path)
    token = path.read_text()
    ensure_token(path)
    assert path.read_text() == token and len(token) == 64
    assert path.stat().st_mode & 0o777 == 0o600
