"""The alerts as Prometheus' rule file, as promtool's tests of it, and as an object of Prometheus' operator."""

import re
from typing import Any

import yaml

from monitoring.alerts import ALERTS, GROUP, Alert
from monitoring.made_up import AT, CASES, WELL, Case, Series

MADE = "# make monitoring writes this file, from monitoring/{source}.\n"
NAMESPACE = "mochi-serve"


def rules() -> str:
    """alerts.yaml."""
    return MADE.format(source="alerts.py") + _dumped(_groups())


def kubernetes_rules() -> str:
    """The same for Prometheus' operator."""
    return MADE.format(source="alerts.py") + _dumped(
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": {"name": "mochi-serve"},
            "spec": _groups(),
        }
    )


def rule_tests() -> str:
    """alerts_test.yaml: a server that is well raises nothing at any time, and each case does what it says."""
    tests = [_test("a server that is well", WELL, [_silent(alert, AT) for alert in ALERTS])]
    tests += [_case(case) for case in CASES]
    return MADE.format(source="made_up.py") + _dumped(
        {"rule_files": ["alerts.yaml"], "evaluation_interval": "1m", "tests": tests}
    )


def _groups() -> dict[str, Any]:
    return {"groups": [{"name": GROUP, "rules": [_rule(alert) for alert in ALERTS]}]}


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expression,
        "for": alert.after,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "runbook": alert.runbook},
    }


def _case(case: Case) -> dict[str, Any]:
    (alert,) = [alert for alert in ALERTS if alert.name == case.alert]
    expected = [_firing(alert, case.labels)] if case.fires else []
    return _test(f"{alert.name}: {case.about}", case.series, [_silent(alert, AT) | {"exp_alerts": expected}])


def _test(name: str, series: Series, checks: list[dict[str, Any]]) -> dict[str, Any]:
    made_up = [{"series": name, "values": values} for name, values in series.items()]
    return {"name": name, "interval": "1m", "input_series": made_up, "alert_rule_test": checks}


def _silent(alert: Alert, minute: int) -> dict[str, Any]:
    return {"eval_time": f"{minute}m", "alertname": alert.name, "exp_alerts": []}


def _firing(alert: Alert, labels: dict[str, str]) -> dict[str, Any]:
    summary = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda match: labels[match[1]], alert.summary)
    return {
        "exp_labels": {"severity": alert.severity} | labels,
        "exp_annotations": {"summary": summary, "runbook": alert.runbook},
    }


def _dumped(tree: dict[str, Any]) -> str:
    text: str = yaml.dump(tree, Dumper=_Plain, sort_keys=False, width=10_000, allow_unicode=True)
    return text


class _Plain(yaml.SafeDumper):
    """Without anchors, which nobody wants to read."""

    def ignore_aliases(self, data: object) -> bool:
        return True
