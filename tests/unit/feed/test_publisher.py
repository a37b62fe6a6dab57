"""The registry's feed and the mirrors that follow it: whatever happens and is lost on the way, they come to agree."""

import asyncio
import math
import time
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.messages import Stage, VideoSpec
from serve_app.access.tenants import AccessTable
from serve_app.feed.job_cache import JobCache
from serve_app.feed.publisher import FIRST, Batch, Cursor, FeedPublisher, Key
from serve_app.feed.read_leases import FeedTiming, PresenceTiming, ReadLeases
from serve_app.jobs import (
    FINAL,
    MOVES,
    Job,
    JobFilter,
    JobPage,
    JobState,
    Move,
    Order,
    Place,
    first_move,
)
from tests.support.examples import examples

SPEC = VideoSpec("a red circle", "", 64, 64, 25, 24, 20, 3.0, 1)
STATES = sorted(JobState)
TENANTS = ("acme", "globex")


def new_job(number: int, tenant: str = "acme") -> Job:
    """Created in an order of its own, so that the order of the changes is another."""
    at = float(number * 7 % 23)
    job_id = f"video_{number:032x}"
    return Job(job_id, "m", SPEC, JobState.QUEUED, Stage.ENCODING, 1, at, tenant=tenant, last_move=first_move(at))


def moved(job: Job, state: JobState, at: float = 50.0) -> Job:
    move = Move(at, state, job.stage, job.attempt, str(state))
    return replace(job, state=state, moves=job.moves + 1, last_move=move)


@dataclass
class Truth:
    """What SQL would hold, and a feed that it is published to."""

    max_ended: int = 3
    timing: FeedTiming = FeedTiming()
    jobs: dict[str, Job] = field(default_factory=dict)
    histories: dict[str, list[Move]] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    feed: FeedPublisher = field(init=False)
    made: int = 0
    deleted: set[str] = field(default_factory=set)
    followed: set[str] = field(default_factory=set)  # jobs that were published from their beginning

    def __post_init__(self) -> None:
        self.feed = self.new_feed()

    def new_feed(self) -> FeedPublisher:
        return FeedPublisher(
            self.as_of_now, timing=self.timing, max_ended=self.max_ended, access=AccessTable(1, {}, {})
        )

    def as_of_now(self, job: Job) -> Job:
        return replace(job, step=self.steps.get(job.id, 0))

    def accept(self, tenant: str) -> None:
        job = new_job(self.made, tenant)
        self.made += 1
        self.jobs[job.id] = job
        self.histories[job.id] = [first_move(job.created_at)]
        self.followed.add(job.id)
        self.feed.publish(job)

    def move(self, pick: int, state: JobState) -> None:
        movable = [job for job in self.jobs.values() if state in MOVES[job.state]]
        if movable:
            job = moved(movable[pick % len(movable)], state)
            self.jobs[job.id] = job
            assert job.last_move is not None
            self.histories[job.id].append(job.last_move)
            self.feed.publish(job)

    def step(self, pick: int) -> None:
        live = [job for job in self.jobs.values() if not job.final]
        if live:
            job = live[pick % len(live)]
            self.steps[job.id] = self.steps.get(job.id, 0) + 1
            self.feed.publish_progress(job.id)

    def delete(self, pick: int) -> None:
        ended = [job for job in self.jobs.values() if job.final]
        if ended:
            job = ended[pick % len(ended)]
            del self.jobs[job.id], self.histories[job.id]
            self.deleted.add(job.id)
            self.feed.publish_deletions([job.id])

    def restart(self) -> None:
        """A registry that knows the newest jobs, the live ones, and no moves."""
        self.feed = self.new_feed()
        self.tell_all()

    def begin_anew(self, pick: int) -> None:
        """Another registry has worked on the database, unheard, and is gone: one job it made, one it deleted."""
        made = new_job(self.made)
        self.made += 1
        ended = moved(made, JobState.CANCELLED)
        assert ended.last_move is not None
        self.histories[made.id] = [first_move(made.created_at), ended.last_move]
        old = [job for job in self.jobs.values() if job.final]
        if old:
            gone = old[pick % len(old)].id
            del self.jobs[gone], self.histories[gone]
            self.deleted.add(gone)
        self.jobs[made.id] = ended
        horizon, newest = self.newest()
        self.feed.restart([replace(job, last_move=None) for job in newest], horizon)
        self.followed -= {job.id for job in newest}

    def tell_all(self) -> None:
        horizon, newest = self.newest()
        live = [job for job in self.jobs.values() if not job.final]
        for job in [*newest, *live]:
            self.feed.publish(replace(job, last_move=None))
        self.feed.horizon = max(self.feed.horizon, horizon)
        self.followed.clear()

    def newest(self) -> tuple[Key, list[Job]]:
        """The last jobs by creation, and the horizon behind which there are more."""
        newest = sorted(self.jobs.values(), key=lambda job: (job.created_at, job.id))[-4:]
        return (newest[0].created_at, newest[0].id) if len(newest) < len(self.jobs) else FIRST, newest

    def page(self, limit: int, after: str | None, order: Order, wanted: JobFilter) -> JobPage:
        jobs = sorted(self.jobs.values(), key=lambda job: (job.created_at, job.id), reverse=order == "desc")
        if after is not None:
            jobs = jobs[[job.id for job in jobs].index(after) + 1 :]
        jobs = [self.as_of_now(job) for job in jobs if matches(job, wanted)]
        return JobPage(tuple(jobs[:limit]), len(jobs) > limit)


