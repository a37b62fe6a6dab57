"""Whether ffmpeg writes a frame: `codec.py x264 96 96`."""

import sys

from deployments.decoder.codec import encoding_problem
from deployments.decoder.mp4_encoder import CODECS
from deployments.storage.scratch import scratch_folder
from serve_app.doctor.children.run import answer


def main(name: str, width: str, height: str) -> None:
    codec = next(one for one in CODECS if one == name)
    with scratch_folder("mochi-codec-") as folder:
        try:
            problem = encoding_problem(codec, folder / "probe.mp4", int(width), int(height))
        except (OSError, RuntimeError) as error:  # imageio_ffmpeg finds no program
            problem = str(error)
    answer({"problem": None if problem is None else " ".join(problem.split())})


if __name__ == "__main__":
    main(*sys.argv[1:])
