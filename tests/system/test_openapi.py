"""The server does what its OpenAPI document says, tried with requests made from it; services in memory."""

import pytest

from tests.support.http.api_fuzz import Fuzz, fuzzed_app
from tests.support.http.fakes import FakeServices
from tests.support.http.keyed_services import keyed_services


def test_hundreds_of_requests_are_answered_as_it_says() -> None:
    with fuzzed_app(FakeServices()) as (url, ids):
        fuzz = Fuzz(url, ids)
        fuzz.run(400)
    assert fuzz.cases >= 400
    fuzz.check({200, 202, 400, 404, 409})


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("keys", [False, True])
def test_thousands_of_requests_are_answered_as_it_says(keys: bool) -> None:
    services, headers = keyed_services("acme") if keys else (FakeServices(), {"acme": {}})
    with fuzzed_app(services, "acme") as (url, ids):
        fuzz = Fuzz(url, ids, headers["acme"])
        fuzz.run(5000, seed=7)
    assert fuzz.cases >= 5000
    fuzz.check({200, 202, 400, 404, 409} | ({401} if keys else set()))
