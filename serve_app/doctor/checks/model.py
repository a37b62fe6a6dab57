"""The model and its LoRAs: there, whole by their headers, and by their hashes where these are known."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from deployments.errors import MochiServeError, PermanentError, StorageUnavailableError
from deployments.storage.models.bucket import BucketFiles
from deployments.storage.models.chosen_files import names_in_folder
from deployments.storage.models.file_hashes import (
    KEPT_FROM_BYTES,
    HashRecord,
    check_hashes,
    known_hashes,
    listed_hashes,
)
from deployments.storage.models.layout import FolderFiles, ModelFiles
from deployments.storage.models.lora_files import check_lora_names
from deployments.storage.models.store import HASHES, SourceKind, default_cache, source_kind
from deployments.storage.models.weight_files import CHECKSUMS, PARTS, needed_files
from serve_app.doctor.checks.model_bytes import model_files
from serve_app.doctor.finding import Finding, fault, ok, skipped, split_fault, warning
from serve_app.doctor.surroundings import Surroundings
from serve_app.errors import ConfigError, StartupError
from serve_app.local.model_source import (
    check_model_place,
    check_model_source,
    check_protein_place,
    check_protein_source,
)

READ_AT_ONCE_BYTES = 500_000_000
"""Of files whose hashes are not known yet, that are read without --deep."""
DEEP_LIMIT_S = 6 * 3600.0
COPY_AGAIN = "fetch or copy it again"


def check_model(s: Surroundings) -> Iterator[Finding]:
    """What a start checks of it, and the hashes that replicas compare."""
    model, dtypes = s.settings.model, s.settings.dtypes
    try:
        check_model_source(model, dtypes)
        check_model_place(model, dtypes, s.storage or s.settings.storage)
        files = model_files(s)
    except (ConfigError, StartupError, PermanentError) as error:
        yield split_fault("model", str(error))
        yield skipped("model_hashes", "see model")
        return
    except StorageUnavailableError as error:
        yield fault("model", error.detail, "see store; a model in the object store is fetched from there")
        yield skipped("model_hashes", "see model")
        return
    if files is None:
        yield _elsewhere(s)
        yield skipped("model_hashes", "it is not here yet: replicas compare them when they have fetched it")
        return
    yield ok("model", f"{model.name} in {files.where} is whole by its headers")
    yield _hashes(s, files)


def check_loras(s: Surroundings) -> Iterator[Finding]:
    """Those in a folder; others are looked at by the replicas."""
    loras, here = s.settings.model.loras, []
    if not loras:
        yield skipped("loras", "the profile names none")
        return
    try:
        for name, lora in loras.items():
            if source_kind(lora.source, f"model.loras.{name}.source") is SourceKind.FOLDER:
                folder = Path(lora.source).expanduser()
                names = names_in_folder(f"model.loras.{name}", folder)
                check_lora_names(name, lora, names)
                check_hashes(folder, known_hashes(folder, names), _record(s))
                here.append(name)
    except PermanentError as error:
        yield split_fault("loras", error.message)
        return
    away = [name for name in loras if name not in here]
    yield ok("loras", f"{len(here)} are here" + (f"; fetched by the first replica: {', '.join(away)}" if away else ""))


def check_proteins(s: Surroundings) -> Iterator[Finding]:
    """What a start checks of the protein model, where the profile has one."""
    proteins = s.settings.proteins
    if proteins is None:
        return
    try:
        check_protein_source(proteins)
        check_protein_place(proteins, s.storage or s.settings.storage)
    except (ConfigError, StartupError) as error:
        yield split_fault("proteins", str(error))
        return
    yield ok("proteins", f"{proteins.served_name} ({proteins.source}) is there, by the headers and lists of its files")


def _elsewhere(s: Surroundings) -> Finding:
    source = s.settings.model.source
    if source_kind(source) is SourceKind.HUB:
        return ok("model", f"{source} is on the hub, and there is room for it; the first start fetches it")
    return skipped("model", f"{source} is in the server's own store, which does not run now")


def _hashes(s: Surroundings, files: ModelFiles) -> Finding:
    try:
        if isinstance(files, BucketFiles):
            return _bucket_hashes(s, files)
        if isinstance(files, FolderFiles):
            return _folder_hashes(s, files)
    except PermanentError as error:
        return split_fault("model_hashes", error.message)
    except (MochiServeError, OSError) as error:
        return fault(
            "model_hashes", f"the weights could not be read: {error}", "see the disk or the store that has them"
        )
    return skipped("model_hashes", "replicas compare them")


def _folder_hashes(s: Surroundings, files: FolderFiles) -> Finding:
    needed = needed_files(files.sizes, PARTS, s.settings.dtypes)
    known, record = known_hashes(files.folder, needed), _record(s)
    if not known:
        told = f"{files.where} has no {CHECKSUMS}: a changed byte cannot be seen"
        return warning("model_hashes", told, f"write one where it is whole: sha256sum */* > {CHECKSUMS}")
    now: dict[str, str] = {}
    later, budget = 0, READ_AT_ONCE_BYTES
    for name in sorted(known, key=lambda name: files.sizes.get(name, 0)):
        unread = record.unread_bytes(files.folder / name)
        if unread > budget and not s.deep:
            later += unread
            continue
        budget -= unread
        now[name] = known[name]
    check_hashes(files.folder, now, record)
    return _compared(len(now), len(known), later)


def _bucket_hashes(s: Surroundings, files: BucketFiles) -> Finding:
    if CHECKSUMS not in files.sizes:
        told = f"{files.where} has no {CHECKSUMS}: a changed byte cannot be seen"
        return warning("model_hashes", told, "upload what `mochi-serve model prepare` writes")
    needed = needed_files(files.sizes, PARTS, s.settings.dtypes)
    listed = listed_hashes(files.read(CHECKSUMS, 0, files.sizes[CHECKSUMS]).decode(errors="replace"))
    known = {name: listed[name] for name in needed if name in listed}
    small = {name: sha for name, sha in known.items() if s.deep or files.sizes[name] < KEPT_FROM_BYTES}
    if wrong := _first_wrong(files, small):
        return fault("model_hashes", f"{files.where}/{wrong} is damaged: its SHA-256 is another one", COPY_AGAIN)
    return _compared(len(small), len(known), sum(files.sizes[name] for name in known if name not in small))


def _first_wrong(files: BucketFiles, expected: Mapping[str, str]) -> str | None:
    for name, sha256 in expected.items():
        digest = hashlib.sha256()
        if files.sizes[name]:
            with files.open(name, 0, files.sizes[name]) as chunks:
                for chunk in chunks:
                    digest.update(chunk)
        if digest.hexdigest() != sha256:
            return name
    return None


def _compared(count: int, known: int, later: int) -> Finding:
    told = f"{count} of {known} known SHA-256 are right"
    if later:
        told += f"; {later / 1e9:.1f} GB were not read: --deep reads them, and so does the first start"
    return ok("model_hashes", told)


def _record(s: Surroundings) -> HashRecord:
    return HashRecord(default_cache() / HASHES, again=s.deep)
