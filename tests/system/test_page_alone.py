"""The page against the HTTP side alone: refusals, keys, a server that goes away, long lists.

The app comes before the tabs in each test: so it ends after them, and no tab misses it.
"""

import re
from typing import Any

import pytest
from playwright.async_api import Page, Route, expect

from deployments.messages import LoraChoice
from deployments.settings import LoraSettings
from serve_app.errors import ContentPolicyError, PermissionDeniedError, QueueFullError, RateLimitError
from serve_app.jobs import JobState
from tests.support.browser.axe_check import violations
from tests.support.browser.tabs import Tabs, ask_for, card, made_by, viewer
from tests.support.http.memory_app import MemoryApp, picture, running_app

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = "a red circle moving right"


async def prompt_and_send(page: Page) -> None:
    await page.get_by_label("Prompt", exact=True).fill(PROMPT)
    await page.get_by_role("button", name="Make the video").click()


async def test_a_key_is_asked_for_and_kept(tabs: Tabs) -> None:
    tabs.expected.append("status of 401")
    async with running_app(keys=True) as app:
        user = await tabs.user()
        page = await tabs.blank(app.url, user)
        await page.goto(app.url)
        key = page.get_by_label("API key")
        await expect(key).to_be_focused()
        assert await violations(page) == []
        await key.fill("ms-wrong")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text("is no API key of this server")
        await key.fill(app.key)
        await page.get_by_role("button", name="Go on").click()
        video_id = await ask_for(page, PROMPT)
        app.completed(video_id)
        # An address that the browser may ask for without the key is of no use here.
        poster = card(page, video_id).locator("img").last
        await expect(poster).to_have_attribute("src", re.compile("^blob:"))
        await expect(poster).to_have_js_property("naturalWidth", 64)
        await page.reload()
        await expect(card(page, video_id)).to_be_visible()
        await page.get_by_role("button", name="Forget the key").click()
        await expect(key).to_be_visible()
        await expect(card(page, video_id)).to_have_count(0)
        await user.close()


@pytest.mark.parametrize(
    ("refusal", "told", "wait"),
    [
        (QueueFullError(5, None, 30), "The queue is full", r"Try again in (30|29|28) s\."),
        (RateLimitError("The day's share is used up.", "insufficient_quota", 7200), "The day's share", "in 2 h"),
    ],
)
async def test_a_refusal_for_now_tells_how_long(
    memory_app: MemoryApp, tabs: Tabs, refusal: Exception, told: str, wait: str
) -> None:
    tabs.expected.append("status of 429")
    memory_app.services.memory.refusals.append(refusal)  # type: ignore[arg-type]
    page = await tabs.open(memory_app.url)
    await prompt_and_send(page)
    problem = page.locator(".composer").get_by_role("alert")
    await expect(problem).to_contain_text(told)
    await expect(problem).to_contain_text(re.compile(wait))
    await ask_for(page, PROMPT)
    await expect(problem).to_have_count(0)


@pytest.mark.parametrize(
    ("refusal", "field"),
    [
        (ContentPolicyError("This prompt is not for this server.", "prompt"), "Prompt"),
        (PermissionDeniedError("The priority is too high.", "priority", "priority_not_allowed"), "Priority"),
    ],
)
async def test_a_refusal_stands_at_the_field_it_is_about(
    memory_app: MemoryApp, tabs: Tabs, refusal: Any, field: str
) -> None:
    tabs.expected.append("status of 40")
    memory_app.services.memory.refusals.append(refusal)
    page = await tabs.open(memory_app.url)
    await prompt_and_send(page)
    await expect(page.get_by_label(field, exact=True)).to_be_focused()
    await expect(page.get_by_label(field, exact=True)).to_have_accessible_description(re.compile(refusal.message))


async def test_a_server_that_was_away_is_found_again(memory_app: MemoryApp, tabs: Tabs) -> None:
    tabs.expected.append("ERR_INTERNET_DISCONNECTED|ERR_NETWORK_CHANGED")
    user = await tabs.user()
    page = await tabs.open(memory_app.url, user)
    await user.set_offline(True)
    banner = page.get_by_role("alert").filter(has_text="The server does not answer.")
    await expect(banner).to_be_visible()
    assert await violations(page) == []
    await user.set_offline(False)
    await expect(banner).to_have_count(0)


