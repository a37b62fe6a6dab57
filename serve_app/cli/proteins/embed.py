"""Embeds a FASTA file of any size: requests of 64 sequences, several at a time, into shards on the disk."""

import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.numpy import load

from serve_app.cli.output import Output
from serve_app.cli.proteins.options import EmbedOptions
from serve_app.cli.proteins.shards import Row, ShardFolder, sha256_of, shard_folder
from serve_app.client.errors import OK, PARTLY_FAILED, LocalFileError, RefusedError, UsageError
from serve_app.client.http import Client
from serve_app.errors import InvalidRequestError
from serve_app.proteins.fasta import FastaEntry, fasta_entries

BATCH = 64
SAFETENSORS = "application/x-safetensors"
PER_RESIDUE = "per_residue"
_TOO_MANY = 429
_SPLIT = ("too_much_work", "answer_too_large", "request_too_large")  # a smaller request may be taken
_PAUSE_S = 5.0

Arrays = dict[str, NDArray[np.float32]]


async def run_embed(client: Client, output: Output, options: EmbedOptions) -> int:
    """Embed what is not there yet; returns the exit code."""
    fields = {
        "layers": options.layers or [-1],
        "pooling": options.pooling or ["mean"],
        "windows": options.windows,
        "remove_gaps": options.remove_gaps,
    }
    with _named(options.fasta) as path, shard_folder(options.folder) as folder:
        health = await client.request("GET", "/esm2/health")
        model = {name: health[name] for name in ("model", "revision")}
        folder.begin({**model, **fields, "shard": options.shard, "sha256": await asyncio.to_thread(sha256_of, path)})
        total = await asyncio.to_thread(lambda: sum(1 for _ in _entries(path)))
        refused = 0
        run = _Run(client, folder, fields, asyncio.Semaphore(options.concurrency))
        with _display(output, total) as advance:
            entries = _entries(path)
            for number in count():
                shard = list(islice(entries, options.shard))
                if not shard:
                    break
                rows = await run.shard(number, number * options.shard, shard, advance)
                for row in (row for row in rows if "error" in row):
                    refused += 1
                    output.message(f"{row['id']} (number {row['index'] + 1}): {row['error']['message']}")
    result = {"sequences": total, "refused": refused, "folder": str(options.folder)}
    output.result(result, f"{total - refused} of {total} sequences are in {options.folder}, {refused} were refused")
    return PARTLY_FAILED if refused else OK


class _Run:
    """One run over a file."""

    def __init__(
        self, client: Client, folder: ShardFolder, fields: Mapping[str, Any], places: asyncio.Semaphore
    ) -> None:
        self._client = client
        self._folder = folder
        self._fields = fields
        self._places = places

    async def shard(
        self, number: int, first: int, entries: Sequence[FastaEntry], advance: Callable[[int], object]
    ) -> list[Row]:
        """Make a shard unless it is there; returns its list.

        Args:
            first: the index of its first sequence in the file.
            advance: called with the number of sequences that are done.
        """
        if self._folder.is_done(number):
            advance(len(entries))
            return self._folder.rows(number)
        batches = [entries[start : start + BATCH] for start in range(0, len(entries), BATCH)]

        async def ask(batch: Sequence[FastaEntry]) -> list[tuple[Row, Arrays]]:
            async with self._places:
                found = await self._ask(batch)
            advance(len(batch))
            return found

        try:
            async with asyncio.TaskGroup() as tasks:
                asked = [tasks.create_task(ask(batch)) for batch in batches]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        results = [result for task in asked for result in task.result()]
        rows, arrays = _together(results, first)
        self._folder.write(number, rows, arrays)
        return rows

    async def _ask(self, batch: Sequence[FastaEntry]) -> list[tuple[Row, Arrays]]:
        """Of each sequence its row and its arrays; a batch that is too much for one request is halved."""
        items = [{"id": one.id or None, "sequence": one.sequence} for one in batch]
        while True:
            try:
                body = await self._client.request_bytes(
                    "/esm2/predict/batch", {"sequences": items, **self._fields}, SAFETENSORS
                )
                return _read(body)
            except RefusedError as error:
                if error.status == _TOO_MANY and error.temporary:
                    await asyncio.sleep(error.retry_after_s or _PAUSE_S)
                elif error.code in _SPLIT and len(batch) > 1:
                    middle = len(batch) // 2
                    return [*await self._ask(batch[:middle]), *await self._ask(batch[middle:])]
                else:
                    raise


def _read(body: bytes) -> list[tuple[Row, Arrays]]:
    """The rows and arrays of an answer; the arrays are called LAYER.POOLING."""
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    results = json.loads(header["__metadata__"]["answer"])["results"]
    arrays = load(body)
    read: list[tuple[Row, Arrays]] = []
    for result in results:
        if "error" in result:
            read.append(({"id": result["id"], "error": result["error"]}, {}))
            continue
        own = {f"{one['layer']}.{one['pooling']}": arrays[one["values"]["array"]] for one in result["embeddings"]}
        read.append(({name: result[name] for name in ("id", "length", "notes")}, own))
    return read


def _together(results: Sequence[tuple[Row, Arrays]], first: int) -> tuple[list[Row], Arrays]:
    """The list and the arrays of a shard, whose first sequence has the index `first` in the file."""
    rows: list[Row] = []
    stacks: dict[str, list[NDArray[np.float32]]] = {}
    arrays: Arrays = {}
    answered = 0
    for index, (row, own) in enumerate(results, first):
        rows.append({"index": index, **row})
        if "error" in row:
            continue
        rows[-1]["row"] = answered
        answered += 1
        for name, values in own.items():
            if name.endswith(PER_RESIDUE):
                arrays[f"{index}.{name}"] = values
            else:
                stacks.setdefault(name, []).append(values)
    return rows, arrays | {name: np.stack(values) for name, values in stacks.items()}


def _entries(path: Path) -> Iterator[FastaEntry]:
    """Raises UsageError: it is no FASTA; LocalFileError: it cannot be read."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from fasta_entries(file)
    except InvalidRequestError as error:
        raise UsageError(error.message) from None
    except (OSError, UnicodeDecodeError) as error:
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
