"""Dashboards as plain objects, and as the JSON that Grafana imports (9 and later).

No library makes it: grafana-foundation-sdk would be one, but each of its releases is for one version of Grafana, and
what is used of the format here, two kinds of panels and two variables, has stayed the same from 9 to 12.
"""

from dataclasses import dataclass
from typing import Any, Literal

from deployments.metrics.names import PROCESSES

Json = dict[str, Any]
Needs = Literal["", "a GPU", "the proteins", "Ray's page"]

PREFIX = "mochi-serve"
SCHEMA = 37  # of Grafana 9: later ones read it and bring it up to date
WIDTH = 24
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Query:
    """An expression, and how its series are called: `{{label}}` is the label's value."""

    expression: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture.

    Args:
        title: short.
        unit: one of Grafana's: short, s, bytes, percentunit, ...
        queries: of what is shown.
        about: what one sees, and when to worry.
        kind: lines over time, areas on one another, or the newest number alone.
        needs: without which it has no data.
        width: of 24.
        red_from: where the number, or a line, is drawn red.
    """

    title: str
    unit: str
    queries: tuple[Query, ...]
    about: str
    kind: Literal["lines", "areas", "number"] = "lines"
    needs: Needs = ""
    width: int = 8
    red_from: float | None = None

    @property
    def height(self) -> int:
        return 4 if self.kind == "number" else 8


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one headline."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A page of rows. `name` is that of its file, and the end of its address."""

    name: str
    title: str
    about: str
    rows: tuple[Row, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        return tuple(panel for row in self.rows for panel in row.panels)


def as_json(dashboard: Dashboard) -> Json:
    """What Grafana imports."""
    return {
        "uid": f"{PREFIX}-{dashboard.name}",
        "title": f"{PREFIX}: {dashboard.title}",
        "description": dashboard.about,
        "tags": [PREFIX],
        "schemaVersion": SCHEMA,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [_link()],
        "templating": {"list": [_datasource(), _job()]},
        "panels": _placed(dashboard),
    }


def _link() -> Json:
    """To the other dashboards, in the same time."""
    return {
        "type": "dashboards",
        "title": PREFIX,
        "tags": [PREFIX],
        "asDropdown": True,
        "keepTime": True,
        "includeVars": True,
        "icon": "external link",
        "targetBlank": False,
        "tooltip": "",
        "url": "",
    }


def _datasource() -> Json:
    """Any Prometheus that this Grafana knows: Ray's is called otherwise than yours."""
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "regex": "",
        "current": {},
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": 1,
        "skipUrlSync": False,
    }


def _job() -> Json:
    """The scrape job, and so the server, if several are known."""
    query = f"label_values({PROCESSES.name}, job)"
    return {
        "name": "job",
        "label": "Server",
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": "job"},
        "regex": "",
        "current": {},
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": 1,
        "skipUrlSync": False,
        "sort": 1,
    }


def _placed(dashboard: Dashboard) -> list[Json]:
    """Rows from above, their panels from the left, each line as high as its highest."""
    placed: list[Json] = []
    y = 0
    for row in dashboard.rows:
        grid = {"h": 1, "w": WIDTH, "x": 0, "y": y}
        about = {"id": len(placed) + 1, "type": "row", "title": row.title, "collapsed": False, "panels": []}
        placed.append(about | {"gridPos": grid})
        y += 1
        x = line = 0
        for panel in row.panels:
            if x + panel.width > WIDTH:
                x, y, line = 0, y + line, 0
            grid = {"h": panel.height, "w": panel.width, "x": x, "y": y}
            placed.append({"id": len(placed) + 1, "gridPos": grid} | _panel(panel))
            x, line = x + panel.width, max(line, panel.height)
        y += line
    return placed


def _panel(panel: Panel) -> Json:
    about = panel.about if not panel.needs else f"{panel.about} Has data only with {panel.needs}."
    steps: list[Json] = [{"color": "green", "value": None}]
    if panel.red_from is not None:
        steps.append({"color": "red", "value": panel.red_from})
    defaults: Json = {
        "unit": panel.unit,
        "thresholds": {"mode": "absolute", "steps": steps},
        "custom": {} if panel.kind == "number" else _drawing(panel),
    }
    return {
        "type": "stat" if panel.kind == "number" else "timeseries",
        "title": panel.title,
        "description": about,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _NUMBER_OPTIONS if panel.kind == "number" else _LINE_OPTIONS,
        "targets": [_target(query, index) for index, query in enumerate(panel.queries)],
    }


def _drawing(panel: Panel) -> Json:
    return {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 40 if panel.kind == "areas" else 0,
        "showPoints": "auto",
        "spanNulls": False,
        "axisSoftMin": 0,
        "stacking": {"mode": "normal" if panel.kind == "areas" else "none", "group": "A"},
        "thresholdsStyle": {"mode": "off" if panel.red_from is None else "dashed"},
    }


_LINE_OPTIONS: Json = {
    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
    "tooltip": {"mode": "multi", "sort": "desc"},
}
_NUMBER_OPTIONS: Json = {
    "colorMode": "value",
    "graphMode": "area",
    "justifyMode": "auto",
    "orientation": "auto",
    "textMode": "auto",
    "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
}


def _target(query: Query, index: int) -> Json:
    return {
        "refId": chr(ord("A") + index),
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": query.expression,
        "legendFormat": query.legend or "__auto",
        "range": True,
        "instant": False,
    }
