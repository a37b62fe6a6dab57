"""python -m tests.chaos: strike each part of a real server while jobs are in flight, and tell what became of them."""

import argparse
import asyncio
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import httpx

from tests.chaos.faults import FAULTS, NAMES, Fault
from tests.chaos.judge import Outcome, as_json
from tests.chaos.report import complaints, details, header, line, say
from tests.chaos.round import Round, blows_of, make_references
from tests.chaos.site import Site
from tests.chaos.sites import UnavailableError
from tests.support.servers.server import wait_ready

REFERENCES_S = 60.0


@dataclass
class Run:
    """All faults of one call, site after site.

    deadline: monotonic seconds; a fault that would begin later is not run, which is trouble.
    """

    folder: Path
    jobs: int
    seed: int
    deadline: float
    references: list[bytes] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    trouble: list[str] = field(default_factory=list)

    def all(self, faults: Sequence[Fault]) -> None:
        for _, group in groupby(faults, key=lambda fault: fault.site):
            waiting = list(group)
            while waiting:
                waiting = self._at_one_site(waiting)

    def _at_one_site(self, faults: list[Fault]) -> list[Fault]:
        """Run the faults on one server; gives those that are left for another, after one that did it harm."""
        if time.monotonic() > self.deadline:
            self._failed(faults, "the time for the whole run was over")
            return []
        folder = Path(tempfile.mkdtemp(prefix="s", dir=self.folder))
        left = list(faults)
        try:
            with faults[0].site(folder) as site:
                self._references(site)
                while left and self._one(site, left.pop(0)):
                    pass
        except UnavailableError as error:
            for fault in left:
                self.skipped[fault.name] = str(error)
                say(f"{fault.name:<13}  skipped: {error}")
            left = []
        except (AssertionError, OSError, RuntimeError, httpx.HTTPError) as error:
            self._failed([fault for fault in faults if fault not in left][-1:] or [left.pop(0)], f"{error}")
        shutil.rmtree(folder, ignore_errors=True)
        return left

    def _references(self, site: Site) -> None:
        if not self.references:
            self.references = asyncio.run(make_references(site.server.url, REFERENCES_S))

    def _one(self, site: Site, fault: Fault) -> bool:
        """Whether the server can be used for another fault."""
        # Of the fault's name too, so that it strikes at the same moments when it is run alone.
        rng = random.Random(f"{self.seed} {fault.name}")
        blows = blows_of(site, fault.name, fault.pauses(rng), rng)
        limit_s = max(1.0, min(fault.limit_s, self.deadline - time.monotonic()))
        outcome = asyncio.run(Round(site, self.references, limit_s).run(fault.name, self.jobs, blows))
        self.outcomes.append(outcome)
        say("\n".join([line(outcome), *details(outcome)]))
        if not outcome.clean:
            say("\n".join([f"  seed {self.seed}; what the server complained of:", *complaints(site.server.log)]))
            return False
        wait_ready(site.server)
        return True

    def _failed(self, faults: Sequence[Fault], why: str) -> None:
        for fault in faults:
            self.trouble.append(f"{fault.name}: {why.splitlines()[0] if why else 'it broke'}")
            say(f"{fault.name:<13}  did not come to its end (seed {self.seed}): {why}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 unless every job ended once, with the right video."""
    given = _parse(arguments)
    faults = [fault for fault in FAULTS if fault.name in given.faults]
    say(f"seed {given.seed}, {given.jobs} jobs for each of {', '.join(fault.name for fault in faults)}\n{header()}")
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        run = Run(Path(folder), given.jobs, given.seed, time.monotonic() + given.limit_s)
        try:
            run.all(faults)
        except KeyboardInterrupt:
            say("interrupted; everything was stopped")
            return 130
    result = as_json(given.seed, run.outcomes, run.skipped, run.trouble)
    say(json.dumps(result))
    return 0 if result["clean"] else 1


def _interrupt(_number: int, _frame: object) -> None:
    """Once: a second wish to stop must not break off the tidying."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=200, help="in flight when a fault strikes (default 200)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of the moments")
    parser.add_argument("--faults", type=_names, default=NAMES, help=f"of {','.join(NAMES)} (default all)")
    parser.add_argument("--limit-s", type=float, default=1500, help="no fault begins or goes on later (default 1500)")
    return parser.parse_args(arguments)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if unknown := [name for name in names if name not in NAMES]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: no such fault; there are {', '.join(NAMES)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
