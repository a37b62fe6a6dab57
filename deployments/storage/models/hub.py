"""A model from the Hugging Face hub, in the cache of the hub's own library, which goes on with half a file."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from deployments.dtypes import Dtypes, part_dtype
from deployments.errors import PermanentError
from deployments.storage.fetching.cache_room import free_bytes
from deployments.storage.models import positions
from deployments.storage.models.layout import (
    CONFIG,
    SCHEDULER_CONFIG,
    FolderFiles,
    ModelFiles,
    check_classes,
    check_layout,
)
from deployments.storage.models.weight_files import CHECKSUMS, INDEX, STEMS, needed_files
from deployments.storage.object_store import Store

if TYPE_CHECKING:
    from huggingface_hub import DryRunFileInfo

RANGE_RETRIES = 3
SETTING = "model.source"  # that names the model, in errors
_logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Hub:
    """Where the hub is, and where its models are kept; the library's own settings (HF_ENDPOINT, HF_HOME) by default."""

    endpoint: str | None = None
    cache: Path | None = None
    free_bytes: Callable[[Path], int] = free_bytes  # on the disk of a folder

    @property
    def folder(self) -> Path:
        from huggingface_hub import constants

        return self.cache or Path(constants.HF_HUB_CACHE)


class Pins(Protocol):
    """Which commit of a hub model is used where the settings name none."""

    def read(self, source: str) -> str | None:
        """The commit that was written last."""

    def write(self, source: str, commit: str) -> None:
        """Write it down for all later starts."""


