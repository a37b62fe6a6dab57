"""Embeds a FASTA file of any size: as a job of the server, whose parts come to the disk as they are done."""

import asyncio
import gzip
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.numpy import load

from serve_app.cli.output import Output
from serve_app.cli.proteins.options import EmbedOptions
from serve_app.cli.proteins.shards import Row, ShardFolder, sha256_of, shard_folder
from serve_app.client.errors import OK, PARTLY_FAILED, ClientError, LocalFileError, UsageError
from serve_app.client.http import Client
from serve_app.errors import InvalidRequestError
from serve_app.proteins.fasta import fasta_entries

JOBS = "/esm2/jobs"
FASTA = "text/x-fasta"
SAFETENSORS = "application/x-safetensors"
PER_RESIDUE = "per_residue"
_POLL_S = 0.5

Arrays = dict[str, NDArray[np.float32]]


async def run_embed(client: Client, output: Output, options: EmbedOptions) -> int:
    """Have a file embedded and fetch what is not here yet; returns the exit code.

    Raises:
        UsageError: it is no FASTA file, or the folder holds embeddings of something else.
        ClientError: the job failed, was cancelled or deleted; and as `Client.request`.
    """
    fields = {
        "layers": options.layers or [-1],
        "pooling": options.pooling or ["mean"],
        "windows": options.windows,
        "remove_gaps": options.remove_gaps,
    }
    with _named(options.fasta) as path, shard_folder(options.folder) as folder:
        health = await client.request("GET", "/esm2/health")
        model = {name: health[name] for name in ("model", "revision")}
        sha256 = await asyncio.to_thread(_checked_sha256, path)
        key = folder.begin({**model, **fields, "sha256": sha256})
        query = {name: _as_query(value) for name, value in fields.items()}
        query |= {} if options.priority is None else {"priority": options.priority}
        job = await client.upload(JOBS, path, FASTA, query, key, is_gzip=_is_gzip(path))
        folder.check_parts(job["parts"])
        output.message(f"job {job['id']}: {job['sequences']} sequences in {job['parts']} parts")
        rows = await _fetch_all(client, output, folder, job)
    refused = [row for row in rows if "error" in row]
    for row in refused:
        output.message(f"{row['id']} (number {row['index'] + 1}): {row['error']['message']}")
    total = job["sequences"]
    result = {"job": job["id"], "sequences": total, "refused": len(refused), "folder": str(options.folder)}
    told = f"{total - len(refused)} of {total} sequences are in {options.folder}, {len(refused)} were refused"
    output.result(result, told)
    return PARTLY_FAILED if refused else OK


async def _fetch_all(client: Client, output: Output, folder: ShardFolder, job: Mapping[str, Any]) -> list[Row]:
    """Fetch each part as soon as it is done; the rows of all."""
    rows: list[Row] = []
    path = f"{JOBS}/{job['id']}"
    with _display(output, job["sequences"]) as advance:
        for number in range(job["parts"]):
            if not folder.is_done(number):
                while job["parts_done"] <= number:
                    if job["state"] in ("failed", "cancelled"):
                        raise ClientError(f"the job {job['id']} is {job['state']}: {job['error']['message']}")
                    await asyncio.sleep(_POLL_S)
                    job = await client.request("GET", path)
                body = await client.request_bytes(f"{path}/parts/{number + 1}", SAFETENSORS)
                folder.write(number, *await asyncio.to_thread(_together, _read(body)))
            found = folder.rows(number)
            rows += found
            advance(len(found))
    return rows


def _as_query(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value).lower()


def _read(body: bytes) -> list[tuple[Row, Arrays]]:
    """The rows and arrays of an answer; the arrays are called LAYER.POOLING."""
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    results = json.loads(header["__metadata__"]["answer"])["results"]
    arrays = load(body)
    read: list[tuple[Row, Arrays]] = []
    for result in results:
        if "error" in result:
            read.append(({name: result[name] for name in ("index", "id", "error")}, {}))
            continue
        own = {f"{one['layer']}.{one['pooling']}": arrays[one["values"]["array"]] for one in result["embeddings"]}
        read.append(({name: result[name] for name in ("index", "id", "length", "notes")}, own))
    return read


def _together(results: Sequence[tuple[Row, Arrays]]) -> tuple[list[Row], Arrays]:
    """The list and the arrays of a shard."""
    rows: list[Row] = []
    stacks: dict[str, list[NDArray[np.float32]]] = {}
    arrays: Arrays = {}
    answered = 0
    for row, own in results:
        rows.append(dict(row))
        if "error" in row:
            continue
        rows[-1]["row"] = answered
        answered += 1
        for name, values in own.items():
            if name.endswith(PER_RESIDUE):
                arrays[f"{row['index']}.{name}"] = values
            else:
                stacks.setdefault(name, []).append(values)
    return rows, arrays | {name: np.stack(values) for name, values in stacks.items()}


def _is_gzip(path: Path) -> bool:
    return path.suffix == ".gz"


def _checked_sha256(path: Path) -> str:
    """Of a file that is a FASTA. Raises UsageError: it is none; LocalFileError: it cannot be read."""
    try:
        with (gzip.open if _is_gzip(path) else open)(path, "rt", encoding="utf-8-sig") as file:
            if next(fasta_entries(file), None) is None:
                raise UsageError(f"{str(path)!r} holds no sequence; write a line '>name' and the residues below it")
        return sha256_of(path)
    except InvalidRequestError as error:
        raise UsageError(error.message) from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise LocalFileError(f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}") from None


@contextmanager
def _named(path: Path) -> Iterator[Path]:
    """The file, or a copy of stdin, which is read more than once. Raises UsageError: there is none."""
    if str(path) != "-":
        if not path.is_file():
            raise UsageError(f"there is no file {str(path)!r}")
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="mochi-serve-", suffix=".fasta") as copy:
        while piece := sys.stdin.buffer.read(1 << 20):
            copy.write(piece)
        copy.flush()
        yield Path(copy.name)


@contextmanager
def _display(output: Output, total: int) -> Iterator[Any]:
    """Bars on a terminal, else a line for each twentieth of the way; gives what is called with further sequences."""
    if output.err.is_terminal:
        columns = TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=output.err, transient=True) as progress:
            task = progress.add_task("", total=total)
            yield lambda more: progress.advance(task, more)
        return
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        before, done = done, done + more
        if total and done * 20 // total > before * 20 // total:
            output.message(f"{done} of {total} sequences")

    yield advance
