"""Requests for videos, checked as the ingress checks them."""

import pytest

from deployments.settings import ModelSettings
from serve_app.errors import InvalidRequestError
from serve_app.requests.schema import request_schema
from serve_app.requests.videos import CheckedRequest, VideoRequestChecker

PLAIN: dict[str, object] = {"prompt": "a red circle", "seed": 1}
"""What each request has, unless it names something else."""


class RequestChecks:
    """Checks requests to a model, or to another one that is named first."""

    def __init__(self, model: ModelSettings) -> None:
        self._model = model

    def checker(self, model: ModelSettings | None = None) -> VideoRequestChecker:
        served = model or self._model
        return VideoRequestChecker(served, request_schema(served, "Request"), None)

    def check(self, model: ModelSettings | None = None, **fields: object) -> CheckedRequest:
        return self.checker(model).check(PLAIN | fields)

    def refused(self, model: ModelSettings | None = None, **fields: object) -> InvalidRequestError:
        """The error with which such a request is refused."""
        with pytest.raises(InvalidRequestError) as caught:
            self.check(model, **fields)
        return caught.value