class StorePins(Pins):
    """In the object store, so that the replicas of all machines use one commit. Blocks, also inside a running loop."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, source: str) -> str | None:
        try:
            with ThreadPoolExecutor(1) as pool:
                data = pool.submit(lambda: asyncio.run(self._store.get(pin_key(source)))).result()
            return str(json.loads(data)["commit"])
        except (ValueError, KeyError, TypeError):
            return None
        except PermanentError as error:
            if error.code == "object_missing":
                return None
            raise

    def write(self, source: str, commit: str) -> None:
        data = json.dumps({"source": source, "commit": commit}).encode()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: asyncio.run(self._store.put(pin_key(source), data, "application/json"))).result()


def pin_key(source: str) -> str:
    """The object that tells the commit of a hub model."""
    return f"models/hub/{source}.json"


def fetch_from_hub(
    source: str, revision: str | None, parts: Sequence[str], dtypes: Dtypes, hub: Hub, pins: Pins | None
) -> Path:
    """The folder of a commit with these parts, in the hub's cache. Blocks.

    Args:
        source: id of the model.
        revision: branch, tag or commit. Without one, the newest commit at the first use is written
            down and used from then on.
        parts: subfolders that are needed.
        dtypes: of the parts; of several variants of the weights, the one that fits is fetched.
        pins: where the commit is written down; nowhere without it.

    Raises:
        PermanentError: `model_not_found`, there is no such model or the hub cannot be reached and it is not in
            the cache; `model_incomplete`; `cache_unusable`, the cache cannot be written or has no room.
    """
    pinned = pins.read(source) if revision is None and pins is not None else None
    try:
        listed = _list(source, revision or pinned, parts, hub)
    except _HubAwayError as error:
        _logger.warning("the hub cannot be reached (%s): %s is looked for in %s", error, source, hub.folder)
        return _checked_positions(source, _cached(source, revision or pinned, hub, error), parts, dtypes, error)
    names = _check_listed(source, listed, parts, dtypes, hub)
    if revision is None and pinned is None and pins is not None:
        return _pin(source, listed[0].commit_hash, parts, dtypes, hub, pins)
    folder = _download(source, listed[0].commit_hash, names, hub)
    if positions.PART in parts:
        try:
            positions.bring_positions(HubFiles(source, listed, hub), folder, part_dtype(dtypes, positions.PART))
        except OSError as error:
            raise _unusable(hub, error) from error
    return folder


def fetch_files_from_hub(
    source: str,
    revision: str | None,
    patterns: Sequence[str],
    choose: Callable[[Sequence[str]], Sequence[str]],
    hub: Hub,
    pins: Pins | None,
    setting: str,
) -> Path:
    """The folder of a commit with some of its files, in the hub's cache. Blocks.

    Args:
        patterns: of the names that are looked at.
        choose: of these names, those that are needed.
        setting: that names the source, for errors.

    The others, and what is raised, as of `fetch_from_hub`. Where the hub cannot be reached, a folder of the cache may
    lack what is needed.
    """
    pinned = pins.read(source) if revision is None and pins is not None else None
    try:
        listed = _listed_files(source, revision or pinned, patterns, hub, setting)
    except _HubAwayError as error:
        _logger.warning("the hub cannot be reached (%s): %s is looked for in %s", error, source, hub.folder)
        return _cached(source, revision or pinned, hub, error, setting)
    commit = listed[0].commit_hash
    if revision is None and pinned is None and pins is not None:
        written = _written_down(source, commit, pins)
        return fetch_files_from_hub(source, written, patterns, choose, hub, None, setting)
    names = choose([file.filename for file in listed])
    _check_room(source, [file for file in listed if file.filename in names], hub)
    return _download(source, commit, names, hub)


def check_files_on_hub(
    source: str,
    revision: str | None,
    patterns: Sequence[str],
    choose: Callable[[Sequence[str]], Sequence[str]],
    hub: Hub,
    setting: str,
) -> None:
    """Check that a source has what is needed and there is room for it, or that it is here; nothing is fetched.

    The arguments, and what is raised, as of `fetch_files_from_hub`.
    """
    try:
        listed = _listed_files(source, revision, patterns, hub, setting)
    except _HubAwayError as error:
        folder = _cached(source, revision, hub, error, setting)
        choose([path.name for path in folder.iterdir()])
        return
    names = choose([file.filename for file in listed])
    _check_room(source, [file for file in listed if file.filename in names], hub)


def _pin(source: str, commit: str, parts: Sequence[str], dtypes: Dtypes, hub: Hub, pins: Pins) -> Path:
    """Write the commit down and fetch what is written then."""
    return fetch_from_hub(source, _written_down(source, commit, pins), parts, dtypes, hub, None)


def _written_down(source: str, commit: str, pins: Pins) -> str:
    """The commit that is written down now: another replica may have begun at the same moment."""
    pins.write(source, commit)
    written = pins.read(source) or commit
    _logger.info("%s has no revision in the settings: commit %s is used from now on", source, written)
    return written


def whole_snapshot(
    source: str, revision: str | None, parts: Sequence[str], dtypes: Dtypes, hub: Hub = Hub()
) -> Path | None:
    """The folder of a commit that is whole in the cache, of any commit without a revision; None if there is none."""
    return next((folder for folder in _snapshots(source, revision, hub) if _is_whole(folder, parts, dtypes)), None)


def check_hub(source: str, revision: str | None, parts: Sequence[str], dtypes: Dtypes, hub: Hub) -> None:
    """Check that a model is a Mochi pipeline and can be fetched, or is here; only small files of it are fetched.

    Without a revision any commit that is whole in the cache will do: which one is used is written in the object store.

    Raises:
        PermanentError: as `fetch_from_hub` does.
    """
    if whole_snapshot(source, revision, parts, dtypes, hub) is not None:
        return
    try:
        listed = _list(source, revision, parts, hub)
    except _HubAwayError as error:
        folder = _cached(source, revision, hub, error)
        check_layout(FolderFiles(folder), parts, dtypes)
        _checked_positions(source, folder, parts, dtypes, error)
    else:
        _check_listed(source, listed, parts, dtypes, hub)


class HubFiles(ModelFiles):
    """The files of a commit on the hub, read by ranges.

    Args:
        source: id of the model.
        listed: the hub's own list, of one commit.
    """

    def __init__(self, source: str, listed: "Sequence[DryRunFileInfo]", hub: Hub) -> None:
        self._source = source
        self._commit = listed[0].commit_hash
        self._hub = hub
        self._sizes = {file.filename: file.file_size or 0 for file in listed}

    @property
    def where(self) -> str:
        return f"{self._source} on the hub"

    @property
    def sizes(self) -> Mapping[str, int]:
        return self._sizes

    def read(self, name: str, offset: int, length: int) -> bytes:
        """As of every model. Raises PermanentError `model_not_found`: the hub did not give the range."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            hf_raise_for_status,
            http_stream_backoff,
        )

        if length == 0:
            return b""
        url = hf_hub_url(self._source, name, revision=self._commit, endpoint=self._hub.endpoint)
        wanted = {"Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}
        headers = {**build_hf_headers(), **wanted}
        try:
            with http_stream_backoff(
                "GET", url, headers=headers, follow_redirects=True, max_retries=RANGE_RETRIES
            ) as answer:
                hf_raise_for_status(answer)
                if answer.status_code != HTTPStatus.PARTIAL_CONTENT:
                    raise OSError(f"the answer to a range is {answer.status_code}, not 206")
                return b"".join(answer.iter_bytes())
        except (_transport_error(HfHubHTTPError), OSError) as error:
            raise PermanentError(
                "model_not_found", f"a range of {name} of {self._source} could not be read from the hub: {_line(error)}"
            ) from error


def _snapshots(source: str, revision: str | None, hub: Hub) -> list[Path]:
    """The folders of this commit in the cache, of all commits without a revision; none of a branch: it may move."""
    from huggingface_hub.file_download import repo_folder_name

    folders = (hub.folder / repo_folder_name(repo_id=source, repo_type="model") / "snapshots").glob("*")
    return [folder for folder in folders if revision in (None, folder.name)]


def _is_whole(folder: Path, parts: Sequence[str], dtypes: Dtypes) -> bool:
    files = FolderFiles(folder)
    try:
        check_layout(files, parts, dtypes)
    except PermanentError:
        return False
    return positions.PART not in parts or positions.positions_known(files, part_dtype(dtypes, positions.PART))


def _checked_positions(
    source: str, folder: Path, parts: Sequence[str], dtypes: Dtypes, reason: "_HubAwayError"
) -> Path:
    """The folder, if what only the hub can tell of the transformer's positions is in it.

    Replicas whose caches differ in it would make different videos under the name of one commit.
    """
    files = FolderFiles(folder)
    if positions.PART in parts and not positions.positions_known(files, part_dtype(dtypes, positions.PART)):
        raise PermanentError(
            "model_incomplete",
            f"{folder} lacks {positions.KEPT}, and the hub cannot be reached ({reason}): a start with the hub in reach "
            f"reads these 18 KB of {source} in float32. To do without them, name this folder itself as model.source",
        )
    return folder


def _check_listed(
    source: str, listed: "list[DryRunFileInfo]", parts: Sequence[str], dtypes: Dtypes, hub: Hub
) -> list[str]:
    """The names of the files that are needed, if they are of a Mochi pipeline and have room here."""
    try:
        names = needed_files([file.filename for file in listed], parts, dtypes)
    except PermanentError as error:
        raise PermanentError(error.code, f"{source} on the hub: {error.message}") from error
    _check_room(source, [file for file in listed if file.filename in names], hub)
    described = [name for name in names if name in (INDEX, SCHEDULER_CONFIG) or name.endswith(f"/{CONFIG}")]
    with _no_progress_bars():
        folder = _download(source, listed[0].commit_hash, described, hub)
    check_classes(FolderFiles(folder), [part for part in parts if part in STEMS or part == "scheduler"])
    return names


class _HubAwayError(Exception):
    """The hub cannot be reached; says why."""


def _list(source: str, revision: str | None, parts: Sequence[str], hub: Hub) -> "list[DryRunFileInfo]":
    """What the hub has in these parts. Raises _HubAwayError, and PermanentError as `fetch_from_hub` does."""
    return _listed_files(source, revision, [INDEX, CHECKSUMS, *(f"{part}/*" for part in parts)], hub)


def _listed_files(
    source: str, revision: str | None, patterns: Sequence[str], hub: Hub, setting: str = SETTING
) -> "list[DryRunFileInfo]":
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        with _no_progress_bars():
            listed = snapshot_download(
                source,
                revision=revision,
                allow_patterns=list(patterns),
                dry_run=True,
                endpoint=hub.endpoint,
                cache_dir=hub.folder,
            )
    except RevisionNotFoundError as error:
        raise PermanentError("model_not_found", f"{source} on the hub has no revision {revision!r}") from error
    except DryRunError as error:
        cause = error.__cause__
        if isinstance(cause, RepositoryNotFoundError):
            raise PermanentError(
                "model_not_found",
                f"{setting} {source!r}: no such folder and no such model on the hub, or HF_TOKEN may not read it",
            ) from error
        raise _HubAwayError(_line(cause or error)) from error
    except (_transport_error(HfHubHTTPError), OSError) as error:
        raise _HubAwayError(_line(error)) from error
    if not listed:
        raise PermanentError("model_incomplete", f"{source} on the hub has none of {', '.join(patterns)}")
    return listed


def _cached(source: str, revision: str | None, hub: Hub, reason: _HubAwayError, setting: str = SETTING) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                source, revision=revision, allow_patterns=[INDEX], local_files_only=True, cache_dir=hub.folder
            )
        )
    except LocalEntryNotFoundError as error:
        raise PermanentError(
            "model_not_found",
            f"{setting} {source!r}: the hub cannot be reached ({reason}), and {hub.folder} does not hold the model; "
            "check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or name a folder or s3://bucket/prefix",
        ) from error


