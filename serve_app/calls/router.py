"""How Serve chooses a device: the one with least on its way whose circuit breaker lets calls through.

Serve's own routers count calls, whatever each costs: a device that got one long sequence would look as idle as one that
got a short one.
"""

import time
from collections.abc import Collection

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

ROUTER = f"{__name__}.LeastLoadedRouter"
"""As Serve's `request_router_class` wants it."""


class LeastLoadedRouter(FIFOMixin, RequestRouter):
    """Runs in the HTTP replica, in a thread of Serve's. Where nothing is known of devices, all are equal."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """All that may be called, in turn, until one has room."""
        # Here, and not above: Serve may have sent this class by value, and with it a copy of what it names.
        from serve_app.calls.device_table import TABLES

        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        table = TABLES.get(self._deployment_id.name)
        avoid: Collection[str] = () if pending_request is None else pending_request.kwargs.get("avoid", ())
        ranked = list(by_name) if table is None else table.rank(by_name, time.monotonic(), avoid)
        return [[by_name[name]] for name in ranked]
