"""Orders in which the replicas of a cluster grow. Pure."""

import random
from collections.abc import Mapping

Counts = dict[str, int]
Bounds = Mapping[str, tuple[int, int]]


def growth_order(bounds: Bounds, changes: int, rng: random.Random) -> list[Counts]:
    """How many replicas of each deployment there are to be, step after step.

    It begins with the fewest of each; then one deployment at a time gets any count that its bounds allow, and then each
    its most, the one after the other.

    Args:
        bounds: the fewest and the most replicas, by deployment.
        changes: steps between the fewest and the way to the most.
        rng: draws them.
    """
    now = {name: least for name, (least, _) in bounds.items()}
    steps = [dict(now)]
    movable = [name for name, (least, most) in bounds.items() if least < most]
    for _ in range(changes):
        name = rng.choice(movable)
        least, most = bounds[name]
        now[name] = rng.choice([count for count in range(least, most + 1) if count != now[name]])
        steps.append(dict(now))
    for name in rng.sample(movable, len(movable)):
        if now[name] < bounds[name][1]:
            now[name] = bounds[name][1]
            steps.append(dict(now))
    return steps
