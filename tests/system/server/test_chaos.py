"""The harness of `make chaos`: what it judges, and a small run of it on a real server."""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from deployments.watchdog import watcher
from models.shapes.evaluation.arguments import MODEL
from models.shapes.evaluation.generating import Generator
from tests.chaos.__main__ import main
from tests.chaos.clips import MEAN_LEVELS, difference, frame_difference
from tests.chaos.faults import FAULTS, NAMES
from tests.chaos.job_records import JobRecords, read_only_sqlite
from tests.chaos.judge import Ended, Outcome, as_json
from tests.chaos.mix import MIX, longer
from tests.chaos.report import details, header, line
from tests.chaos.round import Blow, Round, make_references
from tests.chaos.site import Site
from tests.support.servers.server import Server, title_of, wait_ready
from tests.support.workers.fakes import spec

GOOD = Ended("video_1", "completed", steps=8, steps_run=8, completions=1, moves=("+0.000 s  queued",))
PARTS = ("registry", "sampler", "decoder", "encoder", "ingress", "storage")
SPEC_FIELDS = ("prompt", "seed", "num_frames", "num_inference_steps")
PAUSE_S = (0.5, 2.5)
LIMIT_S = 900.0


def outcome(*ended: Ended, **about: object) -> Outcome:
    made = Outcome("sampler", len(ended), ended, strikes=3, in_flight=len(ended), seconds=1.0)
    return replace(made, **about)  # type: ignore[arg-type]


def test_jobs_that_end_as_promised_are_clean() -> None:
    good = outcome(GOOD, replace(GOOD, job_id="video_2", steps_run=11))
    assert good.clean
    assert good.complaints == []
    assert (good.row["accepted"], good.row["completed"], good.row["steps run twice"]) == (2, 2, 3)
    assert as_json(1, [good], {}, [])["clean"]


@pytest.mark.parametrize(
    ("ended", "column", "told"),
    [
        (replace(GOOD, completions=2), "completed twice", "completed 2 times"),
        (replace(GOOD, state="sampling", completions=0), "lost", "still sampling at the limit"),
        (replace(GOOD, state=None, completions=0), "lost", "unknown to the API"),
        (replace(GOOD, state="failed", completions=0, error="x: y"), "failed", "failed: x: y"),
        (replace(GOOD, state="cancelled", completions=0), "failed", "cancelled"),
        (replace(GOOD, difference="9 bytes"), "videos different", "another video: 9 bytes"),
    ],
)
def test_a_job_that_does_not_is_counted_and_told(ended: Ended, column: str, told: str) -> None:
    bad = outcome(GOOD, ended)
    assert bad.row[column] == 1
    assert sum(bad.row[name] for name in ("completed twice", "lost", "failed", "videos different")) == 1
    assert not bad.clean
    (complaint,) = bad.complaints
    assert told in complaint and "queued" in complaint
    assert not as_json(1, [outcome(GOOD), bad], {}, [])["clean"]
    assert complaint in "\n".join(details(bad))


def test_metrics_that_tell_another_sum_are_no_clean_run() -> None:
    bad = outcome(GOOD, sums={"mochi_serve_steps_run_total": (11.0, 12.0)})
    assert (bad.clean, bad.row["sums different"]) == (False, 1)
    assert bad.complaints == ["mochi_serve_steps_run_total is beyond the jobs' rows by 11.0, and was by 12.0"]


def test_a_request_that_became_two_jobs_counts_as_completed_twice() -> None:
    bad = outcome(GOOD, unasked=("video_9",))
    assert (bad.clean, bad.row["completed twice"]) == (False, 1)
    assert "video_9" in bad.complaints[0]


def test_a_request_that_was_never_accepted_counts_as_lost() -> None:
    bad = outcome(GOOD, refused=("503 away",))
    assert (bad.clean, bad.row["lost"]) == (False, 1)
    assert "503 away" in bad.complaints[0]


def test_trouble_of_a_site_is_not_a_clean_run() -> None:
    assert not as_json(1, [outcome(GOOD)], {}, ["disk: not ready"])["clean"]