def matches(job: Job, wanted: JobFilter) -> bool:
    return (not wanted.states or job.state in wanted.states) and wanted.tenant in (None, job.tenant)


def check(mirror: JobCache, truth: Truth) -> None:
    for job in truth.jobs.values():
        known = mirror.get(job.id)
        if not job.final or (job.created_at, job.id) >= mirror.horizon:
            assert known is not None, job.id
        if known is not None:
            assert known == truth.as_of_now(job)
        moves = mirror.moves(job.id)
        if known is not None and job.id in truth.followed:
            assert moves is not None, job.id
        assert moves is None or list(moves) == truth.histories[job.id]
    for job_id in truth.deleted:
        assert (mirror.get(job_id), mirror.moves(job_id)) == (None, None)


def check_pages(mirror: JobCache, truth: Truth) -> None:
    for order in ("desc", "asc"):
        for wanted in (JobFilter(), JobFilter(tenant="acme"), JobFilter((JobState.COMPLETED, JobState.FAILED))):
            for after in [None, *truth.jobs]:
                page = mirror.page(2, after, order, wanted)
                assert page in (None, truth.page(2, after, order, wanted))


PICK = st.integers(0, 50)
ACTIONS = st.one_of(
    st.tuples(st.just("accept"), st.sampled_from(TENANTS)),
    st.tuples(st.just("move"), PICK, st.sampled_from(STATES)),
    st.tuples(st.just("move"), PICK, st.sampled_from(STATES)),
    st.tuples(st.just("step"), PICK),
    st.tuples(st.just("delete"), PICK),
    st.tuples(st.just("restart")),
    st.tuples(st.just("begin_anew"), PICK),
    st.tuples(st.just("poll"), st.integers(0, 2)),
    st.tuples(st.just("lose"), st.integers(0, 2)),
)


@settings(max_examples=examples(1.5))
@given(actions=st.lists(ACTIONS, max_size=60))
def test_mirrors_agree_with_the_truth(actions: list[tuple[object, ...]]) -> None:
    async def play() -> None:
        truth, mirrors = Truth(), [JobCache() for _ in range(3)]
        for name, *given_args in actions:
            if name == "poll":
                mirror = mirrors[given_args[0]]  # type: ignore[call-overload]
                mirror.apply(truth.feed.batch_since(mirror.cursor))
                check(mirror, truth)
            elif name == "lose":
                truth.feed.batch_since(mirrors[given_args[0]].cursor)  # type: ignore[call-overload]
            else:
                getattr(truth, str(name))(*given_args)
        for mirror in mirrors:
            mirror.apply(truth.feed.batch_since(mirror.cursor))
            check(mirror, truth)
            check_pages(mirror, truth)

    asyncio.run(play())


