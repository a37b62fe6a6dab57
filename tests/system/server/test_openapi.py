"""A whole server does what its OpenAPI document says, tried with requests made from it."""

from collections.abc import Callable

import httpx
import pytest

from serve_app.jobs import JobState
from tests.support.http.api_fuzz import SYNC, Fuzz
from tests.support.servers.server import Server


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_server_answers_as_it_says(server: Server) -> None:
    with server.client() as client:
        fuzz = Fuzz(server.url, ended_videos(client))
        # A video of any request takes a real server as long as it takes.
        fuzz.run(600, seed=8, left_out=[SYNC])
        while live := [video for video in client.get("/jobs?limit=100").json()["data"] if not video["completed_at"]]:
            for video in live:
                client.post(f"/cancel/{video['id']}")
    assert fuzz.cases >= 600
    fuzz.check({200, 202, 400, 404, 409})


def ended_videos(client: httpx.Client) -> Callable[[], list[str]]:
    """Ids of some that have ended: no stream of events or long poll of theirs takes its time."""

    def ids() -> list[str]:
        ended = [v["id"] for v in client.get("/jobs", params={"state": JobState.CANCELLED}).json()["data"]]
        while len(ended) < 5:
            made = client.post("/v1/videos", json={"prompt": "a red circle"}).json()
            client.post(f"/cancel/{made['id']}").raise_for_status()
            ended.append(made["id"])
        return ended

    return ids
