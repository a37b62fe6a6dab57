"""A Serve app that does nothing: what a read costs at least behind the same proxy. Deployed by `benchmarks/load.py`."""

from typing import Any

from fastapi import FastAPI
from ray import serve

STATUS = {"id": "video_00000000000000000000000000000000", "object": "video", "status": "completed", "progress": 100}

app = FastAPI()


@app.get("/status/{video_id}")
async def status(video_id: str) -> dict[str, object]:
    """The same answer whatever is asked for."""
    return STATUS


@serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=10_000)
@serve.ingress(app)
class Noop:
    """The app's only deployment, all of Serve's options as they are but the number of requests at once."""


deployment: Any = Noop
noop = deployment.bind()
