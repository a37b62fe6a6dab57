"""What a server's own page of metrics says."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

PATIENCE_S = 30


def page_sums(url: str) -> dict[str, float]:
    """By name: the sum over all series of GET /metrics; nothing while the server does not answer it.

    Args:
        url: of the server, without a path.
    """
    try:
        answer = httpx.get(f"{url}/metrics", timeout=PATIENCE_S)
        answer.raise_for_status()
    except httpx.HTTPError:
        return {}
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found
