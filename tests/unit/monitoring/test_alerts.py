"""Each alert has a paragraph that says what to do, and made-up series on which it fires, or does not."""

import re

import pytest

from monitoring.alerts import ALERTS, RUNBOOKS, Alert
from monitoring.made_up import CASES
from tests.support import ROOT

BEGIN, END = "\n## Alerts\n", "\n## "
every_alert = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)


def paragraphs() -> dict[str, str]:
    """What stands under each alert's headline."""
    section = (ROOT / RUNBOOKS).read_text().partition(BEGIN)[2].partition(END)[0]
    parts = re.split(r"^### (\w+)\n", section, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_each_alert_has_its_paragraph_and_no_other_has_one() -> None:
    assert list(paragraphs()) == [alert.name for alert in ALERTS]


@every_alert
def test_the_annotation_leads_to_the_paragraph_which_says_what_the_rule_does(alert: Alert) -> None:
    path, _, anchor = alert.runbook.partition("#")
    assert (ROOT / path).exists() and anchor == alert.name.lower()
    text = paragraphs()[alert.name]
    summary = re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"*\1*", alert.summary)
    head, _, rest = text.partition("\n\n")
    after = "at once" if alert.after == "0m" else f"after {alert.after.removesuffix('m')} min"
    assert " ".join(head.split()) == f"**{alert.severity.capitalize()}**, {after}: {summary}."
    assert {"*Look*", "*Do*"} <= set(re.findall(r"\*\w+\*", rest)), "what to look at, and what to do"


@every_alert
def test_there_is_a_case_in_which_it_fires(alert: Alert) -> None:
    """That it is silent on a server that is well is the first of promtool's tests, for all of them."""
    assert any(case.fires for case in CASES if case.alert == alert.name)


def test_each_case_is_of_an_alert() -> None:
    assert {case.alert for case in CASES} <= {alert.name for alert in ALERTS}
