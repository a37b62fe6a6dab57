"""The lines of a process' log: which fields they have, how they are written, and that they hold no secret.

It works on the records themselves, so it holds for every logger and every handler: also Serve's files, and libraries
that tell of a request that they repeat.
"""

import json
import logging
import logging.handlers
import os
import re
import sys
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from deployments.logs.ids import current_ids
from deployments.logs.masking import Mask
from deployments.settings import LogSettings

Factory = Callable[..., logging.LogRecord]

LOGGER = "ray.serve"
"""Ours is Serve's: it has set up files for it."""

STDERR_VARIABLE = "MOCHI_SERVE_STDERR"
"""`json`: what a process writes to its stderr is JSON, whatever the settings say. Set by a server that reads it."""

NOTICE = {"notice": True}
"""`extra` of a line that people at the terminal should see, though it is no warning."""

TERMINAL = "terminal"
"""The field of a line to a server that reads it: whether it is for the terminal."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_TIMESTAMP = "_ray_timestamp_ns"  # of Ray's own record factory
_RAYS = re.compile(r"[/\\]site-packages[/\\]ray[/\\]")


class LineFactory:
    """Makes the records of a process: each has the ids of its context, and no secret.

    Args:
        before: makes the plain record.
        fields: of all lines of the process.
        mask: hides secrets.
        name_job: the job's id stands before the message, for lines of text.
    """

    def __init__(self, before: Factory, fields: dict[str, str], mask: Mask, name_job: bool) -> None:
        self.before = before
        self.fields = fields
        self._mask = mask
        self._name_job = name_job

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self.before(*args, **kwargs)
        ids = current_ids().fields()
        record.__dict__.update(self.fields | ids)
        try:
            message = self._mask(record.getMessage())
        except (TypeError, ValueError):  # arguments that do not fit: the handler complains of them
            return record
        job = ids.get("job")
        record.msg = f"[{job}] {message}" if job and self._name_job else message
        record.args = ()
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = self._mask(_formatted(record.exc_info))
        if record.stack_info:
            record.stack_info = self._mask(record.stack_info)
        return record


def _formatted(
    error: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
) -> str:
    return logging.Formatter().formatException(error)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the names that Ray's own has.

    Args:
        for_reader: also whether the line is for the terminal.
    """

    def __init__(self, for_reader: bool = False) -> None:
        super().__init__()
        self.replica: str | None = None  # of this process, if it is one
        self._for_reader = for_reader

    def format(self, record: logging.LogRecord) -> str:
        more = {name: value for name, value in vars(record).items() if name not in _STANDARD and name[0] != "_"}
        line = {
            "asctime": self.formatTime(record),
            "levelname": record.levelname,
            "message": record.getMessage(),
            "filename": record.filename,
            "lineno": record.lineno,
            "process": record.process,
            **more,
        }
        if self.replica is not None:
            line["replica"] = self.replica
        if _TIMESTAMP in vars(record):
            line["timestamp_ns"] = vars(record)[_TIMESTAMP]
        if record.exc_info and record.exc_info[0] is not None:
            line["exc_text"] = record.exc_text or _formatted(record.exc_info)
        if self._for_reader:
            line[TERMINAL] = is_for_people(record)
        return json.dumps(line, ensure_ascii=False, default=str)


def is_for_people(record: logging.LogRecord) -> bool:
    """Whether a line goes to the terminal: notices, warnings of ours, and whatever went wrong."""
    if record.levelno >= logging.ERROR or getattr(record, "notice", False):
        return True
    return record.levelno >= logging.WARNING and record.name == LOGGER and not _RAYS.search(record.pathname)


def begin_log(settings: LogSettings, stage: str, secrets: Iterable[str] = ()) -> None:
    """Have this process write its lines as the settings say. To be called before all else; again, it changes them.

    Args:
        stage: what the process is: `ingress`, `registry`, `encoder`, `sampler`, `decoder`, ...
        secrets: what must be in no line, beside what looks like a secret.
    """
    factory = logging.getLogRecordFactory()
    before = factory.before if isinstance(factory, LineFactory) else factory
    logging.setLogRecordFactory(LineFactory(before, {"stage": stage}, Mask(secrets), settings.format == "text"))
    is_read = os.environ.get(STDERR_VARIABLE) == "json"
    if is_read or settings.format == "json":
        _speak_json(JsonFormatter(for_reader=is_read))


def name_replica(replica: str) -> None:
    """Put the replica's name into all lines of JSON of this process from here on."""
    # Not into the records: Serve does it with some of its own, and Python takes no field twice.
    for handler in [*logging.getLogger(LOGGER).handlers, *logging.getLogger().handlers]:
        if isinstance(handler.formatter, JsonFormatter):
            handler.formatter.replica = replica


def _speak_json(formatter: JsonFormatter) -> None:
    """To stderr. Serve's own file of a replica is JSON by its LoggingConfig, and its filters give request, route and
    deployment, here too.
    """
    logger = logging.getLogger(LOGGER)
    files = [handler for handler in logger.handlers if isinstance(handler, logging.handlers.MemoryHandler)]
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(formatter)
            for one in (one for file in files for one in file.filters):
                handler.addFilter(one)
    root = logging.getLogger()
    if not root.handlers:  # libraries, and asyncio of tasks that failed
        handler = logging.StreamHandler(sys.stderr)
        handler.setLevel(logging.WARNING)
        root.addHandler(handler)
    for handler in root.handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(formatter)
