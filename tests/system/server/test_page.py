"""The page against a whole server: what people do with it, from the prompt to the video."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import BrowserContext, Locator, Page, expect
from pydantic import SecretStr

from deployments.keys import prompt_embeds_key
from deployments.settings import StorageSettings
from deployments.storage.object_store import ObjectStore
from serve_app.local.store.seaweed_command import load_or_make_keys
from tests.support.browser.axe_check import violations
from tests.support.browser.tabs import PHONE, Tabs, ask_for, card, made_by, percent, scrolls_sideways, viewer
from tests.support.servers.server import ENDLESS, Server

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = "a red circle moving right"
# Some seconds of work, so that a test sees it being done; each of them cancels it.
SLOW = {"size": "128x64", "num_frames": 61, "num_inference_steps": 200}
SAMPLER_SLOTS = 8

PLAYS = """video => new Promise((played) => {
    const look = () => video.currentTime > 0.1 && video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA
        ? played([video.duration, video.videoWidth]) : requestAnimationFrame(look);
    look();
})"""


def store_of(server: Server) -> ObjectStore:
    """The object store of a running server."""
    access, secret = load_or_make_keys(server.data / "objects-keys.json")
    endpoint = f"127.0.0.1:{server.ports[-1]}"
    keys = {"access_key": SecretStr(access), "secret_key": SecretStr(secret)}
    return ObjectStore(StorageSettings(endpoint=endpoint, secure=False, **keys))


def cancel(server: Server, *video_ids: str) -> None:
    with server.client() as client:
        for video_id in video_ids:
            client.post(f"/v1/videos/{video_id}/cancel")
    for video_id in video_ids:
        server.wait_for(video_id, "cancelled")


def failed_video(server: Server) -> str:
    """A video whose encoded prompt is lost before it is sampled, and whose request no encoder reads any more.

    Further ones take all slots of the sampler meanwhile, so that the file is lost in time.
    """
    before = [server.create(prompt=PROMPT, **SLOW)["id"] for _ in range(SAMPLER_SLOTS)]
    for one in before:
        server.wait_for(one, "sampling")
    video_id: str = server.create(prompt="a green circle moving up")["id"]
    while server.job_row(video_id, "state", "stage") != ("queued", "sampling"):
        pass
    server.write_sql(
        "UPDATE jobs SET spec = json_set(spec, '$.negative_prompt', ?) WHERE id = ?", ("red " * 300, video_id)
    )
    store = store_of(server)
    asyncio.run(store.delete(prompt_embeds_key(video_id)))
    store.close()
    cancel(server, *before)
    server.wait_for(video_id, "failed")
    return video_id


async def ask_for_slow(page: Page) -> str:
    """As `SLOW`, through the page."""
    await page.get_by_role("button", name="Details").click()
    await page.get_by_label("Size").select_option("own")
    for label, value in {"Width": "128", "Height": "64", "Length": "61", "Steps": "200"}.items():
        await page.get_by_label(label).fill(value)
    return await ask_for(page, PROMPT)


async def plays(video: Locator) -> tuple[int, int]:
    """Wait until it plays; returns its duration in tenths of a second, rounded, and its width in pixels."""
    duration, width = await video.evaluate(PLAYS)
    return round(10 * duration), width


async def test_a_prompt_becomes_a_video_that_plays(server: Server, tabs: Tabs, tmp_path: Path) -> None:
    page = await tabs.open(server.url)
    video_id = await ask_for(page, PROMPT)
    mine = card(page, video_id)
    await expect(mine.get_by_role("button", name="Download")).to_be_visible()
    await expect(mine.locator("img").last).to_have_js_property("naturalWidth", 96)
    await mine.hover()
    assert await plays(mine.locator("video")) == (15, 96)
    await mine.get_by_role("link").click()
    assert await plays(viewer(page).locator("video")) == (15, 96)
    async with page.expect_download() as download:
        await viewer(page).get_by_role("button", name="Download").click()
    saved = tmp_path / "clip.mp4"
    await (await download.value).save_as(saved)
    assert ((await download.value).suggested_filename, saved.read_bytes()[4:8]) == (f"{video_id}.mp4", b"ftyp")


async def test_progress_goes_on_after_a_reload(server: Server, tabs: Tabs) -> None:
    page = await tabs.open(server.url)
    video_id = await ask_for_slow(page)
    mine = card(page, video_id)
    await expect(mine.locator("img.preview")).to_have_js_property("complete", True)
    await expect(mine).to_contain_text("of 200")
    before = await percent(mine.get_by_role("progressbar"))
    await page.reload()
    bar = mine.get_by_role("progressbar")
    await expect(bar).to_be_visible()
    after = await percent(bar)
    assert after >= before
    await expect(bar).not_to_have_attribute("aria-valuenow", str(after))
    await expect(mine.locator("img.preview")).to_be_visible()
    assert await percent(bar) > after
    await mine.get_by_role("button", name="Cancel").click()
    await expect(mine).to_contain_text("Cancelled")
    assert server.get(video_id)["state"] == "cancelled"


async def test_two_tabs_show_the_same(server: Server, tabs: Tabs) -> None:
    user = await tabs.user()
    one, other = await tabs.open(server.url, user), await tabs.open(server.url, user)
    video_id = await ask_for_slow(one)
    for tab in (one, other):
        await expect(card(tab, video_id).get_by_role("progressbar")).to_be_visible()
    await card(other, video_id).get_by_role("button", name="Cancel").click()
    for tab in (one, other):
        await expect(card(tab, video_id)).to_contain_text("Cancelled")
    await card(one, video_id).get_by_role("button", name="Delete").click()
    await one.get_by_role("alertdialog").get_by_role("button", name="Delete").click()
    for tab in (one, other):
        await expect(card(tab, video_id)).to_have_count(0)


async def test_enhance_makes_the_same_video_with_more_steps(server: Server, tabs: Tabs) -> None:
    origin = server.wait_for(server.create(prompt=PROMPT, seed=5)["id"], "completed")
    page = await tabs.open(server.url)
    await card(page, origin["id"]).get_by_role("button", name="Enhance").click()
    await expect(viewer(page).get_by_label("Steps")).to_have_value("24")
    video_id = await made_by(page, viewer(page).get_by_role("button", name="Make it better"))
    await expect(page).to_have_url(f"{server.url}/#{video_id}")
    await plays(viewer(page).locator("video"))
    made = server.get(video_id)
    assert (made["enhanced_from_video_id"], made["seed"], made["prompt"]) == (origin["id"], 5, PROMPT)
    assert made["num_inference_steps"] == 24
    await viewer(page).get_by_role("link", name="the video before").click()
    await expect(page).to_have_url(f"{server.url}/#{origin['id']}")


async def test_remix_makes_another_video_with_the_same_settings(server: Server, tabs: Tabs) -> None:
    origin = server.wait_for(server.create(prompt=PROMPT, seed=6, size="96x64")["id"], "completed")
    page = await tabs.open(server.url)
    await card(page, origin["id"]).get_by_role("button", name="Remix").click()
    prompt = viewer(page).get_by_label("The new prompt")
    await expect(prompt).to_have_value(PROMPT)
    await expect(prompt).to_be_focused()
    await prompt.fill("a blue square moving up")
    video_id = await made_by(page, viewer(page).get_by_role("button", name="Make the remix"))
    await plays(viewer(page).locator("video"))
    made = server.get(video_id)
    assert (made["remixed_from_video_id"], made["prompt"]) == (origin["id"], "a blue square moving up")
    assert (made["seed"], made["size"]) == (6, "96x64")


async def test_a_video_is_deleted_only_after_a_question(server: Server, tabs: Tabs) -> None:
    tabs.expected.append("status of 404")
    video_id: str = server.create(prompt=PROMPT)["id"]
    server.wait_for(video_id, "completed")
    page = await tabs.open(f"{server.url}/#{video_id}")
    await viewer(page).get_by_role("button", name="Delete").click()
    question = page.get_by_role("alertdialog")
    await question.get_by_role("button", name="Keep it").click()
    await expect(question).to_have_count(0)
    await viewer(page).get_by_role("button", name="Delete").click()
    await question.get_by_role("button", name="Delete").click()
    await expect(viewer(page)).to_have_count(0)
    await expect(card(page, video_id)).to_have_count(0)
    await expect(page.get_by_role("heading", name="Videos")).to_be_focused()
    await page.goto(f"{server.url}/#{video_id}")
    await page.reload()
    await expect(viewer(page)).to_contain_text("There is no video")


async def test_a_failed_video_tells_why(server: Server, tabs: Tabs) -> None:
    video_id = await asyncio.to_thread(failed_video, server)
    page = await tabs.open(server.url)
    why = server.get(video_id)["error"]["message"]
    await expect(card(page, video_id)).to_contain_text(f"Failed: {why}")
    await card(page, video_id).get_by_role("link").click()
    await expect(viewer(page)).to_contain_text(why)
    await expect(viewer(page).get_by_role("button", name="Enhance")).to_have_count(0)
    await viewer(page).get_by_role("button", name="Use its settings").click()
    await expect(viewer(page)).to_have_count(0)
    await expect(page.get_by_label("Prompt", exact=True)).to_have_value("a green circle moving up")
    await expect(page.get_by_label("Prompt", exact=True)).to_be_focused()


async def test_a_wrong_prompt_is_told_at_its_field(server: Server, tabs: Tabs) -> None:
    tabs.expected.append("status of 400")
    page = await tabs.open(server.url)
    prompt = page.get_by_label("Prompt", exact=True)
    await page.get_by_role("button", name="Make the video").click()
    await expect(prompt).to_have_accessible_description("Write what the video should show.")
    await prompt.fill(f"{PROMPT} {'letters' * 10}")
    await expect(prompt).to_have_accessible_description("")
    await page.get_by_role("button", name="Make the video").click()
    await expect(prompt).to_be_focused()
    await expect(prompt).to_have_attribute("aria-invalid", "true")
    await expect(page.get_by_text("the text encoder takes 64; shorten it.")).to_be_visible()
    await expect(page.get_by_role("button", name="Make the video")).to_have_attribute("aria-disabled", "false")


async def test_a_wrong_detail_is_told_at_its_field(server: Server, tabs: Tabs) -> None:
    tabs.expected.append("status of 400")
    page = await tabs.open(server.url)
    await page.get_by_role("button", name="Details").click()
    await page.get_by_label("Steps").fill(str(ENDLESS + 1))
    await page.get_by_role("button", name="Details").click()
    await page.get_by_label("Prompt", exact=True).fill(PROMPT)
    await page.get_by_role("button", name="Make the video").click()
    await expect(page.get_by_label("Steps")).to_be_focused()
    await expect(page.get_by_text(f"Invalid 'num_inference_steps': got {ENDLESS + 1}")).to_be_visible()


async def test_everything_is_done_with_the_keyboard(server: Server, tabs: Tabs) -> None:
    page = await tabs.open(server.url)
    await tab_to(page, page.get_by_label("Prompt", exact=True))
    await page.keyboard.type(PROMPT)
    await tab_to(page, page.get_by_role("button", name="Make the video"))
    async with page.expect_response(lambda r: r.request.method == "POST") as answer:
        await page.keyboard.press("Enter")
    video_id: str = (await (await answer.value).json())["id"]
    await expect(card(page, video_id).get_by_role("button", name="Download")).to_be_visible()
    opener = card(page, video_id).get_by_role("link")
    await tab_to(page, opener)
    await page.keyboard.press("Enter")
    await expect(viewer(page).get_by_role("button", name="Close")).to_be_focused()
    await tab_to(page, viewer(page).get_by_role("button", name="Remix"))
    await page.keyboard.press("Enter")
    await expect(viewer(page).get_by_label("The new prompt")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(viewer(page)).to_have_count(0)
    await expect(opener).to_be_focused()
    await expect(page).to_have_url(f"{server.url}/")


async def tab_to(page: Page, target: Locator, most: int = 60) -> None:
    for _ in range(most):
        await page.keyboard.press("Tab")
        if await target.evaluate("one => one === document.activeElement"):
            return
    raise AssertionError(f"{target} is not reached with {most} tabs")


async def everything_shown(page: Page, server: Server) -> None:
    """Open the details and see that there is a video in work and one that is done."""
    await page.get_by_role("button", name="Details").click()
    await expect(page.get_by_role("progressbar").first).to_be_visible()
    await expect(page.get_by_role("button", name="Download").first).to_be_visible()


@pytest.fixture
def slow_video(server: Server) -> Iterator[str]:
    """Sampled in one batch with three others, which makes it last some four times as long as alone."""
    server.wait_for(server.create(prompt=PROMPT)["id"], "completed")
    *others, video = [server.create(prompt=PROMPT, **SLOW)["id"] for _ in range(4)]
    yield video
    with server.client() as client:
        for each in others:
            client.post(f"/v1/videos/{each}/cancel")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_axe_finds_nothing(server: Server, tabs: Tabs, slow_video: str, dark: bool) -> None:
    user: BrowserContext = await tabs.user(dark=dark)
    page = await tabs.open(server.url, user)
    await everything_shown(page, server)
    assert await violations(page) == []
    await card(page, slow_video).get_by_role("link").click()
    await expect(viewer(page).get_by_role("progressbar")).to_be_visible()
    assert await violations(page) == []
    await viewer(page).get_by_role("button", name="Cancel").click()
    await viewer(page).get_by_role("button", name="Remix").click()
    assert await violations(page) == []
    await viewer(page).get_by_role("button", name="Delete").click()
    assert await violations(page) == []


@pytest.mark.parametrize("width", [PHONE[0], 320])
async def test_a_phone_scrolls_only_down(server: Server, tabs: Tabs, slow_video: str, width: int) -> None:
    page = await tabs.open(server.url, size=(width, PHONE[1]))
    await everything_shown(page, server)
    assert not await scrolls_sideways(page)
    await card(page, slow_video).get_by_role("link").click()
    await expect(viewer(page).get_by_role("progressbar")).to_be_visible()
    assert not await viewer(page).evaluate("one => one.scrollWidth > one.clientWidth")
    await viewer(page).get_by_role("button", name="Cancel").click()
    await expect(viewer(page)).to_contain_text("It was cancelled.")
