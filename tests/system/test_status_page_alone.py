"""The operators' page against the HTTP side alone: keys, empty queues, replicas that start, a server that goes away."""

import re
import time
from dataclasses import replace

import pytest
from playwright.async_api import Locator, Page, Request, expect

from deployments.messages import Stage
from serve_app.jobs import JobState, Submission, Tier, new_job_id
from serve_app.scheduling.activity import Gpu
from tests.support.browser.axe_check import violations
from tests.support.browser.tabs import PHONE, Tabs, scrolls_sideways
from tests.support.http.memory_app import MemoryApp, running_app
from tests.support.registry.world import SPEC

pytestmark = pytest.mark.asyncio(loop_scope="session")

HIDE = """hidden => {
    Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });
    document.dispatchEvent(new Event('visibilitychange'));
}"""


def accepted(app: MemoryApp, prompt: str = "a red circle", tenant: str = "default", tier: Tier = Tier.STANDARD) -> str:
    """A new job; returns its id."""
    spec = replace(SPEC, prompt=prompt)
    return app.services.memory.insert(Submission(new_job_id(), "mochi-1", spec, tenant=tenant, tier=tier)).id


def sampled(app: MemoryApp, job_id: str) -> None:
    memory = app.services.memory
    memory.move(job_id, JobState.ENCODING)
    memory.move(job_id, JobState.QUEUED, stage=Stage.SAMPLING)
    memory.move(job_id, JobState.SAMPLING, step=3, progress=0.3)


async def status_page(tabs: Tabs, app: MemoryApp, hash_: str = "", size: tuple[int, int] = PHONE) -> Page:
    page = await tabs.blank(app.url, size=size)
    await page.goto(f"{app.url}/status{hash_}")
    await expect(page.get_by_role("heading", name="Status")).to_be_visible()
    return page


def listed(page: Page) -> Locator:
    return page.locator(".videos .row-link")


async def test_an_idle_server_says_that_nothing_waits(memory_app: MemoryApp, tabs: Tabs) -> None:
    page = await status_page(tabs, memory_app)
    await expect(page.get_by_text("Videos are accepted and made")).to_be_visible()
    await expect(page.get_by_text("Nothing waits.")).to_be_visible()
    await expect(page.get_by_text("There are none.")).to_be_visible()
    await expect(page.get_by_role("heading", name="GPUs")).to_have_count(0)
    replicas = page.locator(".replica")
    await expect(replicas).to_have_count(3)
    await expect(replicas.first).to_contain_text("0 of 1 slot busy")
    assert await violations(page) == []
    assert not await scrolls_sideways(page)


async def test_replicas_that_start_are_announced(memory_app: MemoryApp, tabs: Tabs) -> None:
    memory = memory_app.services.memory
    infos = memory.replicas[Stage.DECODING]
    memory.replicas = {Stage.DECODING: (replace(infos[0], slots=0, problem="its device is too hot"),)}
    memory.starting = {Stage.SAMPLING: (time.time() + 3000,)}
    page = await status_page(tabs, memory_app)
    await expect(page.get_by_text("Videos are accepted, and none can be made yet")).to_be_visible()
    absent = page.locator(".replica.absent")
    await expect(absent.filter(has_text="No sampler")).to_contain_text(
        re.compile(r"1 is starting: likely in (49|50) min")
    )
    await expect(absent.filter(has_text="No prompt encoder")).to_contain_text("None is being started.")
    await expect(absent.filter(has_text="No video decoder")).to_contain_text("Those there take no jobs.")
    sick = page.locator(".replica", has_text="its device is too hot")
    await expect(sick).to_contain_text("Takes no jobs")
    assert await violations(page) == []


