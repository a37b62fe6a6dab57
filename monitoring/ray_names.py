"""The few of Ray's own metrics that the cluster's dashboard shows, with the labels that it uses.

They are on the page of each of Ray's nodes and nowhere else; Ray may rename them with any release, and the system test
looks for each.
"""

from dataclasses import dataclass

from monitoring.promql import matcher


@dataclass(frozen=True, slots=True)
class RayMetric:
    """A name on Ray's page, and labels of it."""

    name: str
    labels: tuple[str, ...]

    def by(self, *labels: str, **where: str) -> str:
        """What it shows now, added up by these labels; `where` as in PromQL.now."""
        unknown = {*labels, *where} - {*self.labels}
        assert not unknown, f"{self.name} has no label {unknown}"
        listed = ", ".join(matcher(*pair) for pair in where.items())
        return f"sum by ({', '.join(labels)}) ({self.name}{f'{{{listed}}}' if listed else ''})"


CPU_PERCENT = RayMetric("ray_node_cpu_utilization", ("instance",))
CPUS = RayMetric("ray_node_cpu_count", ("instance",))
MEMORY_USED = RayMetric("ray_node_mem_used_host", ("instance",))
MEMORY_TOTAL = RayMetric("ray_node_mem_total_host", ("instance",))
DISK_USED = RayMetric("ray_node_disk_usage", ("instance",))
DISK_FREE = RayMetric("ray_node_disk_free", ("instance",))
ACTORS = RayMetric("ray_actors", ("State", "Name", "Source"))
HEALTHY = RayMetric("ray_serve_deployment_replica_healthy", ("application", "deployment"))
RESOURCES = RayMetric("ray_resources", ("Name", "State"))

ALL: tuple[RayMetric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, RayMetric))
BY_NAME = {metric.name: metric for metric in ALL}
