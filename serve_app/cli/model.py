"""The command `mochi-serve model`."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.table import Table

from deployments.dtypes import DtypeName, Dtypes
from deployments.errors import PermanentError
from deployments.storage.models.weight_files import PARTS
from serve_app.cli.interrupts import ending_in_one_line
from serve_app.cli.output import Output

if TYPE_CHECKING:
    from deployments.storage.models.store import OpenBucket
    from deployments.storage.object_store import Bucket

_LINE_EVERY_PERCENT = 25

app = typer.Typer(no_args_is_help=True, help="The model's files.")


class Dtype(StrEnum):
    """What a part computes in."""

    bfloat16 = "bfloat16"
    float32 = "float32"

    @property
    def known(self) -> DtypeName:
        return "bfloat16" if self is Dtype.bfloat16 else "float32"


@app.callback()
def _root() -> None:
    """The model's files."""


@app.command()
def prepare(
    source: Annotated[str, typer.Argument(help="A folder, s3://bucket/prefix in the configured store, or a hub id.")],
    folder: Annotated[Path, typer.Argument(help="A new folder for the model.")],
    dtype: Annotated[Dtype, typer.Option(help="What the model is to compute in, as model.dtype says.")] = (
        Dtype.bfloat16
    ),
    text_encoder_dtype: Annotated[
        Dtype | None, typer.Option(help="Of the text encoder, if it is to be another.")
    ] = None,
    vae_dtype: Annotated[Dtype | None, typer.Option(help="Of the VAE, if it is to be another.")] = None,
    vae_encoder: Annotated[
        bool, typer.Option("--vae-encoder", help="Keep the VAE's encoder, which the server does not use.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub; default: the newest.")] = None,
    config: Annotated[Path, typer.Option(help="The Serve config; its profile says where the object store is.")] = Path(
        "serve_config.yaml"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Write a model into one folder from which it loads fastest.

    One file for each part, in the dtype that is computed in, with SHA256SUMS. Such a folder serves as model.source, and
    under a prefix of a bucket too. Killed halfway it leaves nothing that is taken for a model.
    """
    output = Output(as_json)
    dtypes = {
        "transformer": dtype.known,
        "text_encoder": (text_encoder_dtype or dtype).known,
        "vae": (vae_dtype or dtype).known,
    }
    with ending_in_one_line(output), _log_lines(output):
        _prepare(source, revision, folder, dtypes, vae_encoder, config, output)


@dataclass(frozen=True, slots=True)
class _Choice:
    """As `model_folder` wants it."""

    source: str
    revision: str | None
    dtype: Dtypes
    hash_at_start: bool = False


def _prepare(
    source: str,
    revision: str | None,
    folder: Path,
    dtypes: dict[str, DtypeName],
    vae_encoder: bool,
    config: Path,
    output: Output,
) -> None:
    # Late: other commands need neither torch nor the clients of stores.
    from deployments.mochi.weights.prepare import Wanted, check_target, prepare_model
    from deployments.storage.models.store import model_folder

    check_target(folder)
    open_bucket = _bucket_opener(source, config)
    fetched = model_folder(_Choice(source, revision, dtypes), PARTS, open_bucket)
    with _progress(output) as progress:
        done = prepare_model(fetched, folder, Wanted(dtypes, vae_encoder), progress)
    table = Table("part", "dtype", "GB")
    for part, nbytes in done.nbytes.items():
        table.add_row(part, dtypes[part], f"{nbytes / 1e9:.2f}")
    used = {part: dtypes[part] for part in done.nbytes}
    output.result(
        {"folder": str(folder.absolute()), "dtypes": used, "bytes": done.nbytes},
        table,
        f"model.source: {folder.absolute()}",
    )


def _bucket_opener(source: str, config: Path) -> "OpenBucket":
    """Opens buckets of the store that the configuration names, which is read only if the source is in one."""
    from deployments.storage.models.store import SourceKind, source_kind
    from deployments.storage.object_store import ObjectStore
    from serve_app.local.plan import read_settings

    if source_kind(source) is not SourceKind.BUCKET:
        return _no_bucket

    storage = read_settings(config).storage
    if storage.endpoint is None:
        raise PermanentError(
            "model_source_invalid",
            f"{source}: {config} names no storage.endpoint, and the store that the server starts itself does not run "
            "now; name one, or a folder or hub id",
        )

    def open_bucket(name: str) -> "Bucket":
        return ObjectStore(storage.model_copy(update={"bucket": name}))

    return open_bucket


def _no_bucket(name: str) -> "Bucket":
    raise PermanentError("model_source_invalid", f"the bucket {name} is of no configured store")


@contextlib.contextmanager
def _log_lines(output: Output) -> Iterator[None]:
    """What the fetching of a model logs, shown on stderr."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            output.message(record.getMessage())

    logger, handler = logging.getLogger("ray.serve"), Lines(logging.INFO)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextlib.contextmanager
def _progress(output: Output) -> Iterator[Callable[[str, int, int], None]]:
    """Bars on a terminal, else a line for each quarter of a part."""
    if not output.err.is_terminal:
        yield _lines(output.message)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=output.err) as bars:
        tasks: dict[str, TaskID] = {}

        def show(part: str, done: int, total: int) -> None:
            if part not in tasks:
                tasks[part] = bars.add_task(part, total=total)
            bars.update(tasks[part], completed=done)

        yield show


def _lines(write: Callable[[str], None]) -> Callable[[str, int, int], None]:
    told: dict[str, int] = {}

    def show(part: str, done: int, total: int) -> None:
        quarter = 100 * done // max(total, 1) // _LINE_EVERY_PERCENT
        if quarter > told.get(part, 0):
            told[part] = quarter
            write(f"{part}: {done / 1e9:.2f} of {total / 1e9:.2f} GB written")

    return show