async def test_only_pages_within_the_horizon_are_answered() -> None:
    feed, mirror = FeedPublisher(max_ended=3), JobCache()
    ended = [moved(replace(new_job(number), created_at=float(number)), JobState.CANCELLED) for number in range(10)]
    for job in ended:
        feed.publish(job)
    mirror.apply(feed.batch_since(mirror.cursor))
    newest = ended[:-4:-1]
    assert mirror.page(2, None, "desc", JobFilter()) == JobPage(tuple(newest[:2]), has_more=True)
    assert mirror.page(1, newest[0].id, "desc", JobFilter()) == JobPage((newest[1],), has_more=True)
    assert mirror.page(3, None, "desc", JobFilter()) is None  # whether there are more is not known here
    assert mirror.page(3, None, "desc", JobFilter(created_after=5.5)) is None
    assert mirror.page(3, None, "desc", JobFilter(created_after=6.5)) == JobPage(tuple(newest), has_more=False)
    assert mirror.page(3, None, "desc", JobFilter(created_after=6.0)) is None
    assert mirror.page(3, None, "asc", JobFilter()) is None
    assert mirror.page(3, newest[2].id, "asc", JobFilter()) == JobPage((newest[1], newest[0]), has_more=False)
    assert mirror.page(3, ended[0].id, "desc", JobFilter()) is None


async def test_the_job_at_the_horizon_is_known() -> None:
    feed, mirror = FeedPublisher(), JobCache()
    first, second = (replace(new_job(number), created_at=float(number)) for number in (1, 2))
    feed.restart([first, second], (first.created_at, first.id))
    mirror.apply(feed.batch_since(mirror.cursor))
    assert mirror.page(1, first.id, "asc", JobFilter()) == JobPage((second,), has_more=False)
    assert mirror.page(1, None, "desc", JobFilter()) == JobPage((second,), has_more=True)


async def test_deletions_are_told_also_of_what_was_forgotten() -> None:
    feed, mirror = FeedPublisher(max_ended=2), JobCache()
    ended = [moved(new_job(number), JobState.CANCELLED) for number in range(4)]
    for job in ended:
        feed.publish(job)
        mirror.apply(feed.batch_since(mirror.cursor))
    feed.publish_deletions([ended[0].id])
    batch = feed.batch_since(mirror.cursor)
    assert batch.deleted == (ended[0].id,)
    mirror.apply(batch)
    assert mirror.get(ended[0].id) is None
    feed.publish_deletions([ended[1].id, ended[2].id, ended[3].id])
    everything = feed.batch_since(Cursor())
    assert (len(everything.changes), len(everything.deleted)) == (0, 2)
    mirror.apply(feed.batch_since(mirror.cursor))
    assert [mirror.get(job.id) for job in ended] == 4 * [None]


async def test_places_are_those_of_the_state() -> None:
    truth, mirror = Truth(), JobCache()
    truth.accept("acme")
    (job,) = truth.jobs.values()
    truth.feed.publish_places({job.id: Place(4, 10.0, 20.0)})
    assert job.id in mirror.apply(truth.feed.batch_since(mirror.cursor))
    known = mirror.get(job.id)
    assert known is not None and known.place == Place(4, 10.0, 20.0)
    truth.move(0, JobState.ENCODING)
    mirror.apply(truth.feed.batch_since(mirror.cursor))
    known = mirror.get(job.id)
    assert known is not None and known.place == Place(None, 10.0, 20.0)
    truth.feed.publish_places({})
    assert job.id in mirror.apply(truth.feed.batch_since(mirror.cursor))


async def ask(feed: FeedPublisher, name: str, cursor: Cursor) -> Batch:
    await feed.wait_for_news(name, cursor)
    return feed.batch_since(cursor)


async def test_a_follower_waits_for_news() -> None:
    truth = Truth()
    first = await ask(truth.feed, "a", Cursor())
    waiting = asyncio.create_task(ask(truth.feed, "a", first.cursor))
    await asyncio.sleep(0)
    assert not waiting.done()
    truth.accept("acme")
    batch = await waiting
    assert [change.job.id for change in batch.changes] == list(truth.jobs)
    assert not batch.reset
    assert batch.access is None


