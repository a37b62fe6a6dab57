"""Who fetches what from whom."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.weights_exchange.swarm import Grant, Rules, Swarm
from tests.support.simulated_swarm import Link, simulate

LINK = Link(bucket=40, node=40)


def swarm(chunks: int, rules: Rules = Rules()) -> Swarm:
    return Swarm(chunks, rules, random.Random(0))


def fetch_all(all_of: Swarm, node: str, now: float = 0) -> list[Grant]:
    """Have a node fetch what it is granted until that is nothing."""
    found = []
    while grants := all_of.grants(node, 8, now):
        found += grants
        for grant in grants:
            all_of.done(node, grant.chunk, f"hash {grant.chunk}")
    return found


def test_the_first_node_reads_the_bucket_and_the_second_the_first() -> None:
    both = swarm(20)
    both.join("a", range(20), {}, 0)
    assert {grant.source for grant in fetch_all(both, "a")} == {None}
    both.join("b", range(20), {}, 0)
    grants = fetch_all(both, "b")
    assert {grant.source for grant in grants} == {"a"} and len(grants) == 20
    assert all(grant.sha256 == f"hash {grant.chunk}" for grant in grants)


def test_nodes_that_begin_together_each_read_a_part_and_serve_it_before_they_have_all() -> None:
    both = swarm(20)
    for node in "ab":
        both.join(node, range(20), {}, 0)
    first, second = both.grants("a", 8, 0), both.grants("b", 8, 0)
    assert {grant.source for grant in first + second} == {None}
    assert len({grant.chunk for grant in first + second}) == 16  # none twice
    for grant in first:
        both.done("a", grant.chunk, "hash")
    assert "a" in {grant.source for grant in both.grants("b", 8, 0)}


def test_a_node_serves_no_more_at_once_than_it_may() -> None:
    rules = Rules(uploads=2)
    many = swarm(5, rules)
    many.join("seed", [], dict.fromkeys(range(5), "hash"), 0)
    for node in "abc":
        many.join(node, range(5), {}, 0)
    assert len(many.grants("a", 8, 0)) == 2
    assert many.grants("b", 8, 0) == many.grants("c", 8, 0) == []


def test_what_a_node_that_vanished_has_is_taken_elsewhere() -> None:
    three = swarm(2)
    three.join("seed", [], {0: "hash", 1: "hash"}, 0)
    three.join("a", [0, 1], {}, 0)
    (grant,) = three.grants("a", 1, 0)
    assert grant.source == "seed"
    three.failed("a", grant.chunk, lied=False, now=1)
    assert {grant.source for grant in three.grants("a", 2, 1)} == {None}  # both, while the seed has a pause


def test_a_pause_ends() -> None:
    two = swarm(1)
    two.join("seed", [], {0: "hash"}, 0)
    two.join("a", [0], {}, 0)
    two.join("b", [0], {}, 0)
    two.grants("a", 1, 0)
    two.failed("a", 0, lied=False, now=1)
    (grant,) = two.grants("a", 1, 1)
    assert grant.source is None and two.grants("b", 1, 1) == []
    assert two.grants("b", 1, 31.5) == [Grant(0, "seed", "hash")]


def test_what_a_node_tells_after_its_grant_is_over_counts() -> None:
    two = swarm(2)
    two.join("a", [], {}, 0)  # as after a start of the directory, with both chunks on their way
    two.done("a", 0, "hash")
    two.failed("a", 1, lied=False, now=0)
    assert two.grants("a", 2, 0) == [Grant(1, None, None)]
    two.join("b", [0], {}, 0)
    assert two.grants("b", 1, 0) == [Grant(0, "a", "hash")]


def test_a_node_that_sent_other_bytes_is_asked_no_more() -> None:
    three = swarm(2)
    three.join("liar", [], {0: "hash 0", 1: "hash 1"}, 0)
    three.join("a", [0, 1], {}, 0)
    three.grants("a", 2, 0)
    three.failed("a", 0, lied=True, now=0)
    three.failed("a", 1, lied=False, now=0)
    assert {grant.source for grant in three.grants("a", 2, 100)} == {None}


def test_who_finds_everybodys_bytes_wrong_is_the_damaged_one() -> None:
    many = swarm(1, Rules(complaints=3))
    for name in ("s1", "s2", "s3"):
        many.join(name, [], {0: "hash"}, 0)
    many.join("damaged", [0], {}, 0)
    for _ in range(3):
        (grant,) = many.grants("damaged", 1, 0)
        assert grant.source is not None
        many.failed("damaged", 0, lied=True, now=0)
    assert many.grants("damaged", 1, 0) == [Grant(0, None, None)]
    many.join("whole", [0], {}, 0)
    (grant,) = many.grants("whole", 1, 31)
    assert grant.source in ("s1", "s2", "s3")


def test_what_comes_from_the_bucket_goes_before_what_others_said() -> None:
    three = swarm(1)
    three.join("old", [], {0: "other"}, 0)
    three.join("a", [0], {}, 0)
    three.grants("a", 1, 0)
    three.failed("a", 0, lied=True, now=0)
    (grant,) = three.grants("a", 1, 0)
    three.done("a", 0, "hash")
    assert grant.source is None
    three.join("b", [0], {}, 0)
    assert three.grants("b", 1, 0) == [Grant(0, "a", "hash")]


def test_a_grant_that_nobody_reports_goes_to_another() -> None:
    two = swarm(1, Rules(grant_s=60))
    two.join("a", [0], {}, 0)
    two.join("b", [0], {}, 0)
    assert two.grants("a", 1, 0)
    assert two.grants("b", 1, 1) == []
    for now in range(0, 70, 20):
        two.hear("a", now)
        two.hear("b", now)
    two.hear("a", 70)
    assert two.grants("b", 1, 70) == [Grant(0, None, None)]


def test_a_swarm_of_which_nobody_is_heard_is_empty() -> None:
    one = swarm(3, Rules(gone_s=10))
    one.join("a", range(3), {}, 0)
    one.grants("a", 3, 0)
    one.sweep(10)
    assert not one.is_empty
    one.sweep(11)
    assert one.is_empty


@pytest.mark.parametrize("nodes", [1, 6, 60])
def test_each_chunk_is_read_from_the_bucket_once(nodes: int) -> None:
    done = simulate(nodes, 40, LINK)
    assert done.bucket_reads == 40
    assert done.seconds < 3 * done.ideal_s


@given(st.integers(2, 12), st.integers(1, 20), st.integers(0, 1000))
def test_all_that_live_get_everything(nodes: int, chunks: int, seed: int) -> None:
    done = simulate(nodes, chunks, LINK, seed=seed, dies=0.3, lies=0.2, spread_s=2)
    assert done.bucket_reads >= chunks


def test_nodes_that_die_or_lie_cost_a_few_reads_more() -> None:
    done = simulate(60, 40, LINK, dies=0.1, lies=0.05, spread_s=1)
    assert done.bucket_reads <= 3 * 40


@pytest.mark.slow
def test_a_thousand_nodes_cost_the_bucket_what_one_does() -> None:
    done = simulate(1000, 100, LINK)
    assert done.bucket_reads == 100
    assert done.seconds < 2.5 * done.ideal_s
