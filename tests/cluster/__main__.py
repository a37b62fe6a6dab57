"""python -m tests.cluster: real Ray nodes as pods on this machine, and what becomes of replicas and jobs on them."""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from tests.chaos.report import say
from tests.cluster.life import STRIKES
from tests.cluster.pods import FOLDER, make_network, run_inside, why_no_pods
from tests.cluster.ray_cluster import AUTHENTICATION
from tests.cluster.run import Options, Run
from tests.cluster.stores import Stores
from tests.support.cluster.manifests import Tree

PARTS = ("placement", "life", "takeover", "scale")
NAMES = tuple(strike.name for strike in STRIKES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 unless all was as promised, 2 where there can be no pods."""
    given = _parse(arguments)
    if FOLDER in os.environ:
        return _inside(given, Path(os.environ[FOLDER]))
    if why := why_no_pods():
        sys.stderr.write(f"{why}\n")
        return 2
    asked = sys.argv[1:] if arguments is None else arguments
    # The last one counts, so the seed that was drawn here is the seed inside.
    return run_inside("tests.cluster", [*asked, "--seed", str(given.seed)], AUTHENTICATION, given.limit_s)


def _inside(given: argparse.Namespace, folder: Path) -> int:
    say(f"seed {given.seed}: {', '.join(given.parts)}")
    make_network(folder)
    stores = Stores(folder / "stores")
    stores.start_redis()
    options = Options(given.seed, given.orders, given.changes, given.jobs, given.strikes)
    run = Run(options, folder, stores)
    parts = {"placement": run.placement, "life": run.life, "takeover": run.takeover, "scale": run.scale}
    result: Tree = {"seed": given.seed}
    for name in given.parts:
        begun = time.monotonic()
        try:
            result[name] = parts[name]()
        except (AssertionError, OSError, RuntimeError, httpx.HTTPError, subprocess.SubprocessError) as error:
            say(f"{name} did not come to its end: {error}")
            result[name] = {"clean": False, "problems": [f"{type(error).__name__}: {error}"]}
        result[name]["seconds"] = round(time.monotonic() - begun, 1)
    result["clean"] = all(result[name]["clean"] for name in given.parts)
    say(json.dumps(result))
    return 0 if result["clean"] else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("--parts", type=_among(PARTS), default=PARTS, help=f"of {','.join(PARTS)} (default all)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of all that is drawn")
    parser.add_argument("--orders", type=int, default=3, help="of growth (default 3)")
    parser.add_argument("--changes", type=int, default=3, help="in an order before it goes to the most (default 3)")
    parser.add_argument("--jobs", type=int, default=40, help="in flight at each strike (default 40)")
    parser.add_argument("--strikes", type=_among(NAMES), default=NAMES, help=f"of {','.join(NAMES)} (default all)")
    parser.add_argument("--limit-s", type=float, default=3600, help="then all of it is ended (default 3600)")
    return parser.parse_args(arguments)


def _among(allowed: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """A parser of names with commas between them."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in text.split(",") if name.strip())
        if unknown := [name for name in names if name not in allowed]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: unknown; there are {', '.join(allowed)}")
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main())
