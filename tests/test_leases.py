from deployments.messages import ReplicaInfo, Stage
from serve_app.leases import LeaseTable, ReplicaTable


def info(replica: str, stage: Stage = Stage.SAMPLING, slots: int = 1) -> ReplicaInfo:
    return ReplicaInfo(replica, stage, slots, "cpu", "mochi-1")


def test_a_lease_lives_by_its_renewals() -> None:
    table = LeaseTable(lease_s=30)
    lease = table.grant("job", "token", Stage.SAMPLING, 100, 0, 0)
    assert table.lapsed(129.9) == []
    table.renew(lease, 129.9)
    assert table.lapsed(130) == []
    assert table.lapsed(159.9) == [lease]


def test_only_the_newest_token_holds_a_job() -> None:
    table = LeaseTable(lease_s=30)
    old = table.grant("job", "old", Stage.SAMPLING, 0, 0, 0)
    new = table.grant("job", "new", Stage.SAMPLING, 1, 0, 0)
    assert table.held("job", "old") is None
    assert table.held("job", "new") is new
    table.drop(old)
    assert table.held("job", "new") is new
    table.drop(new)
    assert table.of_job("job") is None


def test_sql_is_told_a_few_times_a_lease() -> None:
    table = LeaseTable(lease_s=40)
    lease = table.grant("job", "token", Stage.SAMPLING, 0, 0, 0)
    assert not table.needs_saving(lease, 9.9)
    assert table.needs_saving(lease, 10)


def test_slots_are_those_of_replicas_that_still_announce_themselves() -> None:
    table = ReplicaTable(forget_s=10)
    assert table.announce(info("a", slots=2), 0)
    assert table.announce(info("b"), 5)
    assert not table.announce(info("b"), 9)
    assert table.slots(Stage.SAMPLING, 9) == 3
    assert table.slots(Stage.DECODING, 9) == 0
    assert table.slots(Stage.SAMPLING, 10) == 1
    table.prune(10)
    assert table.announce(info("a"), 11)
    table.forget("a")
    assert [r.replica for r in table.alive(Stage.SAMPLING, 11)] == ["b"]
