"""The log of a server on one machine: every line of all its processes in a file; on the terminal, what people need.

The processes write JSON to their stderr (`deployments.logs.lines`), which Ray brings here. What is no such line is
Ray's, HAProxy's or a library's.
"""

import json
import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, TextIO

from deployments.logs.lines import TERMINAL
from deployments.logs.masking import Mask
from serve_app.local.private_files import OLD_LOGS

MAX_BYTES = 20_000_000
_OF_RAY = re.compile(r"\s*(?:\x1b\[\d+m)?(DEBUG|INFO|WARNING|ERROR|CRITICAL) \d{4}-\d\d-\d\d ")
_RAYLET = "raylet"
_AUTOSCALER = "autoscaler"


class Phase(Enum):
    """Of the server. What Ray says of a start or a stop is of no use to people."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Line:
    """One of the log."""

    fields: Mapping[str, Any]  # as in JSON, with levelname and message
    for_people: bool

    def as_json(self) -> str:
        return json.dumps(self.fields, ensure_ascii=False)

    def as_text(self) -> str:
        """For the file: which process said when what."""
        of = self.fields
        who = " ".join(str(of[name]) for name in ("stage", "replica", "process") if of.get(name))
        return "\n".join(filter(None, (f"{of['levelname']} {of['asctime']} {who} -- {of['message']}", self._trace)))

    def on_terminal(self) -> str:
        """Only what is said, and how bad it is."""
        of = self.fields
        bad = "" if of.get("notice") else f"{of['levelname']} {of['stage']}: "
        return _printable("\n".join(filter(None, (f"{bad}{of['message']}", self._trace))))

    @property
    def _trace(self) -> str:
        return str(self.fields.get("exc_text") or "")


class ServerLog:
    """Takes lines from Ray and from this process. Thread-safe.

    Args:
        path: of the file; when it is full, older ones have numbers behind their names.
        mask: hides secrets, also in what is not of ours.
        as_json: how lines are written, but on a terminal.
        screen: this process' stderr. If it is no terminal, all lines go there, too: somebody collects them.
    """

    def __init__(self, path: Path, mask: Mask, as_json: bool, screen: TextIO) -> None:
        self.phase = Phase.STARTING
        self._file = _File(path, maxBytes=MAX_BYTES, backupCount=OLD_LOGS, encoding="utf-8", delay=True)
        self._file.setFormatter(logging.Formatter("%(message)s"))
        self._mask = mask
        self._as_json = as_json
        self._screen = screen
        self._is_terminal = screen.isatty()
        self._lock = threading.Lock()

    def close(self) -> None:
        self._file.close()

    def take(self, batch: Mapping[str, Any]) -> None:
        """Lines of another process. batch: as Ray's log monitor has it, with `lines`, `pid`, `actor_name`."""
        if batch.get("pid") == _AUTOSCALER:  # the state of the one node, every five seconds
            return
        for text in batch["lines"]:
            self._write(self._parsed(self._mask(str(text)), batch))

    def take_record(self, record: logging.LogRecord) -> None:
        """A line of this process."""
        fields = {
            "asctime": _now(record.created),
            "levelname": record.levelname,
            "message": self._mask(record.getMessage()),
            "process": record.process,
            "stage": "server",
        }
        if record.exc_info and record.exc_info[0] is not None:
            fields["exc_text"] = self._mask(logging.Formatter().formatException(record.exc_info))
        is_ours = record.name.startswith("serve_app") and record.levelno >= logging.WARNING
        is_bad = record.levelno >= logging.ERROR and self.phase is Phase.RUNNING
        self._write(Line(fields, is_ours or is_bad))

    def _parsed(self, text: str, batch: Mapping[str, Any]) -> Line:
        if text.startswith("{"):
            with suppress(ValueError):
                fields = json.loads(text)
                if isinstance(fields, dict) and {"asctime", "levelname", "message", "stage", TERMINAL} <= fields.keys():
                    return Line(fields, bool(fields.pop(TERMINAL)))
        return self._foreign(text, batch)

    def _foreign(self, text: str, batch: Mapping[str, Any]) -> Line:
        found = _OF_RAY.match(text)
        level = found[1] if found else "INFO"
        pid = batch.get("pid")
        # Ray tells this way, and not in a log, that a process has died or memory is short.
        is_event = pid == _RAYLET and not batch.get("is_err")
        source = str(batch.get("actor_name") or batch.get("task_name") or ("ray" if pid == _RAYLET else "worker"))
        fields = {
            "asctime": _now(time.time()),
            "levelname": "WARNING" if is_event else level,
            "message": text.rstrip("\n"),
            "process": int(str(pid)) if str(pid).isdigit() else pid,
            "stage": source,
        }
        return Line(fields, self.phase is Phase.RUNNING and (is_event or level in ("ERROR", "CRITICAL")))

    def _write(self, line: Line) -> None:
        text = line.as_json() if self._as_json else line.as_text()
        with self._lock:
            self._file.emit(logging.makeLogRecord({"msg": text}))
            # The terminal may be gone, with who closed its window.
            with suppress(OSError, ValueError):
                if not self._is_terminal:
                    self._screen.write(text + "\n")
                elif line.for_people:
                    self._screen.write(line.on_terminal() + "\n")
                self._screen.flush()


class _File(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk costs its lines, and not one of complaint for each."""


class _Records(logging.Handler):
    def __init__(self, log: ServerLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.take_record(record)


@contextmanager
def own_records_to(log: ServerLog, loggers: tuple[str, ...] = ("", "ray", "ray.serve")) -> Iterator[None]:
    """Within this context the loggers of this process write to the log and nowhere else."""
    handler = _Records(log)
    found = [logging.getLogger(name) for name in loggers]
    before = [list(logger.handlers) for logger in found]
    for logger in found:
        logger.handlers[:] = [handler]
    try:
        yield
    finally:
        for logger, handlers in zip(found, before, strict=True):
            logger.handlers[:] = handlers


def _now(unix_time: float) -> str:
    """As Python's own log has it."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(unix_time))},{int(unix_time % 1 * 1000):03d}"


def _printable(text: str) -> str:
    """Without control characters, by which what others wrote could steer the terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else " " for char in text)
