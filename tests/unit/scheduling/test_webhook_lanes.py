from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.scheduling.webhook_pacing import MAX_AT_ONCE, MAX_PER_ORIGIN, MAX_PER_TENANT, DeliveryLimits, origin_of

targets = st.tuples(st.sampled_from("abc"), st.sampled_from([f"http://{n}.com/x" for n in range(6)]))


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://a.com", "https://a.com"),
        ("https://a.com/x?y=/z", "https://a.com"),
        ("http://a.com:81?x=/y", "http://a.com:81"),
        ("http://[::1]:81/", "http://[::1]:81"),
    ],
)
def test_the_origin_is_what_stands_before_the_path(url: str, origin: str) -> None:
    assert origin_of(url) == origin


@given(st.lists(st.one_of(targets, st.integers(0, 30)), max_size=60))
def test_no_bound_is_ever_passed_and_what_leaves_makes_room(steps: list[tuple[str, str] | int]) -> None:
    lanes, inside = DeliveryLimits(), list[tuple[str, str]]()
    for step in steps:
        if isinstance(step, int):
            if inside:
                lanes.leave(*inside.pop(step % len(inside)))
        elif lanes.enter(*step):
            inside.append(step)
        else:
            full = step[0] in lanes.full_tenants or origin_of(step[1]) in lanes.full_origins
            assert full or lanes.free == 0
        tenants, origins = Counter(t for t, _ in inside), Counter(origin_of(url) for _, url in inside)
        assert lanes.free == MAX_AT_ONCE - len(inside) >= 0
        assert all(count <= MAX_PER_TENANT for count in tenants.values())
        assert lanes.full_tenants == sorted(t for t, count in tenants.items() if count == MAX_PER_TENANT)
        assert lanes.full_origins == sorted(o for o, count in origins.items() if count == MAX_PER_ORIGIN)


def test_a_copy_goes_its_own_way() -> None:
    lanes = DeliveryLimits()
    copy = lanes.copy()
    assert copy.enter("a", "http://a.com")
    assert (lanes.free, copy.free) == (MAX_AT_ONCE, MAX_AT_ONCE - 1)
