"""Files against lists of SHA-256, and when a large file is hashed again."""

import hashlib
import os
from pathlib import Path

import pytest

from deployments.errors import PermanentError
from deployments.storage.models.file_hashes import HashRecord, check_hashes, known_hashes, listed_hashes


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_list_of_checksums_is_read() -> None:
    text = f"{'a' * 64}  vae/model.safetensors\n{'B' * 64} *./b c\n# a remark\nshort  x\n"
    assert listed_hashes(text) == {"vae/model.safetensors": "a" * 64, "b c": "b" * 64}


def test_the_list_in_a_folder_and_the_names_in_the_hubs_cache_are_known(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / sha256(b"weights")
    blob.parent.mkdir()
    blob.write_bytes(b"weights")
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "w").symlink_to(blob)
    (folder / "c").write_bytes(b"{}")
    assert known_hashes(folder, ["w", "c"]) == {"w": sha256(b"weights")}
    (folder / "SHA256SUMS").write_text(f"{'c' * 64}  c\n{'d' * 64}  other\n")
    assert known_hashes(folder, ["w", "c"]) == {"w": sha256(b"weights"), "c": "c" * 64}


def test_a_changed_byte_is_told_with_the_name_of_the_file(tmp_path: Path) -> None:
    record = HashRecord(tmp_path / "hashes")
    (tmp_path / "w").write_bytes(b"weights")
    check_hashes(tmp_path, {"w": sha256(b"weights")}, record)
    (tmp_path / "w").write_bytes(b"weighty")
    with pytest.raises(PermanentError, match=r"/w is damaged: its SHA-256 is") as caught:
        check_hashes(tmp_path, {"w": sha256(b"weights")}, record)
    assert caught.value.code == "model_incomplete"
    with pytest.raises(PermanentError, match=r"/x cannot be read"):
        check_hashes(tmp_path, {"x": "0" * 64}, record)
    assert not (tmp_path / "hashes").exists()  # only those of large files are kept


def test_a_large_file_is_hashed_again_only_when_it_seems_changed_or_on_demand(tmp_path: Path) -> None:
    record = HashRecord(tmp_path / "hashes", kept_from_bytes=1)
    path = tmp_path / "w"
    path.write_bytes(b"weights")
    assert record.sha256(path) == sha256(b"weights")
    (note,) = (tmp_path / "hashes").iterdir()
    note.write_text(note.read_text().replace(sha256(b"weights"), "kept"))
    assert record.sha256(path) == "kept"
    assert HashRecord(record.folder, again=True, kept_from_bytes=1).sha256(path) == sha256(b"weights")
    before = path.stat()
    path.write_bytes(b"weighty")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy that keeps the time
    assert record.sha256(path) == sha256(b"weighty")
    note.write_text("{")
    assert record.sha256(path) == sha256(b"weighty")


def test_a_record_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "hashes").write_text("a file")
    (tmp_path / "w").write_bytes(b"weights")
    assert HashRecord(tmp_path / "hashes", kept_from_bytes=1).sha256(tmp_path / "w") == sha256(b"weights")


def test_the_chunks_of_a_file_are_hashed_and_kept(tmp_path: Path) -> None:
    record = HashRecord(tmp_path / "hashes", kept_from_bytes=1)
    path = tmp_path / "w"
    path.write_bytes(b"weights")
    expected = (sha256(b"weig"), sha256(b"hts"))
    assert record.chunks(path, 4) == expected
    record.keep(path, 4, ("kept", "too"), sha256="whole")
    assert record.chunks(path, 4) == ("kept", "too") and record.sha256(path) == "whole"
    assert record.chunks(path, 3) == (sha256(b"wei"), sha256(b"ght"), sha256(b"s"))
    assert HashRecord(record.folder, again=True, kept_from_bytes=1).chunks(path, 4) == expected
    path.write_bytes(b"weightier")
    assert record.sha256(path) == sha256(b"weightier")


def test_the_notes_of_files_that_are_gone_are_removed(tmp_path: Path) -> None:
    record = HashRecord(tmp_path / "hashes", kept_from_bytes=1)
    for name in ("gone", "there"):
        (tmp_path / name).write_bytes(b"weights")
        record.sha256(tmp_path / name)
    (tmp_path / "gone").unlink()
    record.forget_missing()
    (note,) = record.folder.iterdir()
    assert "there" in note.read_text()