async def test_gpus_are_shown_where_there_are_some(memory_app: MemoryApp, tabs: Tabs) -> None:
    gpu = Gpu("GPU-3f0c9a11-77", 80e9, 61.4e9, 0.97, 612.0, None)
    memory_app.services.memory.gpus = (gpu,)
    page = await status_page(tabs, memory_app)
    await expect(page.get_by_role("heading", name="GPUs")).to_be_visible()
    shown = page.locator(".replica", has_text="GPU-3f0c9a11")
    await expect(shown).to_contain_text("61.4 of 80.0 GB in use")
    await expect(shown).to_contain_text("97 % busy · 612 W")
    assert await violations(page) == []
    assert not await scrolls_sideways(page)


async def test_a_server_without_its_database_says_so(memory_app: MemoryApp, tabs: Tabs) -> None:
    tabs.expected.append("status of 503")
    memory_app.services.memory.database = "the database does not answer"
    page = await status_page(tabs, memory_app)
    state = page.locator(".state")
    await expect(state).to_contain_text("No videos are accepted")
    await expect(state).to_contain_text("the database does not answer")


async def test_what_people_write_is_shown_as_they_wrote_it(memory_app: MemoryApp, tabs: Tabs) -> None:
    prompt = "<img src=x onerror=alert(1)> & <b>a circle</b>"
    job_id = accepted(memory_app, prompt)
    page = await status_page(tabs, memory_app, f"#{job_id}")
    await expect(page.get_by_role("dialog").get_by_role("heading", name=prompt)).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)
    await expect(page).to_have_url(f"{memory_app.url}/status")
    await expect(listed(page)).to_contain_text(prompt)


async def test_a_tenant_of_the_queue_leads_to_its_waiting_videos(memory_app: MemoryApp, tabs: Tabs) -> None:
    older, newer = accepted(memory_app, "older", "acme"), accepted(memory_app, "newer", "acme")
    accepted(memory_app, "another", "beta", Tier.BATCH)
    sampled(memory_app, accepted(memory_app, "running", "acme"))
    page = await status_page(tabs, memory_app)
    await expect(listed(page)).to_have_count(4)
    rows = page.locator(".queue tbody tr")
    await expect(rows).to_have_text(
        [re.compile("^acmestandardencoding2.*5 s$"), re.compile("^betabatchencoding1.*2 s$")]
    )
    await rows.first.get_by_role("button").click()
    await expect(page.get_by_role("heading", name="Videos")).to_be_focused()
    await expect(listed(page)).to_have_count(2)
    links = await listed(page).evaluate_all("all => all.map((one) => one.hash)")
    assert links == [f"#{older}", f"#{newer}"]
    await page.get_by_role("button", name="Only acme").click()
    await expect(listed(page)).to_have_count(3)
    await page.get_by_label("Which videos").select_option("In work")
    await expect(listed(page)).to_contain_text(["running"])


async def test_rows_hold_still_under_the_pointer(memory_app: MemoryApp, tabs: Tabs) -> None:
    first, second = accepted(memory_app, "first"), accepted(memory_app, "second")
    sampled(memory_app, first)
    page = await status_page(tabs, memory_app, size=(1280, 900))
    await expect(listed(page)).to_contain_text(["second", "first"])
    row = listed(page).last
    await row.hover()
    place = await row.bounding_box()
    accepted(memory_app, "third", "another")
    memory_app.services.memory.complete(second)
    await expect(page.get_by_text("1 new one comes when the pointer leaves")).to_have_count(2)
    await expect(listed(page).first).to_contain_text("Done")
    await expect(listed(page)).to_contain_text(["second", "first"])
    # The queue above has another row, and one less: they come later, too.
    await expect(page.locator(".queue tbody tr")).to_have_count(1)
    await expect(page.locator(".queue tbody tr")).to_have_class("gone")
    assert await row.bounding_box() == place
    await page.mouse.move(1, 1)
    await expect(listed(page)).to_contain_text(["third", "second", "first"])
    await expect(page.locator(".queue tbody tr")).to_contain_text(["another"])


