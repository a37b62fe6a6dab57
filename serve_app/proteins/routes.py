"""The routes below /esm2: one sequence, several, health, warm-up."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, Request, Response

from deployments.embedder.messages import DeviceInfo
from deployments.embedder.settings import ProteinSettings
from serve_app.access.tenants import Caller
from serve_app.calls.breaker import BreakerState
from serve_app.calls.devices import Devices
from serve_app.errors import (
    ApiError,
    BodyTooLargeError,
    InvalidRequestError,
    NotAcceptableError,
    OverloadedError,
    RequestUnfinishedError,
    ServiceUnavailableError,
    UnsupportedMediaTypeError,
)
from serve_app.ingress.authentication import AuthenticatedCaller
from serve_app.openapi.errors import WRITE_ERRORS, Responses, error_responses
from serve_app.proteins.answers import FORMATS, JSON, AnswerHead, batch_answer, one_answer, wanted_format
from serve_app.proteins.requests import ProteinRequest, ProteinRequestChecker
from serve_app.proteins.schemas import BatchAnswer, Device, PredictAnswer, ProteinHealth, WarmUp
from serve_app.proteins.service import RETRY_AFTER_S, ProteinService, model_loading_error
from serve_app.requests.body import Form, content_type_of, read_fields, read_text

FASTA_TYPES = ("text/x-fasta", "application/x-fasta", "chemical/seq-aa-fasta", "text/plain")
_ARRAYS = {"schema": {"type": "string", "format": "binary"}}
_ERRORS: tuple[ApiError, ...] = (
    *WRITE_ERRORS,
    InvalidRequestError("Missing required parameter: 'sequence'.", "sequence", "missing_required_parameter"),
    InvalidRequestError("Unknown parameter: \"layer\". Did you mean 'layers'?", "layer", "unknown_parameter"),
    InvalidRequestError("position 3 is '1', which stands for no amino acid.", "sequence", "sequence_invalid"),
    InvalidRequestError("the sequence has 1500 residues and the model reads 1022.", "sequence", "sequence_too_long"),
    InvalidRequestError("The request takes 700000 tokens in all passes, at most 500000.", code="too_much_work"),
    InvalidRequestError("the device's memory does not hold a sequence of 1022 residues.", code="too_large_for_device"),
    InvalidRequestError("The answer would have 90000000 numbers, at most 40000000.", code="answer_too_large"),
    InvalidRequestError('The model "esm1" is not served here; use "esm2".', "model", "model_not_found"),
    NotAcceptableError(f'The Accept is "image/png"; answers are {", ".join(FORMATS)}.'),
    BodyTooLargeError("The body is longer than the 2000000 bytes that are allowed."),
    UnsupportedMediaTypeError('The Content-Type is "text/html"; it must be application/json.'),
    OverloadedError("Too many sequences wait for the protein model.", RETRY_AFTER_S),
    model_loading_error(),
    ServiceUnavailableError("No device of proteins takes anything now.", code="no_device"),
    ServiceUnavailableError("The devices failed at this 3 times.", code="device_failed"),
    RequestUnfinishedError("The request was not done in 600 s."),
)


@dataclass
class ProteinServices:
    """Built once in each HTTP replica."""

    settings: ProteinSettings
    body_timeout_s: float
    checks: ProteinRequestChecker
    devices: Devices[DeviceInfo]
    service: ProteinService
    logical_devices: int


def _services(request: Request) -> ProteinServices:
    services: ProteinServices = request.app.state.services
    return services


def _responses(model: type[Any]) -> Responses:
    responses = error_responses(*_ERRORS)
    responses[504]["headers"] = {}  # of a video it is a Location
    arrays = {name: _ARRAYS for name in FORMATS if name != JSON}
    told = "The answer, in the form that Accept asks for"
    return {200: {"model": model, "description": told, "content": arrays}, **responses}


router = APIRouter(tags=["proteins"])


@router.post("/predict", responses=_responses(PredictAnswer), response_class=Response)
async def predict(request: Request, caller: AuthenticatedCaller) -> Response:
    """Embeddings, contacts, masked residues or scores of one sequence."""
    kind = _wanted_format(request)
    checked = _services(request).checks.predict(await _read_fields(request))
    return await _answer(request, caller, checked, kind, _one)


@router.post("/predict/batch", responses=_responses(BatchAnswer), response_class=Response)
async def predict_batch(request: Request, caller: AuthenticatedCaller) -> Response:
    """The same of 1 to 64 sequences, as JSON or as FASTA; one that is wrong has an error of its own."""
    kind = _wanted_format(request)
    services = _services(request)
    if content_type_of(request) in FASTA_TYPES:
        text = await read_text(request, FASTA_TYPES, services.settings.max_body_bytes, services.body_timeout_s)
        checked = services.checks.batch(Form({**request.query_params, "fasta": text}))
    else:
        checked = services.checks.batch(await _read_fields(request))
    return await _answer(request, caller, checked, kind, batch_answer)


def _wanted_format(request: Request) -> str:
    """Looked at before anything is read or computed. Raises NotAcceptableError."""
    return wanted_format(request.headers.get("accept", ""))


async def _read_fields(request: Request) -> dict[str, object]:
    services = _services(request)
    return await read_fields(request, services.settings.max_body_bytes, services.body_timeout_s)


async def _answer(
    request: Request, caller: Caller, checked: ProteinRequest, kind: str, write: Callable[..., bytes]
) -> Response:
    answered = await _services(request).service.answer(checked, caller.tenant)
    body = await asyncio.to_thread(write, answered.head, answered.results, kind)
    return Response(body, media_type=kind, headers={"Vary": "Accept"})


def _one(head: AnswerHead, results: Any, kind: str) -> bytes:
    (result,) = results
    if result.error is not None:
        raise InvalidRequestError(result.error.message, "sequence", result.error.code)
    return one_answer(head, result, kind)


@router.get("/health", responses={503: {"model": ProteinHealth, "description": "No device answers"}})
async def health(request: Request, response: Response) -> ProteinHealth:
    """Tell whether proteins are answered now: 503 while the model is loaded, and while all devices fail."""
    services = _services(request)
    known = services.devices.known
    usable = [one for one in known if one.breaker is not BreakerState.OPEN and one.info.problem is None]
    if not usable:
        response.status_code = 503
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return ProteinHealth(
        status=_status(len(known), len(usable)),
        model=services.settings.served_name,
        revision=known[0].info.revision if known else None,
        physical_cuda_available=any(one.info.cuda for one in known),
        logical_devices=services.logical_devices,
        devices=[
            Device(
                replica=one.info.replica,
                device=one.info.device,
                breaker=one.breaker,
                failures=one.failures,
                answered=one.answered,
                tries_again_in_s=round(one.tries_again_in_s, 1),
                problem=one.info.problem,
            )
            for one in known
        ],
    )


def _status(known: int, usable: int) -> Literal["loading", "healthy", "degraded", "unhealthy"]:
    if not known:
        return "loading"
    if usable == known:
        return "healthy"
    return "degraded" if usable else "unhealthy"


@router.post("/warmup", responses=error_responses(model_loading_error(), *WRITE_ERRORS))
async def warm_up(request: Request, caller: AuthenticatedCaller) -> WarmUp:
    """Compute a short sequence on every device, so that the next request finds all of them warm."""
    services = _services(request)
    seconds = await services.devices.call_all("warm_up", services.settings.group_timeout_s)
    if not seconds:
        raise model_loading_error()
    return WarmUp(devices=len(seconds), seconds=round(max(seconds), 4))
