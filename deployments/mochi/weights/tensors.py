"""Tensors read from files straight into the memory in which they are used.

Each byte is read once, by a few threads, and held by nobody else: into the tensor itself where the CPU uses it as it is
stored, else through a few small buffers of the host, from which it is cast or copied to the device. Nothing is mapped:
a file that is replaced while the model runs changes nothing.
"""

import os
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from deployments.errors import PermanentError

TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Of the names that safetensors gives them: what weights may be stored in."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How files are read."""

    threads: int = min(8, os.cpu_count() or 1)
    chunk_bytes: int = 8 * 1024 * 1024  # that are read at once; a multiple of 8
    buffers: int = 2  # of `chunk_bytes` for each thread, where it does not read into the tensors themselves
    group_bytes: int = 1_000_000_000  # of files, that are read before their weights are brought to 8 bits, if they are


@dataclass(frozen=True, slots=True)
class FileTensor:
    """Where a tensor lies in a file."""

    path: Path
    offset: int  # of its first byte
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def read_tensors(
    wanted: Mapping[str, tuple[FileTensor, torch.dtype]],
    device: torch.device,
    progress: Callable[[int], object] = lambda nbytes: None,
    options: ReadOptions = ReadOptions(),
) -> dict[str, Tensor]:
    """Read tensors to a device, contiguous, each in a memory of its own. Blocks until they are there.

    Args:
        wanted: by name, where each is and the dtype that it is cast to, on the device.
        progress: is told how many more bytes were read, by several threads.

    Raises:
        PermanentError: `model_incomplete`: a file cannot be read, or has become shorter; names it.
    """
    tensors = {name: torch.empty(at.shape, dtype=dtype, device=device) for name, (at, dtype) in wanted.items()}
    if device.type == "cuda":
        # What the allocator gives again may still be in use by what runs on the device.
        torch.cuda.synchronize(device)
    # In the order of the files, which disks like best.
    placed = sorted(wanted, key=lambda name: (str(wanted[name][0].path), wanted[name][0].offset))
    chunks = _Shared(_chunks([(wanted[name][0], tensors[name].view(-1)) for name in placed], options.chunk_bytes))
    _in_threads(options.threads, lambda: _read_chunks(chunks, device, progress, options))
    return tensors


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A part of a tensor."""

    path: Path
    offset: int  # bytes in the file
    dtype: torch.dtype  # as it is stored
    target: Tensor  # 1-D, on the device


def _chunks(tensors: Iterable[tuple[FileTensor, Tensor]], chunk_bytes: int) -> Iterator[_Chunk]:
    for stored, flat in tensors:
        step = chunk_bytes // stored.dtype.itemsize
        for start in range(0, flat.numel(), step):
            offset = stored.offset + start * stored.dtype.itemsize
            yield _Chunk(stored.path, offset, stored.dtype, flat[start : start + step])


class _Shared:
    """Chunks that several threads take from."""

    def __init__(self, chunks: Iterator[_Chunk]) -> None:
        self._chunks = chunks
        self._lock = threading.Lock()

    def take(self) -> _Chunk | None:
        with self._lock:
            return next(self._chunks, None)

    def stop(self) -> None:
        """Give out none any more."""
        with self._lock:
            self._chunks = iter(())


def _in_threads(count: int, work: Callable[[], None]) -> None:
    """Do the same work in several threads; what one of them raises is raised once all have ended."""
    with ThreadPoolExecutor(count, "read-weights") as pool:
        done, _ = wait([pool.submit(work) for _ in range(count)], return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()


def _read_chunks(
    chunks: _Shared, device: torch.device, progress: Callable[[int], object], options: ReadOptions
) -> None:
    """What each thread does."""
    try:
        with _Files() as files, _road(device, options) as road:
            while (chunk := chunks.take()) is not None:
                road.bring(chunk, files)
                progress(chunk.target.numel() * chunk.dtype.itemsize)
    except BaseException:
        chunks.stop()
        raise


class _Files(ExitStack):
    """The files that one thread has open: the system reads ahead for each open file by itself."""

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[Path, int] = {}

    def read(self, chunk: _Chunk, memory: Tensor) -> None:
        """Read a chunk into `memory`, 1-D uint8 on the CPU. Raises PermanentError `model_incomplete`."""
        view = memory.numpy().data
        position = chunk.offset
        try:
            file = self._file(chunk.path)
            while view:
                count = os.preadv(file, [view], position)
                if count == 0:
                    raise PermanentError(
                        "model_incomplete",
                        f"{chunk.path} ended at byte {position} while it was read: it was changed; copy it again",
                    )
                view, position = view[count:], position + count
        except OSError as error:
            raise PermanentError("model_incomplete", f"{chunk.path} cannot be read: {error.strerror}") from error

    def _file(self, path: Path) -> int:
        if path not in self._open:
            self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.callback(os.close, self._open[path])
        return self._open[path]


class _Road(ExitStack):
    """The way of chunks from the files to a device, for one thread; at its end all of them are there."""

    @abstractmethod
    def bring(self, chunk: _Chunk, files: _Files) -> None:
        """Read a chunk and send it on its way."""


def _road(device: torch.device, options: ReadOptions) -> _Road:
    return _CudaRoad(device, options) if device.type == "cuda" else _HostRoad(options)


class _HostRoad(_Road):
    """To the CPU: into the tensor itself, or through a buffer if it is cast."""

    def __init__(self, options: ReadOptions) -> None:
        super().__init__()
        self._chunk_bytes = options.chunk_bytes
        self._buffer: Tensor | None = None

    def bring(self, chunk: _Chunk, files: _Files) -> None:
        if chunk.dtype == chunk.target.dtype:
            files.read(chunk, chunk.target.view(torch.uint8))
            return
        if self._buffer is None:
            self._buffer = torch.empty(self._chunk_bytes, dtype=torch.uint8)
        used = self._buffer[: chunk.target.numel() * chunk.dtype.itemsize]
        files.read(chunk, used)
        chunk.target.copy_(used.view(chunk.dtype))


class _CudaRoad(_Road):
    """To a GPU, by a stream of this thread's: the disk fills one pinned buffer while the device takes another."""

    def __init__(self, device: torch.device, options: ReadOptions) -> None:
        super().__init__()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._device = device
        self._chunk_bytes = options.chunk_bytes
        self._buffers = [_Pinned(device, options.chunk_bytes) for _ in range(options.buffers)]
        self._taken = 0

    def __enter__(self) -> Self:
        # The current device and stream are this thread's own.
        self.enter_context(torch.cuda.device(self._device))
        self.enter_context(torch.cuda.stream(self._stream))
        self.callback(self._stream.synchronize)
        return super().__enter__()

    def bring(self, chunk: _Chunk, files: _Files) -> None:
        buffer = self._buffers[self._taken % len(self._buffers)]
        self._taken += 1
        buffer.bring(chunk, files)


class _Pinned:
    """A buffer on the host, and on the device the same in the file's dtype, where it is cast."""

    def __init__(self, device: torch.device, chunk_bytes: int) -> None:
        self._device = device
        self._host = torch.empty(chunk_bytes, dtype=torch.uint8, pin_memory=True)
        self._stored: Tensor | None = None
        # Once the device has taken what the host's buffer holds.
        self._free = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def bring(self, chunk: _Chunk, files: _Files) -> None:
        self._free.synchronize()
        used = self._host[: chunk.target.numel() * chunk.dtype.itemsize]
        files.read(chunk, used)
        values = used.view(chunk.dtype)
        if chunk.dtype == chunk.target.dtype:
            chunk.target.copy_(values, non_blocking=True)
        else:
            chunk.target.copy_(self._on_device(used, chunk.dtype))
        self._free.record()

    def _on_device(self, used: Tensor, dtype: torch.dtype) -> Tensor:
        if self._stored is None:
            self._stored = torch.empty(self._host.numel(), dtype=torch.uint8, device=self._device)
        stored = self._stored[: used.numel()]
        stored.copy_(used, non_blocking=True)
        return stored.view(dtype)