async def test_a_page_that_finds_no_server_waits_for_it(memory_app: MemoryApp, tabs: Tabs) -> None:
    tabs.expected.append("status of 503")
    page = await tabs.blank(memory_app.url)
    away = {"error": {"message": "The job registry is away.", "type": "server_error", "param": None, "code": "x"}}
    await page.route("**/v1/**", lambda route: route.fulfill(status=503, json=away))
    await page.goto(memory_app.url)
    await expect(page.get_by_role("alert")).to_contain_text("The job registry is away.")
    await page.unroute("**/v1/**")
    await expect(page.get_by_role("heading", name="Videos")).to_be_visible()
    await expect(page.get_by_role("alert")).to_have_count(0)


async def test_older_videos_come_as_one_scrolls(memory_app: MemoryApp, tabs: Tabs) -> None:
    page = await tabs.open(memory_app.url)
    first = await ask_for(page, PROMPT)
    for n in range(59):
        await page.request.post(f"{memory_app.url}/v1/videos", data={"prompt": PROMPT, "seed": n})
    for job_id in list(memory_app.services.memory.jobs):
        memory_app.completed(job_id)
    await page.reload()
    cards = page.locator(".card")
    await expect(cards).to_have_count(24)
    newest = list(memory_app.services.memory.jobs)[::-1]
    shown = await cards.get_by_role("link").evaluate_all("all => all.map((one) => one.hash.slice(1))")
    assert shown == newest[:24]
    while await page.get_by_role("button", name="Show older videos").count():
        count = await cards.count()
        await cards.last.scroll_into_view_if_needed()
        await expect(cards).not_to_have_count(count)
    await expect(cards).to_have_count(60)
    await expect(cards.last.get_by_role("link")).to_have_attribute("href", f"#{first}")


async def test_a_repeat_after_a_lost_answer_makes_no_second_video(memory_app: MemoryApp, tabs: Tabs) -> None:
    tabs.expected.append("status of 503")
    page = await tabs.open(memory_app.url)
    await page.get_by_label("Prompt", exact=True).fill(PROMPT)
    lose_the_answer = LoseTheAnswer()
    await page.route("**/v1/videos", lose_the_answer)
    await page.get_by_role("button", name="Make the video").click()
    await expect(page.locator(".composer").get_by_role("alert")).to_contain_text("lost on its way")
    video_id = await made_by(page, page.get_by_role("button", name="Make the video"))
    assert list(memory_app.services.memory.jobs) == [video_id]


class LoseTheAnswer:
    """Lets the first POST arrive, and tells the page that it failed."""

    lost = False

    async def __call__(self, route: Route) -> None:
        if self.lost or route.request.method != "POST":
            await route.continue_()
            return
        self.lost = True
        await route.fetch()
        await route.fulfill(status=503, json={"error": {"message": "The answer was lost on its way."}})


async def test_a_broken_stream_goes_on_where_it_ended(memory_app: MemoryApp, tabs: Tabs) -> None:
    page = await tabs.open(memory_app.url)
    cut = CutTheStream()
    await page.route("**/events", cut)
    video_id = await ask_for(page, PROMPT)
    registry = memory_app.services.memory
    await expect(card(page, video_id)).to_contain_text("Step 3 of 8")
    registry.move(video_id, JobState.ENCODING)
    memory_app.services.add_file(video_id, "thumbnail", picture())
    await expect(card(page, video_id)).to_contain_text("Reading the prompt")
    assert cut.asked_after[:2] == [None, "4.3"]


class CutTheStream:
    """Answers the first question for events with one of them and an end that comes too early."""

    def __init__(self) -> None:
        self.asked_after: list[str | None] = []

    async def __call__(self, route: Route) -> None:
        self.asked_after.append(route.request.headers.get("last-event-id"))
        if len(self.asked_after) > 1:
            await route.continue_()
            return
        data = '{"type":"progress","state":"sampling","progress":10,"step":3,"num_inference_steps":8,'
        data += '"queue_position":null,"estimated_start_at":null,"estimated_completion_at":null}'
        await route.fulfill(content_type="text/event-stream", body=f"id: 4.3\nevent: progress\ndata: {data}\n\n")


