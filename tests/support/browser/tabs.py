"""Tabs of the page, and what their users do in them."""

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Error, Locator, Page, Request, expect

DESKTOP = (1280, 900)
PHONE = (390, 844)
WAIT_MS = 30_000

expect.set_options(timeout=WAIT_MS)


@dataclass
class Tabs:
    """Opens tabs and collects what is wrong with them. expected: patterns of errors that a test causes itself."""

    browser: Browser
    complaints: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    _contexts: list[BrowserContext] = field(default_factory=list)

    async def user(self, size: tuple[int, int] = DESKTOP, dark: bool = False) -> BrowserContext:
        """A browser of somebody's own: nothing is kept in it yet."""
        context = await self.browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            accept_downloads=True,
        )
        context.set_default_timeout(WAIT_MS)
        self._contexts.append(context)
        return context

    async def open(self, url: str, user: BrowserContext | None = None, size: tuple[int, int] = DESKTOP) -> Page:
        """A tab with the page, and in it the gallery."""
        page = await self.blank(url, user, size)
        await page.goto(url)
        await expect(page.get_by_role("heading", name="Videos")).to_be_attached()
        return page

    async def blank(self, url: str, user: BrowserContext | None = None, size: tuple[int, int] = DESKTOP) -> Page:
        """A tab that is watched and shows nothing yet."""
        page = await (user or await self.user(size)).new_page()
        host = urlsplit(url).netloc
        page.on("console", self._heard)
        page.on("pageerror", self._broke)
        page.on("request", lambda request: self._asked(request, host))
        return page

    async def close(self) -> None:
        for context in self._contexts:
            await context.close()

    def _heard(self, message: ConsoleMessage) -> None:
        # A policy that was violated is told here too.
        if message.type in ("error", "warning"):
            self._complain(f"{message.type}: {message.text} {message.location.get('url', '')}")

    def _broke(self, error: Error) -> None:
        self._complain(f"exception: {error}")

    def _asked(self, request: Request, host: str) -> None:
        parts = urlsplit(request.url)
        if parts.scheme != "blob" and parts.netloc != host:
            self._complain(f"asked another host: {request.url}")

    def _complain(self, text: str) -> None:
        if not any(re.search(pattern, text) for pattern in self.expected):
            self.complaints.append(text)


def card(page: Page, video_id: str) -> Locator:
    """The video in the gallery."""
    return page.locator(".card", has=page.locator(f'a[href="#{video_id}"]'))


def viewer(page: Page) -> Locator:
    """The video that is open."""
    return page.locator("dialog.viewer")


async def ask_for(page: Page, prompt: str) -> str:
    """Write the prompt and send it; returns the id of the video that is made."""
    await page.get_by_label("Prompt", exact=True).fill(prompt)
    return await made_by(page, page.get_by_role("button", name="Make the video"))


async def made_by(page: Page, button: Locator) -> str:
    """Press the button; returns the id of the video that it makes."""
    async with page.expect_response(lambda r: r.request.method == "POST" and r.ok) as answer:
        await button.click()
    video_id: str = (await (await answer.value).json())["id"]
    return video_id


async def percent(progress: Locator) -> int:
    """How far a progress bar is."""
    return int(await progress.get_attribute("aria-valuenow") or 0)


async def scrolls_sideways(page: Page) -> bool:
    wider: bool = await page.evaluate("document.documentElement.scrollWidth > innerWidth")
    return wider
