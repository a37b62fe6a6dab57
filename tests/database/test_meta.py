"""Facts about the database itself."""

from deployments.messages import Stage
from serve_app.database import meta as meta_sql
from serve_app.database.connection import Database
from serve_app.jobs import Tier
from serve_app.scheduling.scaling.headroom import TierArrivals


async def test_an_installation_keeps_its_name(database_url: str, database: Database) -> None:
    name = await database.run(meta_sql.installation_id)
    other = Database(database_url)
    assert await other.run(meta_sql.installation_id) == name
    assert len(name) == 32
    other.close()


async def test_a_touch_can_be_repeated(database: Database) -> None:
    for now in (1.0, 2.0):
        await database.run(meta_sql.touch, now=now)


async def test_start_times_are_kept_by_stage(database: Database) -> None:
    assert await database.run(meta_sql.read_start_times) == {}
    await database.run(meta_sql.write_start_times, seconds={Stage.SAMPLING: 100.0})
    await database.run(meta_sql.write_start_times, seconds={Stage.SAMPLING: 0.1, Stage.DECODING: 20.5})
    assert await database.run(meta_sql.read_start_times) == {Stage.SAMPLING: 0.1, Stage.DECODING: 20.5}


async def test_what_came_is_kept_by_tier(database: Database) -> None:
    assert await database.run(meta_sql.read_arrivals) == {}
    came = TierArrivals(1e9, 2.5, {Stage.ENCODING: 0.0, Stage.SAMPLING: 300.25, Stage.DECODING: 0.0})
    await database.run(meta_sql.write_arrivals, sums={Tier.BATCH: came, Tier.INTERACTIVE: TierArrivals(5.0)})
    await database.run(meta_sql.write_arrivals, sums={Tier.INTERACTIVE: TierArrivals(6.0)})
    assert await database.run(meta_sql.read_arrivals) == {Tier.BATCH: came, Tier.INTERACTIVE: TierArrivals(6.0)}