async def test_a_server_without_samplers_says_that_it_starts(memory_app: MemoryApp, tabs: Tabs) -> None:
    memory_app.services.memory.replicas.clear()
    page = await tabs.open(memory_app.url)
    pill = page.locator("header .pill")
    await expect(pill).to_have_text("Starting")
    await expect(pill).to_have_attribute("title", re.compile("no sampling replica is ready"))
    await ask_for(page, PROMPT)
    await page.reload()
    await expect(pill).to_have_text("Starting, 1 waiting")


async def test_without_events_the_page_asks_again_and_again(memory_app: MemoryApp, tabs: Tabs) -> None:
    tabs.expected.append("status of 404")
    page = await tabs.open(memory_app.url)
    await page.route("**/events", lambda route: route.fulfill(status=404, json={"error": {"message": "no events"}}))
    video_id = await ask_for(page, PROMPT)
    registry = memory_app.services.memory
    registry.move(video_id, JobState.ENCODING)
    await expect(card(page, video_id)).to_contain_text("Reading the prompt")
    memory_app.services.memory.previews[video_id] = picture()
    registry.move(video_id, JobState.QUEUED)
    registry.move(video_id, JobState.SAMPLING, step=7, progress=0.4, preview_step=5)
    await expect(card(page, video_id)).to_contain_text("Step 7 of 8")
    await expect(card(page, video_id).locator("img.preview")).to_have_js_property("naturalWidth", 64)


async def test_a_preview_that_is_gone_by_now_is_no_error(memory_app: MemoryApp, tabs: Tabs) -> None:
    page = await tabs.open(memory_app.url)
    registry = memory_app.services.memory
    # Two have their events read; of the third, the list tells a preview which the registry has no more.
    ids = [await ask_for(page, PROMPT) for _ in range(3)]
    async with page.expect_response(lambda answer: "include=preview" in answer.url) as asked:
        for video_id in ids:
            registry.move(video_id, JobState.ENCODING)
            registry.move(video_id, JobState.QUEUED)
            registry.move(video_id, JobState.SAMPLING, step=7, progress=0.4, preview_step=5)
    assert "preview" not in await (await asked.value).json()
    for video_id in ids:
        await expect(card(page, video_id)).to_contain_text("Step 7 of 8")
        await expect(card(page, video_id).locator("img")).to_have_count(0)


async def test_the_theme_is_the_systems_until_one_is_chosen(memory_app: MemoryApp, tabs: Tabs) -> None:
    user = await tabs.user(dark=True)
    page = await tabs.open(memory_app.url, user)
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = await page.evaluate(ground)
    await page.get_by_role("button", name="Use the light theme").click()
    light = await page.evaluate(ground)
    assert light != dark
    await page.reload()
    assert await page.evaluate(ground) == light
    await page.get_by_role("button", name="Use the dark theme").click()
    assert await page.evaluate(ground) == dark


async def test_the_controls_have_the_bounds_of_the_model(memory_app: MemoryApp, tabs: Tabs) -> None:
    page = await tabs.open(memory_app.url)
    sizes = await page.get_by_label("Size").locator("option").all_text_contents()
    assert sizes == ["Square, 96 × 96", "Wide, 128 × 80", "Tall, 80 × 128", "Own size"]
    await page.get_by_label("Size").select_option("own")
    length = page.get_by_label("Length")
    assert [await length.get_attribute(name) for name in ("min", "max", "step")] == ["7", "49", "6"]
    await length.fill("49")
    await page.get_by_label("Width").fill("128")
    await page.get_by_label("Height").fill("128")
    # 128 x 128 x 25 is as much as there may be of 500,000 pixels in steps of 6 frames.
    await expect(length).to_have_attribute("max", "25")
    await expect(length).to_have_value("25")
    video_id = await ask_for(page, PROMPT)
    spec = memory_app.services.memory.jobs[video_id].video
    assert (spec.width, spec.height, spec.num_frames) == (128, 128, 25)


