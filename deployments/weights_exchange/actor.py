"""The directory as Ray's actor, and what a replica takes part with."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

from deployments.weights_exchange.directory import ACTOR, Answer, Ask, Directory, DirectoryAwayError, Join
from deployments.weights_exchange.node import NodeExchange

TIMEOUT_S = 10.0


class RayDirectory(Directory):
    """The named actor, which is found again when it was made anew.

    Args:
        namespace: Ray's, that it is in.
    """

    def __init__(self, namespace: str, timeout_s: float = TIMEOUT_S) -> None:
        self._namespace = namespace
        self._timeout_s = timeout_s
        self._handle: Any = None
        # A replica is made inside a running loop, where Ray's own calls must not block.
        self._threads = ThreadPoolExecutor(4, "weights-directory")

    def join(self, join: Join) -> Answer:
        return self._call("join", join)

    def ask(self, ask: Ask) -> Answer:
        return self._call("ask", ask)

    def _call(self, method: str, argument: Join | Ask) -> Answer:
        return self._threads.submit(self._call_here, method, argument).result()

    def _call_here(self, method: str, argument: Join | Ask) -> Answer:
        try:
            if self._handle is None:
                self._handle = ray.get_actor(ACTOR, namespace=self._namespace)
            answer: Answer = ray.get(getattr(self._handle, method).remote(argument), timeout=self._timeout_s)
            return answer
        except (ValueError, TimeoutError, ray.exceptions.RayError) as error:
            self._handle = None
            raise DirectoryAwayError(str(error).partition("\n")[0]) from error


def node_exchange(namespace: str) -> NodeExchange:
    """This process's part in the cluster's exchange, at the address by which Ray knows this machine."""
    return NodeExchange(RayDirectory(namespace), ray.util.get_node_ip_address())