async def test_rows_hold_still_for_who_came_by_keyboard(memory_app: MemoryApp, tabs: Tabs) -> None:
    accepted(memory_app, "first")
    page = await status_page(tabs, memory_app)
    await page.get_by_label("Which videos").focus()
    await page.keyboard.press("Tab")
    await expect(listed(page).first).to_be_focused()
    accepted(memory_app, "second")
    await expect(page.get_by_text("1 new one comes")).to_be_visible()
    await expect(listed(page)).to_contain_text(["first"])
    await page.get_by_label("Which videos").focus()
    await expect(listed(page)).to_contain_text(["second", "first"])


async def test_nothing_is_asked_while_nobody_looks(memory_app: MemoryApp, tabs: Tabs) -> None:
    page = await tabs.blank(memory_app.url)
    await page.clock.install()
    asked: list[Request] = []
    page.on("request", lambda request: asked.append(request) if "v1/status" in request.url else None)
    await page.goto(f"{memory_app.url}/status")
    await expect(page.get_by_text("There are none.")).to_be_visible()
    async with page.expect_response("**/v1/status"):
        await page.clock.run_for(15_000)
    await page.evaluate(HIDE, True)
    await page.wait_for_load_state("networkidle")
    before = len(asked)
    await page.clock.run_for(120_000)
    assert len(asked) == before
    async with page.expect_response("**/v1/status"):
        await page.evaluate(HIDE, False)


async def test_a_stopped_server_is_told_with_the_time(tabs: Tabs) -> None:
    tabs.expected.append("ERR_CONNECTION_REFUSED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET")
    async with running_app() as app:
        sampled(app, accepted(app))
        page = await status_page(tabs, app)
        await expect(page.locator(".work .row-link")).to_have_count(1)
    banner = page.get_by_role("alert")
    await expect(banner).to_contain_text(re.compile(r"The server does not answer\. Since \d+:\d\d:\d\d"))
    since = (await banner.inner_text()).split("Trying")[0]
    await expect(page.locator(".state")).to_contain_text("what is shown here is old")
    await expect(page.locator(".work .row-link")).to_have_count(1)
    assert await violations(page) == []
    async with page.expect_request("**/v1/status"):
        await banner.get_by_role("button", name="Try now").click()
    await expect(banner).to_contain_text(since.strip())


async def test_a_key_is_asked_for_and_shows_its_tenants_jobs(tabs: Tabs) -> None:
    tabs.expected.append("status of 401")
    async with running_app(keys=True) as app:
        accepted(app, "mine", "studio")
        sampled(app, accepted(app, "not mine", "acme"))
        user = await tabs.user(PHONE)
        page = await tabs.blank(app.url, user)
        await page.goto(f"{app.url}/status")
        key = page.get_by_label("API key")
        await expect(key).to_be_focused()
        await key.fill(app.key)
        await page.keyboard.press("Enter")
        await expect(listed(page)).to_contain_text(["mine"])
        sampler = page.locator(".replica", has_text="Sampler")
        await expect(sampler).to_contain_text("1 job of other tenants")
        await expect(sampler.locator(".row-link")).to_have_count(0)
        await expect(page.get_by_text("Of all tenants together 1 job waits and 1 is in work.")).to_be_visible()
        assert await violations(page) == []
        await page.get_by_role("button", name="Forget the key").click()
        await expect(key).to_be_visible()
        await expect(listed(page)).to_have_count(0)
        await user.close()


async def test_both_pages_lead_to_each_other(memory_app: MemoryApp, tabs: Tabs) -> None:
    page = await tabs.open(memory_app.url)
    await page.locator("header").get_by_role("link", name="Ready").click()
    await expect(page.get_by_role("heading", name="Status")).to_be_visible()
    await page.get_by_role("link", name="Videos", exact=True).click()
    await expect(page.get_by_label("Prompt", exact=True)).to_be_visible()


async def test_a_video_that_is_not_there_is_no_fault_of_the_server(memory_app: MemoryApp, tabs: Tabs) -> None:
    tabs.expected.append("status of 404")
    page = await status_page(tabs, memory_app, f"#{new_job_id()}")
    await expect(page.get_by_role("dialog")).to_contain_text("There is no video")
    await expect(page.locator(".banner")).to_have_count(0)
