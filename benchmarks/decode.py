"""Latents to frames on the CPU: the decoder in its layouts, beside the one of another checkout, and the mp4.

    python benchmarks/decode.py
    python benchmarks/decode.py --against ../before --rounds 31 --out benchmarks/results/decode_cpu.json

The included model, one clip of its default size. All contenders take turns in one process; before anything is timed
their frames are compared. Prints tables of medians and, last, one line of JSON.
"""

import argparse
import importlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common.machine import describe_machine, publish
from benchmarks.gpu_parts.measuring import KINDS, OTHER, by_kind
from benchmarks.step_batching import spread, take_turns
from deployments.clip import ClipShape
from deployments.decoder.hand_over import hand_over
from deployments.decoder.mp4_encoder import Mp4Writer
from deployments.mochi.streaming_decode import StreamingDecoder, denormalise, to_uint8
from deployments.mochi.weights.loading import load_vae

MODEL = Path(__file__).resolve().parent.parent / "models" / "shapes"
CPU = torch.device("cpu")
FPS = 24
TOLERANCE = 1e-4
AGAINST = "other checkout"

Decode = Callable[[Tensor], Iterator[Tensor]]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    shape = ClipShape(arguments.width, arguments.height, arguments.num_frames)
    decoders = contenders(arguments.against)
    latents = some_latents(shape)
    checks = compare(decoders, latents)
    section = measure(decoders, latents, arguments.rounds)
    result = {
        "benchmark": "decode",
        "machine": describe_machine(CPU),
        "clip": f"{shape.width}x{shape.height}x{shape.num_frames}",
        "rounds": arguments.rounds,
        "checks": checks,
        **section,
    }
    for table in tables(section, result["clip"], arguments.rounds):
        Console().print(table)
    publish(result, arguments.out)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--against", type=Path, help="folder of another checkout of this repository")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--height", type=int, default=96)
    parser.add_argument("--num-frames", type=int, default=37)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    return parser.parse_args()


def contenders(against: Path | None) -> dict[str, Decode]:
    """What decodes, by name: the product's own first, its variants, another checkout's."""
    named: dict[str, Callable[[Any], Any]] = {
        "ours": StreamingDecoder,
        "ours, channels first": partial(StreamingDecoder, memory_format=torch.contiguous_format),
    }
    if against is not None:
        named[AGAINST] = decoder_of(against)
    return {name: make(load_vae(MODEL, "float32", CPU)).decode for name, make in named.items()}


def decoder_of(checkout: Path) -> Any:
    """The class `StreamingDecoder` of another checkout, beside this one's."""
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "deployments"}
    sys.path.insert(0, str(checkout.resolve()))
    try:
        found = importlib.import_module("deployments.mochi.streaming_decode").StreamingDecoder
    finally:
        sys.path.pop(0)
        for name in [name for name in sys.modules if name.split(".")[0] == "deployments"]:
            del sys.modules[name]
        sys.modules.update(ours)
    return found


def some_latents(shape: ClipShape) -> Tensor:
    """Noise, denormalised: the time does not depend on what is seen."""
    noise = torch.randn(shape.latents, generator=torch.Generator().manual_seed(0))
    return denormalise(load_vae(MODEL, "float32", CPU), noise)


def compare(decoders: Mapping[str, Decode], latents: Tensor) -> dict[str, dict[str, float]]:
    """How far each is from the VAE's own decoding of the whole; the times would else compare nothing."""
    with torch.no_grad():
        wanted = load_vae(MODEL, "float32", CPU).decode(latents[None]).sample[0]
    found = {}
    for name, decode in decoders.items():
        frames = torch.cat(list(decode(latents)), dim=1)
        error = float((frames - wanted).norm() / wanted.norm())
        if error > TOLERANCE:
            raise SystemExit(f"{name}: frames are {error:.1e} off the VAE's own, over {TOLERANCE:.0e}")
        other_bytes = float((to_uint8(frames) != to_uint8(wanted)).double().mean())
        found[name] = {"relative_error": error, "other_bytes": other_bytes}
    return found


def measure(decoders: Mapping[str, Decode], latents: Tensor, rounds: int) -> dict[str, Any]:
    """Seconds of each contender, of the mp4, and of both together; milliseconds by kind of operation."""
    names = list(decoders)
    decode = decoders[names[0]]
    frames = list(_frames(decode, latents))
    runs: dict[str, Callable[[], object]] = {name: partial(_drain, decoders[name], latents) for name in names}
    runs["the mp4 alone"] = partial(_write, lambda take: _each(frames, take), frames)
    runs["decoding, then the mp4"] = partial(_write, lambda take: _each(list(_frames(decode, latents)), take), frames)
    runs["the mp4 beside decoding"] = partial(_write, lambda take: hand_over(_frames(decode, latents), take), frames)
    taken = take_turns(dict(enumerate(map(_any_turn, runs.values()))), rounds)
    seconds = dict(zip(runs, taken.values(), strict=True))
    base = AGAINST if AGAINST in seconds else names[0]
    return {
        "ms": {name: round(statistics.median(s) * 1e3, 2) for name, s in seconds.items()},
        "spread": {name: round(spread(s), 3) for name, s in seconds.items()},
        "base": base,
        "ratio": {
            name: round(statistics.median(seconds[name]) / statistics.median(seconds[base]), 3) for name in names
        },
        "kinds": {name: _kinds(decoders[name], latents) for name in names},
    }


def _any_turn(run: Callable[[], object]) -> Callable[[int], object]:
    return lambda turn: run()


def _frames(decode: Decode, latents: Tensor) -> Iterator[Tensor]:
    return (to_uint8(piece) for piece in decode(latents))


def _drain(decode: Decode, latents: Tensor) -> None:
    for _ in _frames(decode, latents):
        pass


def _each(frames: Sequence[Tensor], take: Callable[[Tensor], object]) -> None:
    for piece in frames:
        take(piece)


def _write(give: Callable[[Callable[[Tensor], object]], object], like: Sequence[Tensor]) -> None:
    """An mp4 of what `give` hands to the function it is given; of the size of `like`."""
    height, width = like[0].shape[1:3]
    with tempfile.TemporaryDirectory(prefix="mochi-bench-") as folder:
        writer = Mp4Writer(Path(folder) / "v.mp4", width, height, FPS)
        try:
            give(writer.write)
            writer.finish()
        except BaseException:
            writer.kill()
            raise


def _kinds(decode: Decode, latents: Tensor) -> dict[str, Any]:
    found = by_kind(CPU, partial(_drain, decode, latents))
    return {kind: found[f"{kind}_ms"] for kind in (*KINDS, OTHER) if found[f"{kind}_ms"]}


def tables(section: dict[str, Any], clip: str, rounds: int) -> Iterator[Table]:
    """Two: what each takes, and where the time of the decoders goes."""
    times = Table("", "ms", f"of {section['base']}", "spread", title=f"{clip}, medians of {rounds} rounds")
    for name, ms in section["ms"].items():
        ratio = section["ratio"].get(name)
        times.add_row(name, f"{ms:.1f}", "" if ratio is None else f"{ratio:.2f}", f"{section['spread'][name]:.0%}")
    yield times
    kinds = list(dict.fromkeys(kind for found in section["kinds"].values() for kind in found))
    parts = Table("ms, under the profiler", *kinds, title="Where it goes")
    for name, found in section["kinds"].items():
        parts.add_row(name, *(f"{found.get(kind, 0):.1f}" for kind in kinds))
    yield parts


if __name__ == "__main__":
    main()
