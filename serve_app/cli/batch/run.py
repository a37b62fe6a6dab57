"""A batch: many prompts from a file, some at a time, each asked for, waited for, fetched and written down.

Killed at any point and started again it takes up each line where it was: the request is repeated under the same
Idempotency-Key, a known video is followed, a part of a file is completed, a whole file is only written down.
"""

import asyncio
import sys
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from serve_app.cli.batch.folder import BatchFolder, batch_folder
from serve_app.cli.batch.plan import COMPLETED, LineState, OpenLine, idempotency_key, make_plan, read_lines
from serve_app.cli.files import STDOUT
from serve_app.cli.options import Force
from serve_app.cli.output import Output
from serve_app.cli.progress import ProgressDisplay, VideoProgress, progress_display, short_time
from serve_app.client.download import download
from serve_app.client.errors import (
    OK,
    PARTLY_FAILED,
    ClientError,
    KeyRefusedError,
    LocalFileError,
    RefusedError,
    UsageError,
    VideoDeletedError,
)
from serve_app.client.http import Client, Video, video_error

CONCURRENCY = 16
_FINAL_STATUSES = (404, 409)
_TOO_MANY_REQUESTS = 429
_DEFAULT_PAUSE_S = 10.0
_SHORTEST_PAUSE_S = 0.25
_SHOWN_CONFLICTS = 3


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """What is made into which folder, and how."""

    prompts: Annotated[
        Path,
        typer.Argument(
            metavar="PROMPTS",
            help='A line a video: text, or JSON {"prompt": ..., any field of a request, "id", "name"}.',
        ),
    ]
    folder: Annotated[Path, typer.Option("--output", "-o", help="The folder of the videos and of results.jsonl.")]
    concurrency: Annotated[
        int, typer.Option(help="How many videos are asked for and fetched at a time.", min=1, max=256)
    ] = CONCURRENCY
    force: Force = False


async def run_batch(client: Client, output: Output, options: BatchOptions, fields: Mapping[str, Any]) -> int:
    """Run a batch, or what is left of it; returns the exit code.

    Args:
        fields: of the requests whose lines do not have them.
    """
    if options.folder == STDOUT:
        raise UsageError("a batch needs a folder: -o NAME")
    lines = read_lines(_read_text(options.prompts), fields)
    with batch_folder(options.folder) as folder:
        plan = make_plan(lines, folder.states, folder.results, folder.sizes())
        if plan.conflicts and not options.force:
            more = " and others" if len(plan.conflicts) > _SHOWN_CONFLICTS else ""
            raise UsageError(
                f"{', '.join(plan.conflicts[:_SHOWN_CONFLICTS])}{more} in {str(options.folder)!r} are not of this "
                "batch; move them away, or --force to overwrite them"
            )
        folder.open_files(plan.open_lines)
        try:
            with progress_display(output, lambda: client.now, total=len(plan.open_lines)) as display:
                run = BatchRun(client, folder, display, output)
                await run.make_all(plan.open_lines, options.concurrency)
        except (ClientError, asyncio.CancelledError):
            output.message(
                "Started again with the same folder, the batch goes on where it is; its videos are made meanwhile."
            )
            raise
    done = len(lines) - run.failed
    before = f" ({plan.done} before)" if plan.done else ""
    output.message(f"{done} of {len(lines)} videos are in {options.folder}{before}, {run.failed} failed")
    return PARTLY_FAILED if run.failed else OK


