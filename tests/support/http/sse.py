"""Server-sent events as a browser reads them, and a stream of them without HTTP in between."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """name: its field `event`; a comment has the name "ping", and no data."""

    name: str
    id: str = ""
    data: Any = None


def read_events(text: str) -> list[Event]:
    """The events of a whole answer. HTML standard, 9.2.6."""
    return [read_event(block) for block in text.split("\n\n") if block]


def read_event(block: str) -> Event:
    lines = [line.partition(": ") for line in block.strip().split("\n")]
    fields = {name: value for name, _, value in lines}
    if set(fields) == {""}:
        return Event(fields[""])
    assert set(fields) == {"event", "data", "id"}
    return Event(fields["event"], fields["id"], json.loads(fields["data"]))


async def next_event(stream: AsyncIterator[bytes]) -> Event:
    return read_event((await anext(stream)).decode())
