"""What the server makes belongs to its owner alone."""

import os
from pathlib import Path

import pytest

from serve_app.errors import StartupError
from serve_app.local.private_files import close_to_others, make_private_folder, owner_only, temp_base


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_what_is_made_inside_is_the_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with owner_only():
            (tmp_path / "inside").write_text("")
        (tmp_path / "after").write_text("")
    finally:
        os.umask(before)
    assert (mode(tmp_path / "inside"), mode(tmp_path / "after")) == (0o600, 0o644)


def test_a_data_folder_that_was_open_is_closed_and_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "objects").mkdir(mode=0o755)
    (tmp_path / "jobs.db").touch(mode=0o644)
    (tmp_path / "ray-token").touch(mode=0o600)
    (tmp_path / ".ray-token.1f2e.new").touch(mode=0o600)
    for name in ("server.log", "server.log.1", "server.log.4"):
        (tmp_path / name).touch(mode=0o600)
    assert set(close_to_others(tmp_path)) == {tmp_path, tmp_path / "objects", tmp_path / "jobs.db"}
    assert [mode(path) for path in (tmp_path, tmp_path / "objects", tmp_path / "jobs.db")] == [0o700, 0o700, 0o600]
    assert close_to_others(tmp_path) == []


def test_what_is_not_the_servers_stays_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "theirs").touch(mode=0o644)
    (tmp_path / "jobs.db").touch(mode=0o644)
    (tmp_path / "objects.log").symlink_to(tmp_path / "theirs")
    assert close_to_others(tmp_path) == [tmp_path / "jobs.db"]
    assert (mode(tmp_path), mode(tmp_path / "theirs"), mode(tmp_path / "jobs.db")) == (0o755, 0o644, 0o600)


def test_a_folder_is_made_for_its_owner_and_closed_if_it_was_open(tmp_path: Path) -> None:
    make_private_folder(tmp_path / "a" / "made")
    assert mode(tmp_path / "a" / "made") == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    make_private_folder(tmp_path / "open")
    assert mode(tmp_path / "open") == 0o700


def test_a_folder_behind_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    with pytest.raises(StartupError, match="link belongs to somebody else"):
        make_private_folder(tmp_path / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 65_534, 65_534)
    with pytest.raises(StartupError, match="theirs belongs to somebody else"):
        make_private_folder(tmp_path / "theirs")


@pytest.mark.parametrize(
    ("folder", "base"), [("tmp", "tmp"), ("a b", None), ("a" * 42, None), ("very/deep/folder", None)]
)
def test_sockets_lie_where_their_paths_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str, base: str | None
) -> None:
    monkeypatch.setattr("tempfile.tempdir", f"/{folder}")
    assert temp_base() == Path(f"/{base or 'tmp'}")
