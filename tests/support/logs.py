"""What the service logs, wherever else Ray sends it."""

import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal
from unittest import mock

import pytest

from deployments.logs.lines import LOGGER, STDERR_VARIABLE, begin_log
from deployments.settings import LogSettings


@contextmanager
def serve_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Catch what goes to the logger of the service, from INFO on, and nothing else."""
    logger = logging.getLogger("ray.serve")
    level = logger.level
    propagate = logger.propagate
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(caplog.handler)
        logger.setLevel(level)
        logger.propagate = propagate


@contextmanager
def begun_log(
    stage: str, format: Literal["text", "json"] = "json", secrets: Sequence[str] = ()
) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Have this process log as a replica does; gives the lines that it has written to stderr, JSON, since the start."""
    logger, factory = logging.getLogger(LOGGER), logging.getLogRecordFactory()
    before = (list(logger.handlers), logger.level, logger.propagate)
    stderr = io.StringIO()
    logger.handlers[:] = [logging.StreamHandler(stderr)]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    with mock.patch.dict(os.environ, {STDERR_VARIABLE: "json"}):
        begin_log(LogSettings(format=format), stage, secrets)
    try:
        yield lambda: [json.loads(line) for line in stderr.getvalue().splitlines()]
    finally:
        logging.setLogRecordFactory(factory)
        logger.handlers[:], logger.level, logger.propagate = before
