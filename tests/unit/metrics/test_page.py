"""The page: what Prometheus' own parsers read of it."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from deployments.metrics import names
from deployments.metrics.names import ALL
from deployments.metrics.recorder import Recorder
from serve_app.metrics.page import render_page

Parse = Callable[[str], Iterable[Any]]
TEXT = ("text/plain", parse_text)
OPENMETRICS = ("application/openmetrics-text; version=1.0.0", parse_openmetrics)


@pytest.fixture(params=[TEXT, OPENMETRICS], ids=["text", "openmetrics"])
def form(request: pytest.FixtureRequest) -> tuple[str, Parse]:
    form: tuple[str, Parse] = request.param
    return form


def families(recorder: Recorder, form: tuple[str, Parse]) -> dict[str, Any]:
    page, content_type = render_page(recorder.snapshot("x").values, form[0])
    assert content_type.startswith(form[0].partition(";")[0])
    return {family.name: family for family in form[1](page.decode())}


def test_every_metric_is_there_from_the_start(form: tuple[str, Parse]) -> None:
    found = families(Recorder(), form)
    assert set(found) == {metric.name.removesuffix("_total") for metric in ALL}
    for metric in ALL:
        family = found[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        assert all(sample.value == 0 for sample in family.samples)
        assert bool(family.samples) == bool(metric.first_series())


def test_a_histogram_counts_up_to_infinity(form: tuple[str, Parse]) -> None:
    recorder = Recorder()
    for rows in (1, 3, 100):
        recorder.observe(names.STEP_ROWS, rows)
    samples = families(recorder, form)[names.STEP_ROWS.name].samples
    buckets = {s.labels["le"]: s.value for s in samples if s.name.endswith("_bucket")}
    assert (buckets["1.0"], buckets["2.0"], buckets["4.0"], buckets["64.0"], buckets["+Inf"]) == (1, 1, 2, 2, 3)
    rest = {s.name.removeprefix(names.STEP_ROWS.name): s.value for s in samples if not s.name.endswith("_bucket")}
    assert rest == {"_count": 3, "_sum": 104}


def test_labels_may_hold_what_text_must_escape(form: tuple[str, Parse]) -> None:
    recorder = Recorder()
    recorder.count(names.HTTP_REQUESTS, 'a"\\b\n', "GET", "200")
    (sample,) = families(recorder, form)[names.HTTP_REQUESTS.name.removesuffix("_total")].samples
    assert sample.labels == {"route": 'a"\\b\n', "method": "GET", "status": "200"}