class BatchRun:
    """One run over the open lines of a batch."""

    def __init__(self, client: Client, folder: BatchFolder, display: ProgressDisplay, output: Output) -> None:
        self._client = client
        self._folder = folder
        self._display = display
        self._output = output
        # One request for a video at a time: when the server has enough of them, all wait.
        self._creating = asyncio.Lock()
        self.failed = 0

    async def make_all(self, lines: Sequence[OpenLine], concurrency: int) -> None:
        """Make the videos of the lines, `concurrency` at a time.

        Raises:
            ClientError: something that concerns all lines: no server, no key, no disk.
        """
        queue = iter(lines)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(lines))):
                    group.create_task(self._work(queue))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _work(self, queue: Iterator[OpenLine]) -> None:
        for open_line in queue:
            line = open_line.line
            progress = self._display.add_video(line.file)
            try:
                result = await self._make(open_line, progress)
            finally:
                progress.end()
            self._output.result(result)
            error = result["error"]
            text = f"line {line.number} failed ({error['code']}): {error['message']}" if error else line.file
            self._display.count_result(text, failed=error is not None)

    async def _make(self, open_line: OpenLine, progress: VideoProgress) -> dict[str, Any]:
        """Make and fetch the video of a line; returns its result, which is written down."""
        try:
            video = await self._accepted_video(open_line)
            progress.show(video)
            video = await self._client.wait_until_done(video["id"], progress.show)
            if video["status"] == COMPLETED:
                size = await self._fetch(open_line, video, progress)
                result = {"status": COMPLETED, "video_id": video["id"], "file": open_line.line.file, "bytes": size}
                return self._folder.record_result(open_line.line, result | {"seed": video["seed"], "error": None})
            error = video_error(video)
            return self._record_failure(open_line, video["id"], error["code"], error["message"], is_final=True)
        except KeyRefusedError:
            raise
        except (RefusedError, VideoDeletedError) as refusal:
            video_id = self._state(open_line).video_id
            return self._record_failure(open_line, video_id, refusal.code, refusal.message, is_final=_is_final(refusal))

    async def _accepted_video(self, open_line: OpenLine) -> Video:
        """The line's video: the one that it has already, unless the server has it no longer, or a new one."""
        if open_line.state.video_id is not None:
            try:
                return await self._client.retrieve(open_line.state.video_id)
            except RefusedError as error:
                if not _is_final(error):
                    raise
            open_line = replace(open_line, state=LineState(open_line.state.attempt + 1))
            self._folder.record_state(open_line.line, open_line.state)
        async with self._creating:
            video = await self._create(open_line)
        self._folder.record_state(open_line.line, replace(open_line.state, video_id=video["id"]))
        return video

    async def _create(self, open_line: OpenLine) -> Video:
        """Ask for the video; while the server has too many, wait for as long as it says."""
        key = idempotency_key(self._folder.id, open_line)
        while True:
            try:
                video = await self._client.create(open_line.line.fields, key)
            except RefusedError as error:
                if error.status != _TOO_MANY_REQUESTS or not error.temporary:
                    raise
                pause_s = _DEFAULT_PAUSE_S
                if error.retry_after_s is not None:
                    pause_s = max(error.retry_after_s, _SHORTEST_PAUSE_S)
                self._display.show_notice(f"waiting {short_time(pause_s)}: {error.message}")
                await asyncio.sleep(pause_s)
            else:
                self._display.show_notice("")
                return video

    async def _fetch(self, open_line: OpenLine, video: Video, progress: VideoProgress) -> int:
        """Download the file unless it is there; returns its size in bytes."""
        state = self._state(open_line)
        if open_line.fetched and state.bytes is not None:
            return state.bytes

        def record_size(size: int) -> None:
            self._folder.record_state(open_line.line, replace(state, bytes=size))

        path = self._folder.path / open_line.line.file
        return await download(
            self._client, video["id"], path, on_bytes=progress.show_download, before_rename=record_size
        )

    def _record_failure(
        self, open_line: OpenLine, video_id: str | None, code: str | None, message: str, is_final: bool
    ) -> dict[str, Any]:
        """is_final: nothing will come of this video, or of this key; a later run asks for another one."""
        self.failed += 1
        if is_final:
            self._folder.record_state(open_line.line, LineState(self._state(open_line).attempt + 1))
        result = {"status": "failed", "video_id": video_id, "file": None, "bytes": None, "seed": None}
        return self._folder.record_result(open_line.line, result | {"error": {"code": code, "message": message}})

    def _state(self, open_line: OpenLine) -> LineState:
        """How far the line is by now."""
        return self._folder.states.get(open_line.line.key, open_line.state)


def _is_final(error: RefusedError | VideoDeletedError) -> bool:
    """Whether the server has the video no longer, or has the key for something else. A proxy's 404 has no code."""
    return isinstance(error, VideoDeletedError) or (error.status in _FINAL_STATUSES and error.code is not None)


def _read_text(prompts: Path) -> str:
    """The file of prompts, or stdin.

    Raises:
        UsageError: the file is not there or no UTF-8.
        LocalFileError: it cannot be read.
    """
    try:
        data = sys.stdin.buffer.read() if str(prompts) == "-" else prompts.read_bytes()
        return data.decode("utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{prompts} is not UTF-8 at byte {error.start}") from None
    except FileNotFoundError:
        raise UsageError(f"there is no file {str(prompts)!r}") from None
    except OSError as error:
        raise LocalFileError(f"cannot read {str(prompts)!r}: {error.strerror or error}") from None
