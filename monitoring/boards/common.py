"""What all dashboards write in."""

from monitoring.promql import JOB, PromQL

BOARD = PromQL(matchers=(f'{JOB}="$job"',), window="$__rate_interval")
"""Of the server that is chosen, and in the steps that the picture has room for."""

JOBS = "30m"
"""The window of what is said of whole jobs: they end one by one, and Grafana's own steps would be empty between."""

RARE = "1h"
"""The window of what should not happen at all."""
