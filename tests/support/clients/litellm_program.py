"""What users of LiteLLM's library do, with the provider that is the first argument: a program of its own.

MOCHI_SERVE_URL names the server. It writes its files into the folder where it runs, and tells as JSON what it got.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import litellm
from litellm.types.videos.utils import extract_original_video_id


def main() -> None:
    litellm.suppress_debug_info = True  # it goes to stdout
    provider = sys.argv[1]
    server = {"api_base": f"{os.environ['MOCHI_SERVE_URL']}/v1", "api_key": "none"}
    same = server | {"custom_llm_provider": provider}

    def create(**fields: object) -> str:
        made = litellm.video_generation(
            model=f"{provider}/mochi-1", prompt="a red circle moving right", **server, **fields
        )
        return str(made.id)

    def download(video_id: str, name: str) -> str:
        while litellm.video_status(video_id=video_id, **same).status in ("queued", "in_progress"):
            time.sleep(0.2)
        Path(name).write_bytes(litellm.video_content(video_id=video_id, **same))
        return str(extract_original_video_id(video_id))

    ids = {
        "plain.mp4": create(seconds="4", size="1280x720", user="somebody"),
        "shape.mp4": create(seed=-1, aspect_ratio="16:9", generate_audio=False, extra_body={"duration": 1}),
        "own.mp4": create(seed=7, fps=12, extra_params={"num_inference_steps": 4, "negative_prompt": "blue"}),
    }
    originals = {name: download(video_id, name) for name, video_id in ids.items()}
    remix = litellm.video_remix(video_id=ids["own.mp4"], prompt="a blue square", **same)
    originals["remix.mp4"] = download(remix.id, "remix.mp4")
    status = litellm.video_status(video_id=ids["plain.mp4"], **same)
    try:
        create(num_frames=8)
        error = ""
    except litellm.BadRequestError as refusal:
        error = str(refusal)
    told = {
        "version": version("litellm"),
        "videos": originals,
        "status": status.model_dump(mode="json"),
        "listed": [extract_original_video_id(video["id"]) for video in litellm.video_list(limit=4, **same)["data"]],
        "error": error,
    }
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
