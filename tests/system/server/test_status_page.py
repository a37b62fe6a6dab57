"""The operators' page against a whole server: jobs of two tenants, one of them parked, and its way on a time axis."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.support.browser.axe_check import violations
from tests.support.browser.tabs import DESKTOP, PHONE, Tabs, scrolls_sideways
from tests.support.servers.server import ENDLESS, STATE_S, Server

pytestmark = pytest.mark.asyncio(loop_scope="session")

SAMPLER_SLOTS = 8
SLOW = {"prompt": "a red circle moving right", "num_inference_steps": ENDLESS}

# Pixels between the first sampled stretch and the first parked one, and from the last parked one to the axis' end; all
# at one moment, because what lasts grows.
GAPS = """way => {
    const boxes = (name) => [...way.querySelectorAll(name)].map((one) => one.getBoundingClientRect());
    const [sampled, parked] = [boxes('.stretch.sampling'), boxes('.stretch.parked')];
    return [parked[0].left - sampled[0].right, boxes('.track')[0].right - parked.at(-1).right];
}"""


@dataclass(frozen=True)
class Busy:
    """A server whose sampler is full. urgent: the job for which another one was parked."""

    urgent: str
    parked: str


def asked_for(server: Server, tenant: str, **fields: Any) -> str:
    """A video that lasts until it is cancelled; returns its id."""
    with server.client() as client:
        answer = client.post("/v1/videos", json=SLOW | fields, headers={"OpenAI-Organization": tenant})
    assert answer.status_code == 200, answer.text
    video_id: str = answer.json()["id"]
    return video_id


def parked_one(server: Server, ids: list[str]) -> str:
    """Wait until all but one of them are sampled, and that one is parked; returns its id."""
    deadline = time.monotonic() + STATE_S
    while time.monotonic() < deadline:
        videos = [server.get(video_id) for video_id in ids]
        waiting = [video for video in videos if video["state"] != "sampling"]
        if len(waiting) == 1 and waiting[0]["state"] == "queued" and waiting[0]["parks"]:
            found: str = waiting[0]["id"]
            return found
    raise AssertionError(f"none of {ids} stays parked in {STATE_S} s\n{server.log_tail()}")


@pytest.fixture
def busy(server: Server) -> Iterator[Busy]:
    """Jobs of two tenants: the sampler's slots are full, one is parked for another that is urgent."""
    ids = [asked_for(server, "acme", priority="batch") for _ in range(SAMPLER_SLOTS)]
    try:
        for one in ids:
            server.wait_for(one, "sampling")
        urgent = asked_for(server, "beta", priority="interactive")
        ids.append(urgent)
        yield Busy(urgent, parked_one(server, ids))
    finally:
        with server.client() as client:
            for one in ids:
                client.post(f"/v1/videos/{one}/cancel")
        for one in ids:
            server.wait_for(one, "cancelled")


async def status_page(tabs: Tabs, server: Server, size: tuple[int, int] = DESKTOP, dark: bool = False) -> Page:
    page = await tabs.blank(server.url, await tabs.user(size, dark))
    await page.goto(f"{server.url}/status")
    return page


async def test_the_queue_and_the_replicas_are_shown_as_they_are(server: Server, tabs: Tabs, busy: Busy) -> None:
    page = await status_page(tabs, server)
    await expect(page.locator(".queue tbody tr")).to_have_text([re.compile("^acmebatchsampling1")])
    sampler = page.locator(".replica", has=page.get_by_role("heading", name="Sampler"))
    await expect(sampler).to_contain_text(f"{SAMPLER_SLOTS} of {SAMPLER_SLOTS} slots busy")
    await expect(sampler.locator(".row-link")).to_have_count(SAMPLER_SLOTS)
    urgent = sampler.locator(f'a[href="#{busy.urgent}"]')
    await expect(urgent).to_contain_text("beta, interactive")
    await expect(urgent).to_contain_text(re.compile(rf"step \d+ of {ENDLESS}, [\d.]+ s a step"))
    step = await urgent.inner_text()
    await expect(urgent).not_to_have_text(step, use_inner_text=True)


async def test_a_parked_video_shows_its_way(server: Server, tabs: Tabs, busy: Busy) -> None:
    page = await status_page(tabs, server)
    await page.locator(f'.videos a[href="#{busy.parked}"]').click()
    way = page.get_by_role("dialog")
    await expect(page).to_have_url(f"{server.url}/status#{busy.parked}")
    rows = way.get_by_role("table", name="The same in numbers").locator("tbody tr")
    names = rows.get_by_role("rowheader")
    first = ["Waiting for encoding", "Encoding", "Waiting for sampling", "Sampling", "Parked"]
    await expect(names).to_contain_text(first)
    await expect(names.last).to_have_text("Parked")
    await expect(rows.last).to_contain_text(re.compile(r"so far.*parked at step \d+"))
    await expect(way.get_by_role("img")).to_have_accessible_name(re.compile(r"so far: waiting .*, parked "))
    # To scale: where the parked stretch begins, the sampled one ends, and it lasts until now.
    gap, rest = await way.evaluate(GAPS)
    assert max(abs(gap), abs(rest)) < 4
    with server.client() as client:
        client.post(f"/v1/videos/{busy.parked}/cancel")
    await expect(names.last).to_have_text("Cancelled")
    await expect(way.get_by_role("img")).to_have_accessible_name(re.compile("^It was cancelled after "))
    await way.get_by_role("link", name="See the video itself").click()
    await expect(page.locator("dialog.viewer")).to_contain_text("It was cancelled.")
    await page.get_by_text("What happened").click()
    await page.get_by_role("link", name="Its way through the server").click()
    await expect(rows.last).to_contain_text("Cancelled")


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_axe_finds_nothing(server: Server, tabs: Tabs, busy: Busy, size: tuple[int, int], dark: bool) -> None:
    page = await status_page(tabs, server, size, dark)
    await expect(page.locator(".work .row-link")).to_have_count(SAMPLER_SLOTS)
    assert await violations(page) == []
    await page.locator(f'.videos a[href="#{busy.parked}"]').click()
    await expect(page.get_by_role("dialog").locator(".stretch.parked")).to_be_visible()
    assert await violations(page) == []


@pytest.mark.parametrize("width", [PHONE[0], 320])
async def test_a_phone_scrolls_only_down_and_is_wide_enough_for_fingers(
    server: Server, tabs: Tabs, busy: Busy, width: int
) -> None:
    page = await status_page(tabs, server, (width, PHONE[1]))
    await expect(page.locator(".work .row-link")).to_have_count(SAMPLER_SLOTS)
    assert not await scrolls_sideways(page)
    sizes = await page.locator("main :is(a, button, select)").evaluate_all(
        "all => all.map((one) => one.getBoundingClientRect()).map(({ width, height }) => Math.min(width, height))"
    )
    assert min(sizes) >= 44
    await page.locator(f'.videos a[href="#{busy.parked}"]').click()
    way = page.get_by_role("dialog")
    await expect(way.locator(".stretch.parked")).to_be_visible()
    assert not await way.evaluate("one => one.scrollWidth > one.clientWidth")
