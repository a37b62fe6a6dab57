"""Tensors of a device to the CPU while the device works on."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def host_copies(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Each tensor on the CPU.

    One of a GPU comes when the work on the next is already queued there: it is copied into pinned memory without
    waiting, and given out once an event says that it has arrived. One of the CPU comes at once.
    """
    on_its_way: tuple[Tensor, torch.cuda.Event] | None = None
    for tensor in tensors:
        if tensor.device.type == "cpu":
            yield tensor
            continue
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        if on_its_way is not None:
            yield _arrived(*on_its_way)
        on_its_way = copy, arrived
    if on_its_way is not None:
        yield _arrived(*on_its_way)


def _arrived(copy: Tensor, event: torch.cuda.Event) -> Tensor:
    event.synchronize()
    return copy
