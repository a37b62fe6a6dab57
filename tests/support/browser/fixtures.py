"""One browser for the session; every test gets tabs of its own and ends with a look at what they complained about."""

import os
import shutil
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from tests.support.browser.tabs import Tabs
from tests.support.http.memory_app import MemoryApp, running_app

# The shell has the same engine without windows, for less than half of the processor's time.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed, so the page is not tried in a browser")
    # Chromium's sandbox does not start for root.
    args = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def tabs(browser: Browser) -> AsyncIterator[Tabs]:
    """Opens tabs. In the end none may have written an error to its console, or asked another host for anything."""
    opened = Tabs(browser)
    yield opened
    await opened.close()
    assert opened.complaints == [], opened.complaints


@pytest_asyncio.fixture(loop_scope="session")
async def memory_app() -> AsyncIterator[MemoryApp]:
    """The HTTP side alone over memory, with no model behind it."""
    async with running_app() as app:
        yield app
