"""A batch: many prompts from a file, some at a time, each asked for, waited for, fetched and written down.

Killed at any point and started again it takes up each line where it was: the request is repeated under the same
Idempotency-Key, a known video is followed, a part of a file is completed, a whole file is only written down.
"""

import asyncio
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serve_app.cli.batch.folder import BatchFolder, batch_folder
from serve_app.cli.batch.plan import COMPLETED, Known, Plan, Todo, idempotency_key, plan, read_lines
from serve_app.cli.output import Display, Output, Track
from serve_app.cli.words import short_time
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
from serve_app.client.http import Client, Video

_NO_LONGER, _TOO_MANY = (404, 409), 429
_NO_WORD_S, _SHORTEST_S = 10.0, 0.25
_SHOWN_CONFLICTS = 3


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """A batch as it was asked for. fields: of the requests whose lines do not have them."""

    prompts: Path
    folder: Path
    fields: Mapping[str, Any]
    concurrency: int
    force: bool


class Batch:
    """One run over what is left of a batch."""

    def __init__(self, client: Client, folder: BatchFolder, display: Display, output: Output) -> None:
        self._client, self._folder, self._display, self._output = client, folder, display, output
        # One request for a video at a time: when the server has enough of them, all wait.
        self._asking = asyncio.Lock()
        self.failed = 0

    async def run(self, todo: tuple[Todo, ...], concurrency: int) -> None:
        """Work through the lines. Raises ClientError for what concerns them all: no server, no key, no disk."""
        left = iter(todo)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(todo))):
                    group.create_task(self._work(left))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _work(self, left: Iterator[Todo]) -> None:
        for todo in left:
            track = self._display.track(todo.line.file)
            try:
                result = await self._result(todo, track)
            finally:
                track.end()
            self._tell(todo, result)

    async def _result(self, todo: Todo, track: Track) -> dict[str, Any]:
        try:
            video = await self._accepted(todo)
            track.show(video)
            done = await self._client.finished(video["id"], track.show)
            if done["status"] == COMPLETED:
                return self._completed(todo, done, await self._fetched(todo, done, track))
            error = done["error"] or {"code": done["state"], "message": "no reason was given"}
            return self._failed(todo, done["id"], error["code"], error["message"], spent=True)
        except KeyRefusedError:
            raise
        except (RefusedError, VideoDeletedError) as error:
            known = self._folder.known.get(todo.line.key, Known())
            return self._failed(todo, known.video_id, error.code, error.message, spent=_is_spent(error))

    async def _accepted(self, todo: Todo) -> Video:
        """The line's video: the one that it has already, unless the server has it no longer, or a new one."""
        if todo.known.video_id is not None:
            try:
                return await self._client.retrieve(todo.known.video_id)
            except RefusedError as error:
                if not _is_spent(error):
                    raise
            todo = replace(todo, known=Known(todo.known.attempt + 1))
            self._folder.note(todo.line, todo.known)
        async with self._asking:
            video = await self._asked(todo)
        self._folder.note(todo.line, replace(todo.known, video_id=video["id"]))
        return video

    async def _asked(self, todo: Todo) -> Video:
        key = idempotency_key(self._folder.id, todo)
        while True:
            try:
                video = await self._client.create(todo.line.fields, key)
            except RefusedError as error:
                if error.status != _TOO_MANY or not error.passing:
                    raise
                pause = _NO_WORD_S if error.retry_after_s is None else max(error.retry_after_s, _SHORTEST_S)
                self._display.note(f"waiting {short_time(pause)}: {error.message}")
                await asyncio.sleep(pause)
            else:
                self._display.note("")
                return video

    async def _fetched(self, todo: Todo, video: Video, track: Track) -> int:
        path = self._folder.path / todo.line.file
        known = self._folder.known.get(todo.line.key, todo.known)
        if todo.fetched and known.bytes is not None:
            return known.bytes

        def note(size: int) -> None:
            self._folder.note(todo.line, replace(known, bytes=size))

        return await download(self._client, video["id"], path, tell=track.fetching, before_rename=note)

    def _completed(self, todo: Todo, video: Video, size: int) -> dict[str, Any]:
        result = {"status": COMPLETED, "video_id": video["id"], "file": todo.line.file, "bytes": size}
        return self._folder.finish(todo.line, result | {"seed": video["seed"], "error": None})

    def _failed(self, todo: Todo, video_id: str | None, code: str | None, message: str, spent: bool) -> dict[str, Any]:
        """spent: nothing will come of this video, or of this key; a later run asks for another one."""
        self.failed += 1
        if spent:
            attempt = self._folder.known.get(todo.line.key, todo.known).attempt
            self._folder.note(todo.line, Known(attempt + 1))
        result = {"status": "failed", "video_id": video_id, "file": None, "bytes": None, "seed": None}
        return self._folder.finish(todo.line, result | {"error": {"code": code, "message": message}})

    def _tell(self, todo: Todo, result: Mapping[str, Any]) -> None:
        self._output.result(result, None)
        error = result["error"]
        text = (
            todo.line.file if error is None else f"line {todo.line.number} failed ({error['code']}): {error['message']}"
        )
        self._display.ended(text, failed=error is not None)


async def batch_of(client: Client, output: Output, wish: BatchOptions) -> int:
    """Run a batch, or what is left of it; returns the exit code."""
    lines = read_lines(_text(wish.prompts), wish.fields)
    with batch_folder(wish.folder) as folder, ExitStack() as stack:
        left = plan(lines, folder.known, folder.results, folder.sizes())
        _check_conflicts(left, wish)
        folder.begin(left.todo)
        display = stack.enter_context(output.display(lambda: client.now, total=len(left.todo)))
        batch = Batch(client, folder, display, output)
        try:
            await batch.run(left.todo, wish.concurrency)
        except (ClientError, asyncio.CancelledError):
            stack.close()
            output.say(
                "Started again with the same folder, the batch goes on where it is; its videos are made meanwhile."
            )
            raise
    done = left.done + len(left.todo) - batch.failed
    before = f" ({left.done} before)" if left.done else ""
    output.say(f"{done} of {len(lines)} videos are in {wish.folder}{before}, {batch.failed} failed")
    return PARTLY_FAILED if batch.failed else OK


def _is_spent(error: RefusedError | VideoDeletedError) -> bool:
    """Whether the server knows the video no longer, or the key for something else. A proxy's 404 has no code."""
    return isinstance(error, VideoDeletedError) or (error.status in _NO_LONGER and error.code is not None)


def _text(prompts: Path) -> str:
    """Raises UsageError where the file is not there or no UTF-8, LocalFileError where it cannot be read."""
    try:
        data = sys.stdin.buffer.read() if str(prompts) == "-" else prompts.read_bytes()
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{prompts} is not UTF-8 at byte {error.start}") from None
    except FileNotFoundError:
        raise UsageError(f"there is no file {str(prompts)!r}") from None
    except OSError as error:
        raise LocalFileError(f"cannot read {str(prompts)!r}: {error.strerror or error}") from None


def _check_conflicts(left: Plan, wish: BatchOptions) -> None:
    if left.conflicts and not wish.force:
        more = " and others" if len(left.conflicts) > _SHOWN_CONFLICTS else ""
        shown = ", ".join(left.conflicts[:_SHOWN_CONFLICTS]) + more
        raise UsageError(
            f"{shown} in {str(wish.folder)!r} are not of this batch; move them away, or --force to overwrite them"
        )
