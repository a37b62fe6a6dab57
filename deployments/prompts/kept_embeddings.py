"""The embeddings of the texts that were encoded last, so that one that comes again costs no pass. No Ray."""

import threading
from collections import OrderedDict

from torch import Tensor


class KeptEmbeddings:
    """Embeddings and mask by text: the least recently used go first where they exceed a bound. Thread-safe.

    What is kept is given out as it is, and must not be changed.

    Args:
        max_bytes: of all that is kept; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()  # the last one was used last
        self._lock = threading.Lock()

    def get(self, text: str) -> tuple[Tensor, Tensor] | None:
        """Embeddings [L, D] and mask [L], or None."""
        with self._lock:
            if text in self._kept:
                self._kept.move_to_end(text)
            return self._kept.get(text)

    def put(self, text: str, embeds: Tensor, mask: Tensor) -> None:
        """Keep embeddings [L, D] and mask [L]."""
        with self._lock:
            self._bytes += embeds.nbytes + mask.nbytes - _bytes(self._kept.pop(text, ()))
            self._kept[text] = (embeds, mask)
            while self._bytes > self._max_bytes:
                self._bytes -= _bytes(self._kept.popitem(last=False)[1])


def _bytes(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