async def test_settings_are_sent_as_they_stand(memory_app: MemoryApp, tabs: Tabs) -> None:
    page = await tabs.open(memory_app.url)
    await page.get_by_role("button", name="Details").click()
    fields = {"Steps": "33", "Guidance": "4.5", "Frames a second": "12", "Seed": "9007199254740991"}
    for label, value in fields.items():
        await page.get_by_label(label).fill(value)
    await page.get_by_label("Not in the picture").fill("a square")
    await page.get_by_label("Priority").select_option("Whenever there is room")
    await page.get_by_label("Bit for bit").check()
    job = memory_app.services.memory.jobs[await ask_for(page, PROMPT)]
    spec = job.video
    assert (spec.num_inference_steps, spec.guidance_scale, spec.fps, spec.seed) == (33, 4.5, 12, 2**53 - 1)
    assert (spec.negative_prompt, str(job.tier), spec.exact) == ("a square", "batch", True)


async def test_a_lora_is_chosen_by_its_name_and_weight(tabs: Tabs) -> None:
    ink = LoraSettings(source="/loras/ink", description="Drawings in ink")
    async with running_app(loras={"ink": ink, "drone.v2": LoraSettings(source="/loras/drone")}) as app:
        user = await tabs.user()
        page = await tabs.open(app.url, user)
        await page.get_by_role("button", name="Details").click()
        lora, weight = page.get_by_label("LoRA", exact=True), page.get_by_label("LoRA's weight")
        assert await lora.locator("option").all_text_contents() == ["None", "ink", "drone.v2"]
        await expect(lora).to_have_value("")
        await expect(weight).to_have_count(0)
        jobs = app.services.memory.jobs
        assert jobs[await ask_for(page, PROMPT)].video.lora_choice is None
        await lora.select_option("ink")
        await expect(lora).to_have_accessible_description(re.compile("Drawings in ink"))
        assert [await weight.get_attribute(name) for name in ("min", "max")] == ["0", "2"]
        assert await violations(page) == []
        assert jobs[await ask_for(page, PROMPT)].video.lora_choice == LoraChoice("ink", 1.0)
        await weight.fill("0.5")
        weighted = await ask_for(page, PROMPT)
        assert jobs[weighted].video.lora_choice == LoraChoice("ink", 0.5)
        await lora.select_option("None")
        assert jobs[await ask_for(page, PROMPT)].video.lora_choice is None
        await card(page, weighted).get_by_role("link").click()
        await expect(viewer(page)).to_contain_text("ink, 0.5")
        await user.close()


async def test_without_loras_there_is_no_choice_of_one(memory_app: MemoryApp, tabs: Tabs) -> None:
    page = await tabs.open(memory_app.url)
    await page.get_by_role("button", name="Details").click()
    await expect(page.get_by_label("Guidance")).to_be_visible()
    await expect(page.get_by_label("LoRA")).to_have_count(0)


async def test_a_card_that_changes_under_a_pressed_button_opens(memory_app: MemoryApp, tabs: Tabs) -> None:
    """What was pressed is no longer there when the button is let go: the link is."""
    tabs.expected.append("status of 404")  # the video has no file
    page = await tabs.open(memory_app.url)
    video_id = await ask_for(page, PROMPT)
    link = card(page, video_id).get_by_role("link")
    await link.hover()
    await page.mouse.down()
    memory_app.completed(video_id)
    await expect(link).to_contain_text("cannot be had")
    await page.mouse.up()
    await expect(viewer(page)).to_be_visible()


