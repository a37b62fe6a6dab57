"""What users of the `openai` package do, by whatever version of it this Python has: a program of its own.

MOCHI_SERVE_URL names the server. It writes its files into the folder where it runs, and tells as JSON what it got.
"""

import json
import os
import sys
from itertools import islice

import openai

UNKNOWN = "video_" + "0" * 32


def main() -> None:
    client = openai.OpenAI(base_url=f"{os.environ['MOCHI_SERVE_URL']}/v1", api_key="none")
    videos = client.videos
    # As everybody calls it who has never heard of Mochi.
    created = videos.create(model="sora-2", prompt="a red circle moving right", seconds="4", size="1280x720")
    completed = videos.poll(created.id)
    videos.download_content(created.id).write_to_file("created.mp4")
    videos.download_content(created.id, variant="thumbnail").write_to_file("thumbnail.webp")
    own = videos.create_and_poll(
        prompt="a blue square moving left",
        extra_body={"seed": 7, "size": "64x64", "extra_params": {"num_inference_steps": 4, "fps": 12}},
    )
    videos.download_content(own.id).write_to_file("own.mp4")
    remix = videos.poll(videos.remix(created.id, prompt="a green star moving up").id)
    videos.download_content(remix.id).write_to_file("remix.mp4")
    retrieved = videos.retrieve(remix.id)
    listed = [video.id for video in islice(videos.list(limit=2), 3)]
    deleted = videos.delete(remix.id)
    errors = []
    for call in (
        lambda: videos.retrieve(remix.id),
        lambda: videos.download_content(UNKNOWN),
        lambda: videos.create(prompt="a red circle", extra_body={"num_frames": 8}),
        lambda: videos.create(prompt="a red circle", extra_body={"num_inference_step": 8}),
        lambda: videos.create(prompt="a red circle", input_reference=b"\x89PNG"),
        lambda: videos.create(prompt="a red circle", model="gpt-5"),
    ):
        try:
            call()
        except openai.APIStatusError as error:
            errors.append([type(error).__name__, error.param, error.code])
    told = {
        "version": openai.__version__,
        "created": created.to_dict(mode="json"),
        "completed": completed.to_dict(mode="json"),
        "own": own.to_dict(mode="json"),
        "remix": remix.to_dict(mode="json"),
        "retrieved": retrieved.to_dict(mode="json"),
        "listed": listed,
        "deleted": deleted.to_dict(mode="json"),
        "errors": errors,
    }
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