async def test_a_write_is_told_when_every_follower_has_it() -> None:
    truth = Truth()
    cursors = {name: (await ask(truth.feed, name, Cursor())).cursor for name in "ab"}
    truth.accept("acme")
    flushing = asyncio.create_task(truth.feed.flush())
    first = await ask(truth.feed, "a", cursors["a"])
    asking = asyncio.create_task(ask(truth.feed, "a", first.cursor))
    await asyncio.sleep(0)
    assert not flushing.done()  # b has not come back
    second = await ask(truth.feed, "b", cursors["b"])
    asking_too = asyncio.create_task(ask(truth.feed, "b", second.cursor))
    await flushing
    truth.accept("acme")  # ends the two polls
    await asyncio.gather(asking, asking_too)


async def test_a_follower_that_is_silent_is_not_waited_for_longer_than_it_answers() -> None:
    truth = Truth(timing=FeedTiming(valid_s=0.05))
    await ask(truth.feed, "dead", Cursor())
    truth.accept("acme")
    async with asyncio.timeout(300):
        await truth.feed.flush()


async def test_a_feed_that_was_restarted_waits_for_the_followers_of_the_one_before() -> None:
    timing = FeedTiming(valid_s=0.3)
    started_at = time.monotonic()
    feed = FeedPublisher(leases=ReadLeases(timing, restarted=True, now=started_at), timing=timing)
    feed.publish(new_job(1))
    await feed.flush()
    assert time.monotonic() - started_at >= 0.29


async def test_without_followers_nobody_is_waited_for() -> None:
    feed = FeedPublisher()
    feed.publish(new_job(1))
    flushing = asyncio.create_task(feed.flush())
    await asyncio.sleep(0)
    assert flushing.done()


async def test_old_news_changes_nothing() -> None:
    feed, mirror = FeedPublisher(), JobCache()
    job = new_job(1)
    done = moved(job, JobState.CANCELLED)
    feed.publish(done)
    feed.publish(job)
    mirror.apply(feed.batch_since(mirror.cursor))
    assert mirror.get(job.id) == done
    feed.publish_deletions([job.id])
    feed.publish(done)
    mirror.apply(feed.batch_since(mirror.cursor))
    assert mirror.get(job.id) is None


# A poll that waits for nothing waits for ever.
PATIENT = FeedTiming(hold_s=1000.0)


@pytest.mark.parametrize("news", ["moved", "progressed", "deleted", "access", "anew"])
async def test_each_kind_of_news_ends_the_wait(news: str) -> None:
    truth = Truth(timing=PATIENT)
    truth.accept("acme")
    await truth.feed.flush()  # no call is on its way any more
    (job,) = truth.jobs.values()
    first = await ask(truth.feed, "a", Cursor())
    waiting = asyncio.create_task(ask(truth.feed, "a", first.cursor))
    await asyncio.sleep(0)
    match news:
        case "moved":
            truth.move(0, JobState.CANCELLED)
        case "progressed":
            truth.step(0)
        case "deleted":
            truth.feed.publish_deletions([job.id])
        case "access":
            truth.feed.publish_access(AccessTable(2, {}, {}))
        case "anew":
            truth.feed.restart([], FIRST)
    async with asyncio.timeout(300):
        batch = await waiting
    assert batch.deleted == ((job.id,) if news == "deleted" else ())
    assert len(batch.changes) == (news not in ("deleted", "access"))
    assert (batch.access is not None) == (news in ("access", "anew"))
    assert batch.reset == (news == "anew")


async def test_who_is_behind_does_not_wait() -> None:
    truth = Truth(timing=PATIENT)
    first = await ask(truth.feed, "a", Cursor())
    truth.accept("acme")
    await truth.feed.wait_for_news("b", first.cursor)  # the call for it is on its way
    async with asyncio.timeout(300):
        assert len((await ask(truth.feed, "a", first.cursor)).changes) == 1
        assert len((await ask(truth.feed, "a", Cursor())).changes) == 1
        newest = (await ask(truth.feed, "a", first.cursor)).cursor
        truth.feed.access = AccessTable(7, {}, {})
        assert (await ask(truth.feed, "a", newest)).access == truth.feed.access


async def test_progress_of_what_is_unknown_or_over_is_no_news() -> None:
    truth, mirror = Truth(), JobCache()
    truth.accept("acme")
    truth.accept("acme")
    first, second = truth.jobs
    truth.move(0, JobState.CANCELLED)
    truth.feed.publish_deletions([second])
    mirror.apply(truth.feed.batch_since(mirror.cursor))
    for job_id in (first, second, "video_unknown"):
        truth.feed.publish_progress(job_id)
    assert truth.feed.batch_since(mirror.cursor).cursor == mirror.cursor
    assert truth.feed.live_jobs() == []