async def test_the_quality_may_be_left_to_the_server_where_it_makes_drafts(tabs: Tabs) -> None:
    tabs.expected.append("status of 404")  # the video has no file
    async with running_app(draft_when_wait_over_s=60) as app:
        user = await tabs.user()
        page = await tabs.open(app.url, user)
        await page.get_by_role("button", name="Details").click()
        quality, steps = page.get_by_label("Quality"), page.get_by_label("Steps")
        await expect(quality).to_have_value("exact")
        assert await quality.locator("option").all_text_contents() == ["Auto", "Exact", "Fast", "Draft"]
        await quality.select_option("Auto")
        await expect(quality).to_have_accessible_description(re.compile("would wait for more than 60 s"))
        await expect(steps).to_have_value("")
        assert await violations(page) == []
        memory = app.services.memory
        assert memory.jobs[await ask_for(page, PROMPT)].video.quality == "exact"
        memory.wait_s = 300.0
        late = await ask_for(page, PROMPT)
        assert memory.jobs[late].video.quality == "draft"
        app.completed(late)
        await card(page, late).get_by_role("link").click()
        await expect(viewer(page)).to_contain_text("draft: it would have waited for 5 min; enhance makes it exact")
        await viewer(page).get_by_role("button", name="Enhance").click()
        button = viewer(page).get_by_role("button", name="Make it better")
        assert memory.jobs[await made_by(page, button)].video.quality == "exact"
        await user.close()


async def test_where_none_are_made_it_may_not(memory_app: MemoryApp, tabs: Tabs) -> None:
    page = await tabs.open(memory_app.url)
    await page.get_by_role("button", name="Details").click()
    quality = page.get_by_label("Quality")
    assert await quality.locator("option").all_text_contents() == ["Exact", "Fast", "Draft"]


async def test_a_click_on_an_example_fills_the_prompt(memory_app: MemoryApp, tabs: Tabs) -> None:
    page = await tabs.open(memory_app.url)
    await page.get_by_role("button", name="a big green triangle flying fast to the upper right").click()
    prompt = page.get_by_label("Prompt", exact=True)
    await expect(prompt).to_have_value("a big green triangle flying fast to the upper right")
    await expect(prompt).to_be_focused()
    await page.reload()
    await expect(prompt).to_have_value("a big green triangle flying fast to the upper right")


async def test_progress_is_spoken_at_its_milestones(memory_app: MemoryApp, tabs: Tabs) -> None:
    page = await tabs.open(memory_app.url)
    spoken = page.locator("#app > [role=status]")
    video_id = await ask_for(page, PROMPT)
    await expect(spoken).to_have_text("The video is on its way.")
    registry = memory_app.services.memory
    await expect(card(page, video_id).get_by_role("progressbar")).to_be_visible()
    registry.move(video_id, JobState.ENCODING, progress=0.01)
    await expect(spoken).to_have_text(f"“{PROMPT}” has begun")
    registry.move(video_id, JobState.QUEUED)
    registry.move(video_id, JobState.SAMPLING, progress=0.51, step=11)
    await expect(spoken).to_have_text(f"“{PROMPT}” is 50 percent done")
    await card(page, video_id).get_by_role("button", name="Cancel").click()
    await expect(spoken).to_have_text(f"“{PROMPT}” was cancelled")


async def test_motion_is_reduced_where_it_is_not_wished(memory_app: MemoryApp, tabs: Tabs) -> None:
    page = await tabs.open(memory_app.url)
    await page.emulate_media(reduced_motion="reduce")
    video_id = await ask_for(page, PROMPT)
    memory_app.completed(video_id)
    await expect(card(page, video_id).get_by_role("button", name="Download")).to_be_visible()
    await card(page, video_id).hover()
    await expect(card(page, video_id).locator("video")).to_have_count(0)
    moving = "document.getAnimations().filter((a) => a.playState === 'running').length"
    assert await page.evaluate(moving) == 0


async def test_large_seeds_are_told_to_the_last_digit(memory_app: MemoryApp, tabs: Tabs) -> None:
    page = await tabs.open(memory_app.url)
    # As text: a double of JavaScript cannot hold it.
    body, kind = f'{{"prompt": "{PROMPT}", "seed": {2**63 - 1}}}', {"Content-Type": "application/json"}
    answer = await page.request.post(f"{memory_app.url}/v1/videos", data=body, headers=kind)
    video_id = (await answer.json())["id"]
    await page.goto(f"{memory_app.url}/#{video_id}")
    await expect(page.locator("dialog.viewer")).to_contain_text(str(2**63 - 1))
