"""What the service logs, wherever else Ray sends it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


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
