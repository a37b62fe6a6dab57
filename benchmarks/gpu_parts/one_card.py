"""The three stages on one GPU, each in a process of its own and in its share, as `configs/mochi-1-one-gpu.yaml` has
them: whether they fit, and what they cost each other."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch

from benchmarks.common import full_size as fs
from benchmarks.gpu_parts.bench import DTYPE, FULL, Bench, NotHereError, Row, Rows, Values
from benchmarks.gpu_parts.decoding import drain
from benchmarks.gpu_parts.loading import VOCABULARY, random_t5
from benchmarks.gpu_parts.measuring import Work, first_ms, gigabytes, seconds
from deployments.mochi.packed_weights import pack_projections
from deployments.mochi.streaming_decode import StreamingDecoder
from deployments.replica.cuda_environment import set_cuda_environment
from deployments.replica.gpu_state import gpu_watch
from deployments.replica.host import limit_memory

ROOT = Path(__file__).resolve().parents[2]
SHARES = {"sampler": 0.55, "encoder": 0.15, "decoder": 0.2}


def one_card(bench: Bench) -> Rows:
    """Steps of the long video alone, and beside decoding and encoding; the memory of all processes by the driver."""
    if not bench.on_cuda:
        raise NotHereError("needs CUDA")
    limit_memory(bench.device, SHARES["sampler"])
    transformer = bench.transformer()
    pack_projections(transformer)
    clip = bench.clip(transformer, bench.sizes.long_frames)
    step = fs.our_step(transformer, [clip.sample], bench.compiled_block)
    step()  # and what is compiled once
    with ExitStack() as stack:
        decoder = stack.enter_context(_neighbour("decoder"))
        encoder = stack.enter_context(_neighbour("encoder"))
        yield Row("one card", "a step alone", lambda: {"s": seconds(first_ms(bench.device, step))} | _memory(bench))
        yield Row("one card", "decoding alone", lambda: decoder.work() | _memory(bench))
        yield Row("one card", "encoding alone", lambda: encoder.work() | _memory(bench))
        yield Row("one card", "a step beside decoding", partial(_together, bench, step, decoder))
        yield Row("one card", "a step beside encoding", partial(_together, bench, step, encoder))
    limit_memory(bench.device, 1.0)


def _together(bench: Bench, step: Work, neighbour: "Neighbour") -> Values:
    neighbour.begin()
    ms = first_ms(bench.device, step)
    return {"s": seconds(ms), **{f"neighbour_{name}": value for name, value in neighbour.end().items()}} | _memory(
        bench
    )


def _memory(bench: Bench) -> Values:
    """What all processes hold now."""
    figures = gpu_watch(bench.device).look()
    return {"card_gb": gigabytes(figures.memory_used), "of_gb": gigabytes(figures.memory_total)}


class Neighbour:
    """Another stage's process, which works when it is told to."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.end()

    def work(self) -> Values:
        self.begin()
        return self.end()

    def begin(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def end(self) -> Values:
        """What it says when it is done."""
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if not said:
            raise RuntimeError("a neighbour ended; what it wrote is above")
        values: Values = json.loads(said)
        return values


@contextmanager
def _neighbour(stage: str) -> Iterator[Neighbour]:
    """Ready to work; ended at the end."""
    command = [sys.executable, "-m", "benchmarks.gpu_parts.one_card", stage]
    with subprocess.Popen(
        command, cwd=ROOT, env=dict(os.environ), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Neighbour(process)
        finally:
            process.kill()


@torch.no_grad()
def main(stage: str) -> None:
    """Say that it is ready, then work and say what it took, once for each line that comes."""
    set_cuda_environment()
    bench = Bench(torch.device("cuda:0"), FULL)
    limit_memory(bench.device, SHARES[stage])
    work = {"decoder": _decoding, "encoder": _encoding}[stage](bench)
    work()
    print("{}", flush=True)
    for _ in sys.stdin:
        torch.cuda.reset_peak_memory_stats(bench.device)
        ms = first_ms(bench.device, work)
        peak = torch.cuda.max_memory_reserved(bench.device)
        print(json.dumps({"s": seconds(ms), "reserved_gb": gigabytes(peak)}), flush=True)


def _decoding(bench: Bench) -> Work:
    decoder = StreamingDecoder(fs.random_vae(bench.device, DTYPE, **bench.sizes.vae), "each_upsample")
    latents = torch.randn(bench.spec(bench.sizes.long_frames).clip.latents, device=bench.device, dtype=DTYPE)
    return partial(drain, decoder, latents)


def _encoding(bench: Bench) -> Work:
    encoder = random_t5(bench)
    ids = torch.randint(1, VOCABULARY, (2, bench.sizes.text_tokens), device=bench.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    return lambda: encoder(ids, attention_mask=mask)


if __name__ == "__main__":
    main(sys.argv[1])