def test_each_line_stands_below_its_header() -> None:
    assert len(line(outcome(GOOD))) == len(header())


def test_a_video_must_be_the_same() -> None:
    assert difference(b"clip", b"clip", exact=True) is None
    assert difference(b"clip", b"clap", exact=True) is not None


def test_frames_may_differ_by_roundings_only() -> None:
    frames = np.full((7, 32, 32, 3), 100, np.uint8)
    rounded = frames.copy()
    rounded[0, 0, 0] += 2
    assert frame_difference(frames, rounded) is None
    assert frame_difference(frames, frames + np.uint8(MEAN_LEVELS + 1)) is not None
    assert frame_difference(frames, frames[:6]) is not None


def test_strikes_come_from_the_seed_and_far_enough_apart() -> None:
    for fault in FAULTS:
        first, again, other = (fault.pauses(random.Random(seed)) for seed in (1, 1, 2))
        assert first == again
        assert fault.strikes[0] <= len(first) <= fault.strikes[1]
        assert not first or first != other
        assert all(pause >= fault.apart_s for pause in first[1:])


def test_an_unknown_fault_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--faults", "sampler,gremlin"])
    told = capsys.readouterr().err
    assert "gremlin: no such fault" in told and all(name in told for name in NAMES)


def test_half_of_the_mix_is_exact() -> None:
    assert sum(bool(request["exact"]) for request in MIX) * 2 == len(MIX)


@pytest.mark.slow
@pytest.mark.parametrize("size", sorted({request["size"] for request in MIX}))
def test_the_mix_is_the_same_in_any_batch(size: str) -> None:
    """With other weights a clip may change for a rounding, because the encoder decides otherwise: change its seed."""
    asked = [request for request in MIX if request["size"] == size and not request["exact"]]
    width, height = map(int, size.split("x"))
    specs = [spec(**{name: r[name] for name in SPEC_FIELDS}, width=width, height=height) for r in asked]
    maker = Generator(MODEL, 64)
    alone = list(maker.make(specs, batch=1))
    for batch in (2, 3, 5, 8):
        for count, frames in enumerate(maker.make(4 * specs, batch)):
            assert frame_difference(alone[count % len(specs)], frames) is None, asked[count % len(specs)]
    others = maker.make([replace(each, seed=each.seed + 100) for each in specs], batch=1)
    assert all(frame_difference(*pair) for pair in zip(alone, others, strict=True))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_every_process_of_ours_is_watched(server: Server) -> None:
    """What becomes of one that hangs: tests/integration/watchdog, and the fault `hang` of a run."""
    for part in PARTS:
        for pid in server.pids(part):
            children = [title_of(child) for child in psutil.Process(pid).children()]
            assert sum(f"{watcher.__file__} {pid} " in line for line in children) == 1, (part, children)


@pytest.mark.parametrize(
    ("parts", "jobs", "mix"),
    [
        pytest.param(("registry", "sampler", "ingress"), 6, longer(4)[1::3], id="those-that-hold-jobs"),
        pytest.param(PARTS, 20, longer(2), id="all", marks=pytest.mark.slow),
    ],
)
async def test_whatever_part_is_killed_no_job_is_lost(
    server: Server, parts: Sequence[str], jobs: int, mix: Sequence[dict[str, Any]]
) -> None:
    """Jobs are in flight while each part of the server dies once."""
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    references = await make_references(server.url, LIMIT_S, mix)
    site = Site(server, server.data.parent, {}, JobRecords(read_only_sqlite(str(server.data / "jobs.db"))))
    order = rng.sample(parts, len(parts))
    blows = [Blow(rng.uniform(*PAUSE_S), partial(site.kill, part)) for part in order]
    made = await Round(site, references, LIMIT_S, mix).run("parts", jobs, blows)
    told = [f"seed {seed}: {', '.join(order)}", header(), line(made), *details(made)]
    assert made.clean, "\n".join([*told, server.log_tail()])
    assert made.strikes == len(parts), "some part was not killed while jobs ran: nothing was tried\n" + "\n".join(told)
    wait_ready(server)
    site.tidy()
