"""Reads chunks from other nodes."""

import time
from collections.abc import Callable, Iterator
from urllib.parse import quote

import urllib3

from deployments.storage.fetching.errands import Chunk, PeerError

READ_BYTES = 1024 * 1024


class Peers:
    """The other nodes' servers.

    Args:
        connect_s: within which a node must take a connection.
        silence_s: without a byte, after which a node counts as stalled.
        min_rate: bytes a second, below which it counts so, too.
    """

    def __init__(
        self,
        connect_s: float = 3,
        silence_s: float = 5,
        min_rate: float = 2e6,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._min_rate = min_rate
        self._silence_s = silence_s
        self._clock = clock
        timeout = urllib3.Timeout(connect=connect_s, read=silence_s)
        self._pool = urllib3.PoolManager(num_pools=64, maxsize=8, timeout=timeout, retries=False)

    def read(self, address: str, token: str, state: str, chunk: Chunk) -> Iterator[bytes]:
        """The bytes of a chunk. Raises PeerError."""
        deadline = self._clock() + self._silence_s + chunk.length / self._min_rate
        try:
            response = self._pool.request(
                "GET",
                f"http://{address}/chunks/{chunk.index}?state={quote(state, safe='')}",
                headers={
                    "Authorization": f"Bearer {token}",
                    "Range": f"bytes={chunk.offset}-{chunk.offset + chunk.length - 1}",
                },
                preload_content=False,
                redirect=False,
            )
            try:
                if response.status != 206:
                    raise PeerError(f"{address} answered {response.status}")
                left = chunk.length
                while left and (data := response.read(min(READ_BYTES, left))):
                    left -= len(data)
                    yield data
                    if self._clock() > deadline:
                        raise PeerError(f"{address} sends less than {self._min_rate / 1e6:g} MB/s")
            finally:
                response.close()
                response.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise PeerError(f"{address}: {error}") from error
