"""Keys that a replica does not know yet are asked for, and what nobody made costs the registry little."""

import asyncio
from dataclasses import replace

import pytest

from deployments.errors import RegistryUnavailableError
from serve_app.access.tenants import AccessTable, ApiKey
from serve_app.feed.new_keys import LookUpBounds, NewKeys
from tests.support.waiting import until

PATIENT = LookUpBounds(every_s=0.0, answer_s=300.0, refused_s=0.0)


class World:
    """The registry and the feed of a replica: `made` are the keys in SQL, `known` those that the feed has brought."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.known: list[str] = []
        self.asked = 0
        self.away: Exception | None = None
        self.answers = asyncio.Event()
        self.answers.set()

    async def refresh_access(self) -> int:
        self.asked += 1
        if self.away is not None:
            raise self.away
        read = list(self.made)
        await self.answers.wait()
        self.known = read
        return len(read)

    async def access(self, version: int | None = None) -> AccessTable:
        assert version is None or version <= len(self.known)
        keys = {hashed: ApiKey(hashed, "acme", hashed, "", "", 0.0) for hashed in self.known}
        return AccessTable(len(keys), {}, keys)


def new_keys(world: World, bounds: LookUpBounds = PATIENT) -> NewKeys:
    return NewKeys(world, world, bounds)


async def finds(keys: NewKeys, hashed: str) -> bool:
    return hashed in (await keys.table_for(hashed)).keys


async def test_a_new_key_is_asked_for_once() -> None:
    world = World()
    keys = new_keys(world)
    world.made = ["new"]
    assert await finds(keys, "new")
    assert await finds(keys, "new")
    assert world.asked == 1


async def test_a_key_that_is_known_costs_no_call() -> None:
    world = World()
    world.known = ["old"]
    assert await finds(new_keys(world), "old")
    assert world.asked == 0


async def test_a_look_up_that_began_before_a_key_was_made_says_nothing_about_it() -> None:
    world = World()
    keys = new_keys(world)
    world.answers.clear()
    early = asyncio.create_task(finds(keys, "rubbish"))
    await until(lambda: world.asked == 1)
    world.made = ["new"]
    late = asyncio.create_task(finds(keys, "new"))
    await asyncio.sleep(0)
    world.answers.set()
    assert (await early, await late) == (False, True)


async def test_all_that_wait_share_a_look_up() -> None:
    """Those that came before it began; those that come while it runs have the next one together."""
    world = World()
    keys = new_keys(world, replace(PATIENT, max_waiting=500))
    world.answers.clear()
    before = [asyncio.create_task(finds(keys, f"rubbish {n}")) for n in range(250)]
    await until(lambda: world.asked == 1)
    after = [asyncio.create_task(finds(keys, f"rubbish {n}")) for n in range(250)]
    await asyncio.sleep(0)
    world.answers.set()
    assert not any(await asyncio.gather(*before, *after))
    assert world.asked == 2


async def test_look_ups_keep_their_distance() -> None:
    world = World()
    keys = new_keys(world, replace(PATIENT, every_s=3600.0))
    assert not await finds(keys, "rubbish")
    waiting = [asyncio.create_task(finds(keys, f"rubbish {n}")) for n in range(5)]
    await asyncio.sleep(0.05)
    assert world.asked == 1
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_more_than_may_wait_are_answered_by_what_is_known() -> None:
    world = World()
    keys = new_keys(world, replace(PATIENT, max_waiting=2))
    world.answers.clear()
    waiting = [asyncio.create_task(finds(keys, f"rubbish {n}")) for n in range(2)]
    await until(lambda: world.asked == 1)
    assert not await asyncio.wait_for(finds(keys, "one more"), 300)
    world.answers.set()
    assert await asyncio.gather(*waiting) == [False, False]
    world.made = ["new"]
    assert await finds(keys, "new"), "those that have been answered do not count"


async def test_what_was_asked_for_in_vain_is_remembered() -> None:
    world = World()
    keys = new_keys(world, replace(PATIENT, refused_s=3600.0, max_refused=2))
    for hashed in ("a", "b", "b", "a"):
        assert not await finds(keys, hashed)
    assert world.asked == 2
    assert not await finds(keys, "c")
    assert not await finds(keys, "b")
    assert world.asked == 3
    assert not await finds(keys, "a"), "the oldest of three was forgotten"
    assert world.asked == 4


async def test_it_is_remembered_for_a_while() -> None:
    world = World()
    keys = new_keys(world)
    assert not await finds(keys, "a")
    assert not await finds(keys, "a")
    assert world.asked == 2


async def test_a_key_that_the_feed_brings_is_taken_though_it_was_refused() -> None:
    world = World()
    keys = new_keys(world, replace(PATIENT, refused_s=3600.0))
    assert not await finds(keys, "a")
    world.known = ["a"]
    assert await finds(keys, "a")


async def test_without_an_answer_a_key_is_not_refused() -> None:
    """Nobody can say that it is no key; and it is not remembered as one."""
    world = World()
    keys = new_keys(world, replace(PATIENT, refused_s=3600.0))
    world.away = RegistryUnavailableError("away")
    errors = await asyncio.gather(*(keys.table_for(f"{n}") for n in range(50)), return_exceptions=True)
    assert {type(error) for error in errors} == {RegistryUnavailableError}
    assert world.asked == 1, "a failure is shared too"
    world.away = None
    world.made = ["7"]
    assert await finds(keys, "7")


async def test_a_registry_that_hangs_is_not_waited_for() -> None:
    world = World()
    keys = new_keys(world, replace(PATIENT, answer_s=0.01))
    world.answers.clear()
    with pytest.raises(RegistryUnavailableError, match="whether this API key is a new one"):
        await keys.table_for("new")


async def test_a_client_that_leaves_takes_no_answer_from_others() -> None:
    world = World()
    keys = new_keys(world)
    world.made = ["new"]
    world.answers.clear()
    left, stays = (asyncio.create_task(finds(keys, "new")) for _ in range(2))
    await until(lambda: world.asked == 1)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    world.answers.set()
    assert await stays
