"""MKL's mode, where nobody chose another; that it does what it should: test_esm2.py."""

import pytest

from deployments.proteins.repeatable_products import set_repeatable_products


@pytest.mark.parametrize(
    ("before", "after"), [({}, {"MKL_CBWR": "AUTO,STRICT"}), ({"MKL_CBWR": "AVX2"}, {"MKL_CBWR": "AVX2"})]
)
def test_the_operators_choice_stays(before: dict[str, str], after: dict[str, str]) -> None:
    environ = dict(before)
    set_repeatable_products(environ)
    assert environ == after
