"""The dashboards and rules are those that were committed, name only what there is, and fit on their page."""

from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.metrics.names import BY_NAME
from monitoring import ray_names
from monitoring.alerts import ALERTS
from monitoring.boards.all import DASHBOARDS
from monitoring.files import BOARDS, KUBERNETES_RULES, RULES, files
from monitoring.grafana import WIDTH, Dashboard, as_json
from monitoring.promql import JOB
from tests.support.metrics.expressions import base_name, listed_labels, selectors

EXPRESSIONS = {
    **{
        f"{d.name}: {p.title}, {i}": q.expression for d in DASHBOARDS for p in d.panels for i, q in enumerate(p.queries)
    },
    **{alert.name: alert.expression for alert in ALERTS},
}
every_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.name)


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_what_is_committed_is_what_is_made(path: Path) -> None:
    assert path.read_text() == files()[path], "make monitoring writes it anew"


def test_no_file_is_left_of_a_dashboard_that_is_gone() -> None:
    assert {path.stem for path in BOARDS.iterdir()} == {dashboard.name for dashboard in DASHBOARDS}


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_an_expression_names_only_what_there_is(where: str) -> None:
    expression = EXPRESSIONS[where]
    found = list(selectors(expression))
    assert found
    allowed = {JOB}
    for selector in found:
        if selector.name.startswith("ray_"):
            labels = set(ray_names.BY_NAME[selector.name].labels)
        else:
            metric = BY_NAME[base_name(selector.name)]
            assert (metric.kind == "histogram") == (selector.name != metric.name), selector
            labels = {*metric.label_names, JOB, *(["le"] if selector.name.endswith("_bucket") else [])}
        assert set(selector.labels) <= labels, selector
        allowed |= labels
    assert listed_labels(expression) <= allowed
    assert expression.count("(") == expression.count(")")


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_labels_have_values_that_there_are(where: str) -> None:
    """Of labels whose values are all known."""
    for selector in selectors(EXPRESSIONS[where]):
        if selector.name.startswith("ray_"):
            continue
        known = {label.name: label.values for label in BY_NAME[base_name(selector.name)].labels if label.most is None}
        inner = selector.text.partition("{")[2].rstrip("}")
        for pair in filter(None, inner.split(", ")):
            name, _, value = pair.partition("=")
            if name in known and not value.startswith("~"):
                assert value.strip('"') in known[name], selector


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("rate(mochi_serve_no_such_total[5m])", KeyError),
        ('mochi_serve_jobs_live{tenant="a"}', AssertionError),
        ("sum by (tenant) (mochi_serve_jobs_live)", AssertionError),
        ("mochi_serve_step_rows", AssertionError),
        ("1 + 1", AssertionError),
    ],
)
def test_the_check_sees_mistakes(expression: str, problem: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXPRESSIONS, "wrong", expression)
    with pytest.raises(problem):
        test_an_expression_names_only_what_there_is("wrong")


def panels(dashboard: Dashboard) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = as_json(dashboard)["panels"]
    return found


@every_dashboard
def test_panels_lie_side_by_side(dashboard: Dashboard) -> None:
    grids = [panel["gridPos"] for panel in panels(dashboard)]
    assert all(grid["x"] >= 0 and grid["x"] + grid["w"] <= WIDTH for grid in grids)
    for a, b in combinations(grids, 2):
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert apart or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], (a, b)


@every_dashboard
def test_any_prometheus_can_be_its_source(dashboard: Dashboard) -> None:
    tree = as_json(dashboard)
    assert [variable["name"] for variable in tree["templating"]["list"]] == ["datasource", "job"]
    for panel in panels(dashboard):
        if panel["type"] == "row":
            continue
        assert {panel["datasource"]["uid"], *(t["datasource"]["uid"] for t in panel["targets"])} == {"${datasource}"}
        assert panel["description"] and panel["targets"]
    assert max(Counter(panel["id"] for panel in panels(dashboard)).values()) == 1
    assert max(Counter(panel.title for panel in dashboard.panels).values()) == 1


@every_dashboard
def test_only_ray_s_own_row_needs_another_page_than_ours(dashboard: Dashboard) -> None:
    for panel in dashboard.panels:
        foreign = any(s.name.startswith("ray_") for query in panel.queries for s in selectors(query.expression))
        assert foreign == (panel.needs == "Ray's page")
        assert not foreign or dashboard.name == "cluster"


def test_what_shows_gpus_or_proteins_says_that_it_needs_them() -> None:
    for panel in (panel for dashboard in DASHBOARDS for panel in dashboard.panels):
        named = [base_name(s.name) for query in panel.queries for s in selectors(query.expression)]
        known = [BY_NAME[name] for name in named if name in BY_NAME]
        needed = {metric.where_there_is for metric in known if metric.where_there_is is not None}
        assert all(where.startswith(panel.needs or "nothing") for where in needed)
        assert bool(needed) == (panel.needs in ("a GPU", "the proteins"))


def test_every_metric_is_shown_somewhere() -> None:
    """But for those of which a panel shows something that includes them."""
    shown = {base_name(selector.name) for expression in EXPRESSIONS.values() for selector in selectors(expression)}
    assert set(BY_NAME) - shown == set()


def test_the_operator_s_rules_are_prometheus_own() -> None:
    assert yaml.safe_load(KUBERNETES_RULES.read_text())["spec"] == yaml.safe_load(RULES.read_text())
