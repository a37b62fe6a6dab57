"""Accessibility by axe-core, https://github.com/dequelabs/axe-core (MPL-2.0, in axe/)."""

from functools import cache
from pathlib import Path

from playwright.async_api import Page

SCRIPT = Path(__file__).parent / "axe" / "axe.min.js"
# What is still on its way has colours between two others.
SETTLE = """() => {
    const ending = document.getAnimations().filter((one) => one.effect.getTiming().iterations === 1);
    ending.forEach((one) => one.finish());
}"""
RUN = """async () => {
    const result = await axe.run(document, { resultTypes: ['violations'] });
    return result.violations.flatMap((v) => v.nodes.map((n) => `${v.id}: ${n.target} ${n.failureSummary}`));
}"""


@cache
def _script() -> str:
    return SCRIPT.read_text(encoding="utf-8")


async def violations(page: Page) -> list[str]:
    """What axe-core finds on the page as it is now; every rule that it runs by default, best practices included."""
    await page.evaluate(_script())
    await page.evaluate(SETTLE)
    found: list[str] = await page.evaluate(RUN)
    return found
