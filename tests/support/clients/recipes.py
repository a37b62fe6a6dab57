"""The recipes of docs/clients.md as they stand there, but for the addresses: a test's server has a port of its own."""

import re
from dataclasses import dataclass

from tests.support import ROOT

PAGE = ROOT / "docs" / "clients.md"
SERVER_URL = "http://127.0.0.1:8000"
PROXY_URL = "http://127.0.0.1:4000"
_HEADING = re.compile(r"^#+ (.+)$")


@dataclass(frozen=True)
class Recipe:
    """A block of code of the page.

    Attributes:
        section: the heading above it.
        language: behind its opening fence.
    """

    section: str
    language: str
    text: str
    line: int

    def at(self, server: str, proxy: str) -> str:
        """The text for other addresses."""
        port = proxy.rpartition(":")[2]
        text = self.text.replace(SERVER_URL, server).replace(PROXY_URL, proxy)
        return text.replace("--port 4000", f"--port {port}")


def recipes() -> list[Recipe]:
    """All blocks of code of the page, in its order."""
    found: list[Recipe] = []
    section, language, start = "", "", 0
    lines: list[str] = []
    inside = False
    for number, line in enumerate(PAGE.read_text(encoding="utf-8").splitlines(), 1):
        if inside and line == "```":
            found.append(Recipe(section, language, "\n".join(lines) + "\n", start))
            inside = False
        elif inside:
            lines.append(line)
        elif line.startswith("```"):
            inside, language, lines, start = True, line[3:], [], number
        elif heading := _HEADING.match(line):
            section = heading[1]
    return found