def _check_room(source: str, files: "list[DryRunFileInfo]", hub: Hub) -> None:
    needed = sum(file.file_size or 0 for file in files if file.will_download)
    try:
        hub.folder.mkdir(parents=True, exist_ok=True)
        free = hub.free_bytes(hub.folder)
    except OSError as error:
        raise _unusable(hub, error) from error
    if needed > free:
        raise PermanentError(
            "cache_unusable",
            f"the cache of the hub {hub.folder} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB of {source} "
            "are missing; make room, or name another folder with HF_HOME",
        )


def _download(source: str, commit: str, names: Sequence[str], hub: Hub) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, FileMetadataError, HfHubHTTPError

    try:
        return Path(
            snapshot_download(
                source, revision=commit, allow_patterns=list(names), endpoint=hub.endpoint, cache_dir=hub.folder
            )
        )
    except (_transport_error(HfHubHTTPError), EntryNotFoundError, FileMetadataError) as error:
        raise PermanentError(
            "model_not_found", f"{source} could not be fetched from the hub to {hub.folder}: {_line(error)}"
        ) from error
    except OSError as error:
        raise _unusable(hub, error) from error


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _unusable(hub: Hub, error: OSError) -> PermanentError:
    return PermanentError(
        "cache_unusable",
        f"the cache of the hub {hub.folder} cannot be written ({error.strerror or _line(error)}); mend it, or name "
        "another folder with HF_HOME",
    )


def _transport_error(http_error: type[Exception]) -> type[Exception]:
    """What the HTTP library under the hub's raises: its versions use different ones, and have no name for it."""
    base = http_error.__bases__[0]
    return base if issubclass(base, Exception) else http_error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
