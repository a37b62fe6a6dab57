"""A video that a real server makes, step by step."""

from tests.support.servers.server import Server
from tests.support.waiting import wait_until


def clip(server: Server, video_id: str) -> bytes:
    """The mp4 of the video, once it is done."""
    server.wait_for(video_id, "completed")
    with server.client() as client:
        return client.get(f"/v1/videos/{video_id}/content").raise_for_status().content


def wait_for_step(server: Server, video_id: str, step: int) -> int:
    """Returns the step that was seen, which may be a later one."""
    seen = 0

    def is_there() -> bool:
        nonlocal seen
        seen = int(server.get(video_id)["step"])
        return seen >= step

    wait_until(is_there, server.log_tail)
    return seen
