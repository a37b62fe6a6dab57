"""What a replica does before its first job, and the encoder's own work: weights to the device, T5."""

import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import full_size as fs
from benchmarks.gpu_parts.bench import DTYPE, Bench, Row, Rows, Values
from benchmarks.gpu_parts.measuring import first_ms, gigabytes, rounded, timed
from deployments.mochi.weights.tensors import TORCH_DTYPES, FileTensor, ReadOptions, read_tensors
from deployments.storage.models.safetensors_file import stored_tensors

# T5-XXL's encoder, as Mochi 1 uses it.
T5_XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
VOCABULARY = 32128


def loading(bench: Bench) -> Rows:
    """A safetensors file that the system has in memory, to the device: by the CPU, straight, and as replicas do."""
    from safetensors.torch import save_file

    count, length = bench.sizes.file_tensors
    with tempfile.TemporaryDirectory(prefix="mochi-bench-") as folder:
        path = Path(folder) / "weights.safetensors"
        save_file({f"w{n}": torch.full((length,), n, dtype=DTYPE) for n in range(count)}, path)
        for name, device in {"by the CPU": None, "straight": bench.device, "straight, again": bench.device}.items():
            yield Row("loading", name, partial(_loading, bench, path, device))
        for name, dtype in {"ours": DTYPE, "ours, again": DTYPE, "ours, cast to fp32": torch.float32}.items():
            yield Row("loading", name, partial(_ours, bench, path, dtype))
        yield Row("loading", "the disk alone", partial(_disk, bench, path))
        yield Row("loading", "ours, from the disk", partial(_ours, bench, path, DTYPE, from_disk=True))


def _loading(bench: Bench, path: Path, straight: torch.device | None) -> Values:
    """straight: where safetensors puts the tensors, if not on the CPU first."""
    from safetensors import safe_open

    def load() -> list[Tensor]:
        with safe_open(path, "pt", device=str(straight or "cpu")) as file:
            return [file.get_tensor(name).to(bench.device) for name in file.keys()]  # noqa: SIM118

    size = path.stat().st_size
    return {"gb": gigabytes(size), "gb_per_s": rounded(size / first_ms(bench.device, load) / 1e6)}


def _disk(bench: Bench, path: Path) -> Values:
    """Read as replicas read it, several threads at once, into memory that is there already."""
    size = path.stat().st_size
    block = 2**24
    forget(path)
    room = threading.local()

    def read(file: int, offset: int) -> int:
        if not hasattr(room, "buffer"):
            room.buffer = bytearray(block)
        return os.preadv(file, [room.buffer], offset)

    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(ReadOptions().threads) as pool:
        offsets = range(0, size, block)
        ms = first_ms(bench.device, lambda: list(pool.map(partial(read, file.fileno()), offsets)))
    return {"gb": gigabytes(size), "gb_per_s": rounded(size / ms / 1e6)}


def forget(path: Path) -> None:
    """Have the system drop what it holds of the file in memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _ours(bench: Bench, path: Path, dtype: torch.dtype, from_disk: bool = False) -> Values:
    """dtype: that the tensors are cast to on the device."""
    size = path.stat().st_size
    if from_disk:
        forget(path)
    with path.open("rb", buffering=0) as file:
        stored = stored_tensors(lambda offset, length: os.pread(file.fileno(), length, offset), size)
    wanted = {
        name: (FileTensor(path, info.offset, TORCH_DTYPES[info.dtype], info.shape), dtype)
        for name, info in stored.items()
    }
    ms = first_ms(bench.device, lambda: read_tensors(wanted, bench.device))
    return {"gb": gigabytes(size), "gb_per_s": rounded(size / ms / 1e6)}


def text_encoder(bench: Bench) -> Rows:
    """T5-XXL over a prompt and its negative prompt, and over a row in which no token counts."""
    encoder = random_t5(bench)
    ids = torch.randint(1, VOCABULARY, (2, bench.sizes.text_tokens), device=bench.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    yield Row("text encoder", "two prompts", lambda: timed(bench.device, lambda: encoder(ids, attention_mask=mask))[1])
    none = mask.clone()
    none[1] = False
    yield Row("text encoder", "no token in a row", lambda: _finite(encoder(ids, attention_mask=none)[0]))


def _finite(embeds: Tensor) -> Values:
    return {"finite": bool(embeds.isfinite().all())}


def random_t5(bench: Bench) -> Any:
    from transformers import T5Config, T5EncoderModel

    sizes: dict[str, Any] = T5_XXL | bench.sizes.text_encoder
    config = T5Config(vocab_size=VOCABULARY, feed_forward_proj="gated-gelu", is_encoder_decoder=False, **sizes)
    with torch.device("meta"):
        model = T5EncoderModel(config)
    return fs.filled(model.eval().requires_grad_(False), bench.device, DTYPE, seed=0)
