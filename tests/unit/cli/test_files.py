"""The names of files, and where files go."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.cli.files import NAME_BYTES, SLUG_BYTES, file_name, is_file_name, slug, target_path


@given(st.text(max_size=300), st.text("0123456789abcdef", min_size=32, max_size=32))
def test_names_of_files_are_names_of_files(prompt: str, digits: str) -> None:
    name = file_name(prompt, f"video_{digits}", ".mp4")
    assert is_file_name(name.removesuffix(".mp4")) and name.endswith(f"{digits[-8:]}.mp4")
    assert len(slug(prompt).encode()) <= SLUG_BYTES


@given(st.text(max_size=300))
def test_a_file_name_stays_in_its_folder(name: str) -> None:
    if is_file_name(name):
        assert (Path("folder") / f"{name}.mp4").parent == Path("folder")
        assert len(name.encode()) <= NAME_BYTES and not name.startswith(".")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a\0b", "a\nb", "\ud800", "ä" * 101])
def test_these_are_no_file_names(name: str) -> None:
    assert not is_file_name(name)


def test_a_file_goes_where_it_was_asked_for(tmp_path: Path) -> None:
    name = "a-red-circle-90abcdef.mp4"
    arguments = ("A red, circle!", "video_1234567890abcdef", ".mp4")
    assert target_path(None, *arguments) == Path(name)
    assert target_path(tmp_path, *arguments) == tmp_path / name
    assert target_path(tmp_path / "x.mp4", *arguments) == tmp_path / "x.mp4"
