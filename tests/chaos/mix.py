"""The requests of a run: few and small, so that hundreds of jobs take half a minute."""

from typing import Any

RED = "a red circle moving right"
BLUE = "a blue square moving left"
GREEN = "a green circle moving up"
YELLOW = "a yellow square moving down"

_ASKED: tuple[tuple[str, int, str, int, int], ...] = (
    (RED, 6, "32x32", 7, 8),
    (BLUE, 2, "32x32", 7, 6),
    (GREEN, 3, "32x32", 7, 12),
    (YELLOW, 4, "48x32", 13, 10),
    (RED, 5, "48x32", 13, 6),
)


def _request(index: int) -> dict[str, Any]:
    prompt, seed, size, num_frames, steps = _ASKED[index % len(_ASKED)]
    return {
        "prompt": prompt,
        "seed": seed,
        "size": size,
        "num_frames": num_frames,
        "num_inference_steps": steps,
        "exact": index >= len(_ASKED),
    }


# Each clip once with the batches that come, once with the same bits whatever it is batched with.
MIX: tuple[dict[str, Any], ...] = tuple(_request(index) for index in range(2 * len(_ASKED)))


def longer(times: int) -> tuple[dict[str, Any], ...]:
    """The mix with so many times the steps, so that jobs are in work when a part is struck."""
    return tuple({**request, "num_inference_steps": times * request["num_inference_steps"]} for request in MIX)
