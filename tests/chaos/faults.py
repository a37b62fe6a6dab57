"""The faults, where each is shown, how often it strikes and when."""

import random
from dataclasses import dataclass

from tests.chaos import sites
from tests.chaos.sites import Open

FIRST_S = 2.0
JITTER_S = 2.0


@dataclass(frozen=True, slots=True)
class Fault:
    """strikes: the fewest and the most. apart_s: from the end of one to the next at least, so that the part is back.

    limit_s: for all of it, with its jobs.
    """

    name: str
    site: Open
    strikes: tuple[int, int] = (3, 5)
    apart_s: float = 12.0
    limit_s: float = 240.0

    def pauses(self, rng: random.Random) -> list[float]:
        """Seconds before each strike: the first ones count from the last job's acceptance."""
        count = rng.randint(*self.strikes)
        return [rng.uniform(0, FIRST_S) if n == 0 else self.apart_s + rng.uniform(0, JITTER_S) for n in range(count)]


# Those of one site stand together: they share its server. The last of a site may leave it worn.
FAULTS = (
    Fault("none", sites.plain, (0, 0)),
    Fault("sampler", sites.plain),
    Fault("decoder", sites.plain),
    Fault("encoder", sites.plain),
    Fault("registry", sites.plain),
    Fault("ingress", sites.plain),
    Fault("controller", sites.plain),
    Fault("hang", sites.plain, (len(sites.HUNG), len(sites.HUNG)), 4.0, limit_s=480.0),
    Fault("ray", sites.plain, (1, 1)),
    Fault("storage", sites.outside, (1, 1)),
    Fault("store-says-no", sites.outside, (1, 1)),
    Fault("postgres", sites.outside),
    Fault("disk", sites.on_small_disk, (1, 1)),
    Fault("clock", sites.moved_clock, (2, 2), 8.0),
)
NAMES = tuple(fault.name for fault in FAULTS)