async def test_what_has_changed_is_told_to_who_watches() -> None:
    truth, mirror = Truth(), JobCache()
    for _ in range(3):
        truth.accept("acme")
    first, second, third = truth.jobs
    assert mirror.apply(truth.feed.batch_since(mirror.cursor)) == {first, second, third}
    truth.step(1)
    truth.feed.publish_deletions([third])
    assert mirror.apply(truth.feed.batch_since(mirror.cursor)) == {second, third}
    del truth.jobs[first]
    truth.restart()
    assert mirror.apply(truth.feed.batch_since(mirror.cursor)) == {first, second, third}
    assert mirror.get(first) is None


async def test_access_stays_as_it_was_told_last() -> None:
    feed, mirror = FeedPublisher(), JobCache()
    mirror.apply(feed.batch_since(mirror.cursor))
    assert mirror.access is None
    for version in (1, 2):
        feed.publish_access(AccessTable(version, {}, {}))
        for _ in range(2):
            mirror.apply(feed.batch_since(mirror.cursor))
            assert mirror.access == AccessTable(version, {}, {})


async def test_a_history_with_a_gap_is_not_told() -> None:
    feed, mirror = FeedPublisher(), JobCache()
    job = new_job(1)
    encoding = moved(job, JobState.ENCODING)
    feed.publish(replace(encoding, last_move=None))
    queued = moved(encoding, JobState.QUEUED)
    feed.publish(queued)
    mirror.apply(feed.batch_since(mirror.cursor))
    assert (mirror.get(job.id), mirror.moves(job.id)) == (queued, None)
    other, ahead = new_job(2), JobCache()
    feed.publish(other)
    ahead.apply(feed.batch_since(ahead.cursor))
    later = moved(moved(other, JobState.ENCODING), JobState.QUEUED)
    feed.publish(later)  # one move of it was not heard
    feed.publish(moved(later, JobState.SAMPLING))
    for follower in (mirror, ahead):
        follower.apply(feed.batch_since(follower.cursor))
        assert follower.moves(other.id) is None
        assert follower.moves("video_unknown") is None


async def test_a_job_that_is_read_again_keeps_its_history() -> None:
    feed, mirror = FeedPublisher(), JobCache()
    job = new_job(1)
    feed.publish(job)
    feed.publish(replace(job, last_move=None))
    mirror.apply(feed.batch_since(mirror.cursor))
    assert mirror.moves(job.id) == (first_move(job.created_at),)


async def test_a_mirror_that_is_full_begins_anew() -> None:
    feed, mirror = FeedPublisher(max_ended=2), JobCache(max_jobs=4)
    for number in range(5):
        feed.publish(moved(new_job(number), JobState.CANCELLED))
        mirror.apply(feed.batch_since(mirror.cursor))
    assert len(mirror) == 5
    assert mirror.cursor.epoch == ""
    batch = feed.batch_since(mirror.cursor)
    mirror.apply(batch)
    assert batch.reset
    assert len(mirror) == 2
    assert mirror.cursor == batch.cursor


async def test_more_live_jobs_than_a_mirror_keeps_are_told_once() -> None:
    feed, mirror = FeedPublisher(), JobCache(max_jobs=4)
    for number in range(10):
        feed.publish(new_job(number))
    mirror.apply(feed.batch_since(mirror.cursor))
    feed.publish(new_job(10))
    batch = feed.batch_since(mirror.cursor)
    assert not batch.reset
    assert len(batch.changes) == 1


async def test_followers_of_the_others_are_waited_out() -> None:
    """A registry that comes to a database where others are."""
    timing, presence = FeedTiming(valid_s=0.1), PresenceTiming(exclusive_s=0.2)
    leases = ReadLeases(timing, presence, alone=False)
    feed = FeedPublisher(leases=leases, timing=timing)
    arrived_at = time.monotonic()
    leases.beat(arrived_at, silent_s=math.inf)
    await feed.flush()
    assert time.monotonic() - arrived_at >= 0.29


def test_all_final_states_end() -> None:
    assert {state for state in JobState if not MOVES[state]} == FINAL
