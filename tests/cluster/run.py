"""The parts of a run, on stores and clusters that they share."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx

from tests.chaos.job_records import JobRecords
from tests.chaos.judge import Outcome
from tests.chaos.report import details, header, line, say
from tests.chaos.round import make_references
from tests.cluster import life, placement, scale
from tests.cluster.life import Site, Strike
from tests.cluster.pods import NETWORK
from tests.cluster.ray_cluster import RayCluster
from tests.cluster.service import URL, Service
from tests.cluster.stores import Stores
from tests.cluster.takeover import Takeover
from tests.support.cluster.manifests import Tree

# The last part of the addresses that a cluster may use: its head's, then its workers'.
PLACEMENT = range(10, 40)
FIRST = range(50, 90)
SECOND = range(100, 140)
SCALE = range(150, 190)


@dataclass(frozen=True)
class Options:
    """What is asked of a run.

    orders, changes: of placement. jobs, strikes: of life; so many jobs for each strike.
    """

    seed: int
    orders: int
    changes: int
    jobs: int
    strikes: Sequence[str]


@dataclass
class Run:
    """All parts of one call."""

    options: Options
    folder: Path
    stores: Stores
    _service: Service | None = None
    _site: Site | None = None
    _clips: list[bytes] = field(default_factory=list)

    def placement(self) -> Tree:
        """All pods that the groups may have, from the beginning: where Serve puts replicas is the question."""
        ray_cluster = RayCluster("placement", PLACEMENT[0], self.folder, {})
        try:
            self._started(ray_cluster, {name: group.most for name, group in ray_cluster.groups.items()})
            say(placement.header())
            options = self.options
            steps = placement.Placement(ray_cluster).orders(options.orders, options.changes, options.seed)
            return placement.as_json(steps)
        finally:
            ray_cluster.stop()

    def life(self) -> Tree:
        site = self._first_site()
        say(header())
        wanted = [strike for strike in life.STRIKES if strike.name in self.options.strikes]
        rounds: list[tuple[Strike, Outcome]] = []
        for strike in wanted:
            try:
                rounds.append((strike, self._struck(site, strike)))
            except (AssertionError, OSError, RuntimeError, httpx.HTTPError) as error:
                say(f"{strike.name:<13}  did not come to its end, and what comes after it was left out: {error}")
                return _as_json(rounds, [f"{strike.name}: {error}"])
        return _as_json(rounds)

    def takeover(self) -> Tree:
        before = self._first_site()
        assert self._service is not None
        after = Site(self._cluster("second", SECOND), before.records, self._service, before.api_key)
        self._started(after.ray_cluster, life.PODS)
        after.ray_cluster.deploy(life.serve_config())
        after.ray_cluster.wait_settled()
        strike = Takeover(before.ray_cluster, self._service, _addresses(SECOND)).strike
        self._site = after
        say(header())
        return _as_json([(strike, self._struck(after, strike))])

    def scale(self) -> Tree:
        """A cluster of its own, alone on the machine: what ran before it ends."""
        if self._site is not None:
            self._site.ray_cluster.stop()
            self._site = None
        site = self._new_site("scale", SCALE, scale.PODS)
        try:
            scale.let_go(site)
            clips = asyncio.run(make_references(URL, life.ROUND_S, scale.MIX, site.api_key))
            outcome, seen = scale.burst(site, clips, self.options.jobs)
        finally:
            site.ray_cluster.stop()
        say("\n".join([header(), line(outcome), *details(outcome), seen.line()]))
        found = [*life.broken_promises(outcome), *seen.problems]
        return {"clean": not found, "problems": found, "rounds": [outcome.row], **asdict(seen)}

    def _first_site(self) -> Site:
        """A cluster that serves; made once."""
        if self._site is None:
            self._site = self._new_site("first", FIRST, life.PODS)
            self._clips = asyncio.run(life.references(self._site))
        return self._site

    def _new_site(self, name: str, numbers: range, pods: dict[str, int]) -> Site:
        """A cluster alone on the stores, which are started once, with a key for it."""
        if self._service is None:
            self.stores.start_postgres()
            self.stores.start_s3()
            self._service = Service(self.folder)
        ray_cluster = self._cluster(name, numbers)
        self._service.point_at(_addresses(numbers))
        self._started(ray_cluster, pods)
        begun = time.monotonic()
        site = Site(ray_cluster, JobRecords(self.stores.database_url), self._service)
        site.deploy()
        say(f"{name}: a video can be made {time.monotonic() - begun:.0f} s after the deploy")
        site.make_key()
        return site

    def _cluster(self, name: str, numbers: range) -> RayCluster:
        front = self.folder / "front"
        if not front.exists():
            life.write_front(front)
        environ = {**self.stores.environ, "RAY_SERVE_HAPROXY_BINARY_PATH": str(front)}
        return RayCluster(name, numbers[0], self.folder, environ)

    def _started(self, ray_cluster: RayCluster, counts: dict[str, int]) -> None:
        begun = time.monotonic()
        ray_cluster.start(counts)
        say(f"{ray_cluster.name}: {len(ray_cluster.nodes())} Ray nodes joined in {time.monotonic() - begun:.0f} s")

    def _struck(self, site: Site, strike: Strike) -> Outcome:
        site.settle()
        rng = random.Random(f"{self.options.seed} {strike.name}")
        outcome = asyncio.run(life.struck(site, self._clips, strike, self.options.jobs, rng))
        life.tell(strike, outcome, site)
        return outcome


def _addresses(numbers: range) -> list[str]:
    """Of the pods that clients may reach: all but the head, those too that are not there yet."""
    return [f"{NETWORK}.{number}" for number in numbers[1:]]


def _as_json(rounds: Sequence[tuple[Strike, Outcome]], trouble: Sequence[str] = ()) -> Tree:
    found = [*trouble]
    found += [f"{strike.name}: {problem}" for strike, outcome in rounds for problem in life.problems(strike, outcome)]
    rows = [outcome.row | {"odd": outcome.odd, "repeated": outcome.repeated} for _, outcome in rounds]
    return {"clean": bool(rounds) and not found, "problems": found, "rounds": rows}
