"""What `top` shows, in so many lines and columns."""

import io
from typing import Any

import pytest
from rich.console import Console

from serve_app.cli.health.top import view


def status(replicas: int = 1, running: int = 1, waiting: int = 1, gpus: int = 0) -> dict[str, Any]:
    device = {"device": "cuda:0 NVIDIA H100 80GB HBM3", "model": "mochi-1", "problem": None, "slots": 2, "busy": 1}
    job = {"stage": "sampling", "tier": "standard", "tenant": "acme", "replica": "r0", "progress": 40, "step": 3}
    job |= {"num_inference_steps": 64, "step_s": 5.8312, "size": "848x480", "num_frames": 163}
    since = {"oldest_at": 1_799_999_880, "gpu_seconds": 5400.0}
    gpu = {"memory_total": 80e9, "memory_used": 61.4e9, "utilization": 0.97, "power_w": None, "temperature_c": 64.0}
    return {
        "version": "0.1.0",
        "at": 1_800_000_000,
        "waiting": [
            {"stage": "encoding", "tier": "batch", "tenant": f"t{n}", "count": 7, **since} for n in range(waiting)
        ],
        "running": [{"id": f"video_{n:032x}", **job} for n in range(running)],
        "replicas": [{"replica": f"r{n}", "stage": "sampling", **device} for n in range(replicas)],
        "gpus": [{"uuid": f"GPU-{n:08x}-77", **gpu} for n in range(gpus)],
        "starting": {"decoding": {"count": 2, "ready_at": 1_800_000_060}},
    }


def drawn(found: dict[str, Any], width: int = 80, height: int = 24, **more: Any) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, highlight=False)
    console.print(view(found, height, **more))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue().splitlines()


def test_all_is_told() -> None:
    text = "\n".join(drawn(status()))
    assert (
        text.startswith("mochi-serve 0.1.0  ")
        and "  1 running, 7 waiting (1.5 h of GPUs)" in text
        and "\x1b" not in text
    )
    for part in ("r0", "1/2", "cuda:0 NVIDIA H100", "..00000000", "3/64", "5.83", "848x480x163", "t0", "2 min"):
        assert part in text
    assert "2 starting" in text and "no answer" not in text


@pytest.mark.parametrize(
    "counts", [(1, 1, 1, 1), (100, 1, 1, 1), (1, 100, 100, 0), (40, 40, 40, 40), (0, 0, 300, 0), (0, 0, 0, 0)]
)
@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50)])
def test_it_fits_the_terminal_and_counts_what_does_not(
    counts: tuple[int, int, int, int], width: int, height: int
) -> None:
    lines = drawn(status(*counts), width, height)
    assert len(lines) <= height and max(map(len, lines)) <= width
    cut = [int(line.split()[1]) for line in lines if line.startswith("and ")]
    shown = sum(line.startswith(("r", "..", "7 ", "GPU-")) for line in lines)
    assert shown + sum(cut) == sum(counts)


def test_gpus_are_told_of_where_there_are_some() -> None:
    assert not any("MEMORY" in line for line in drawn(status()))
    lines = drawn(status(gpus=2))
    (row,) = [line for line in lines if line.startswith("GPU-00000001")]
    assert row.split() == ["GPU-00000001", "61.4", "of", "80.0", "GB", "97%", "64", "C"]


def test_names_of_others_steer_no_terminal() -> None:
    found = status()
    found["running"][0]["tenant"] = "a\x1b[2Jb"
    assert "\x1b" not in "".join(drawn(found))


def test_an_old_view_says_so() -> None:
    assert "no answer for 7 s" in drawn(status(), age_s=7.2)[0]
