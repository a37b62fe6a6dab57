"""All files that are made of the dashboards and the alerts."""

import json
from pathlib import Path

from monitoring.boards.all import DASHBOARDS
from monitoring.grafana import as_json
from monitoring.rules import kubernetes_rules, rule_tests, rules

HERE = Path(__file__).resolve().parent
BOARDS = HERE / "dashboards"
RULES = HERE / "alerts.yaml"
RULE_TESTS = HERE / "alerts_test.yaml"
KUBERNETES_RULES = HERE.parent / "kuberay" / "components" / "prometheus" / "alerts.yaml"


def files() -> dict[Path, str]:
    """What each should hold."""
    boards = {
        BOARDS / f"{dashboard.name}.json": json.dumps(as_json(dashboard), indent=1, ensure_ascii=False) + "\n"
        for dashboard in DASHBOARDS
    }
    return boards | {RULES: rules(), RULE_TESTS: rule_tests(), KUBERNETES_RULES: kubernetes_rules()}
