"""Where Ray puts replicas on pods that come as they are needed, with Serve's packing. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

EPSILON = 1e-6


@dataclass(frozen=True)
class Need:
    """What a replica takes."""

    gpus: float
    cpus: float
    resources: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Pods of one kind."""

    name: str
    least: int
    most: int
    gpus: int
    cpus: float
    resources: Mapping[str, float]


class Pod:
    """A pod and what is left of it. A fraction of a GPU is one of a single device, which Ray picks by best fit."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.free_gpus = [1.0] * group.gpus
        self.free = {"CPU": group.cpus, **group.resources}
        self.held: dict[str, list[int]] = {}  # devices, by name of the replica

    def fits(self, need: Need) -> bool:
        return self._devices(need.gpus) is not None and all(
            self.free.get(name, 0) + EPSILON >= amount for name, amount in _amounts(need).items()
        )

    def take(self, name: str, need: Need) -> None:
        devices = self._devices(need.gpus)
        assert devices is not None
        for device in devices:
            self.free_gpus[device] -= min(need.gpus, 1)
        self.held[name] = devices
        self._add(need, -1)

    def give_back(self, name: str, need: Need) -> None:
        for device in self.held.pop(name):
            self.free_gpus[device] += min(need.gpus, 1)
        self._add(need, 1)

    @property
    def free_gpu(self) -> float:
        return sum(self.free_gpus)

    def _add(self, need: Need, sign: int) -> None:
        for name, amount in _amounts(need).items():
            self.free[name] += sign * amount

    def _devices(self, gpus: float) -> list[int] | None:
        each, count = (1.0, round(gpus)) if gpus >= 1 else (gpus, 1 if gpus else 0)
        fitting = [i for i, free in enumerate(self.free_gpus) if free + EPSILON >= each]
        best = sorted(fitting, key=lambda i: self.free_gpus[i])[:count]
        return best if len(best) == count else None


def _amounts(need: Need) -> dict[str, float]:
    amounts = {"CPU": need.cpus, **need.resources}
    return {name: amount for name, amount in amounts.items() if amount}


class Cluster:
    """Pods of the groups, no more than each may have."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = groups
        self.pods = [Pod(group) for group in groups for _ in range(group.least)]
        self._places: dict[str, tuple[Pod, Need]] = {}

    def place(self, name: str, need: Need) -> Pod | None:
        """On the pod in use that has the least left, else on another one; None: the replica waits for ever."""
        candidates = [pod for pod in self.pods if pod.fits(need)]
        pod = min(candidates, key=lambda pod: (not pod.held, pod.free_gpu), default=None) or self._new(need)
        if pod is not None:
            pod.take(name, need)
            self._places[name] = (pod, need)
        return pod

    def remove(self, name: str) -> None:
        """An idle pod beyond the least is given back."""
        pod, need = self._places.pop(name)
        pod.give_back(name, need)
        if not pod.held and self._count(pod.group) > pod.group.least:
            self.pods.remove(pod)

    def _new(self, need: Need) -> Pod | None:
        for group in self.groups:
            pod = Pod(group)
            if self._count(group) < group.most and pod.fits(need):
                self.pods.append(pod)
                return pod
        return None

    def _count(self, group: Group) -> int:
        return sum(pod.group is group for pod in self.pods)
