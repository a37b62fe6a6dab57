"""From a checked request to its results: queries in groups, each on the device that is least loaded, in fair turns."""

import asyncio
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deployments.embedder.messages import AnsweredGroup, DeviceInfo
from deployments.embedder.settings import CPU_PASS_TOKENS, ProteinSettings
from deployments.errors import PermanentError
from deployments.metrics import names
from deployments.metrics.recorder import RECORDER
from deployments.proteins.alphabet import SequenceError
from deployments.proteins.batches import group_by_tokens, in_order
from deployments.proteins.queries import Answer, Query
from serve_app.calls.devices import Devices
from serve_app.calls.fair_line import FairLine, LineFullError
from serve_app.errors import InvalidRequestError, OverloadedError, RequestUnfinishedError, ServiceUnavailableError
from serve_app.proteins.answers import AnswerHead
from serve_app.proteins.requests import Options, ProteinRequest
from serve_app.proteins.work import SequenceResult, SequenceWork, plan_work

APPLICATION = "proteins"
EMBEDDER = "ProteinEmbedder"
"""The deployment of the devices."""
PASSES_AHEAD = 2
"""A device is sent so many passes at once: it computes one while the next is on its way."""
SMALLEST_GROUP = 1_024
"""In tokens: fewer do not fill a device."""
RETRY_AFTER_S = 5


@dataclass(frozen=True, slots=True)
class ProteinAnswer:
    """What a request comes to."""

    head: AnswerHead
    results: tuple[SequenceResult, ...]  # in the order of the request


def model_loading_error() -> ServiceUnavailableError:
    return ServiceUnavailableError(
        "The protein model is still being loaded; GET /esm2/health tells when it answers.",
        code="model_loading",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )


class ProteinService:
    """Of one replica that asks devices.

    Args:
        devices: that answer groups of queries.
        passes_ahead: that each device is sent at once.
    """

    def __init__(
        self, settings: ProteinSettings, devices: Devices[DeviceInfo], passes_ahead: int = PASSES_AHEAD
    ) -> None:
        self._settings = settings
        self._devices = devices
        self._passes_ahead = passes_ahead
        self._line = FairLine(settings.max_waiting_tokens)

    @property
    def waiting_tokens(self) -> int:
        """Of the requests that wait for a device."""
        return self._line.waiting

    async def answer(self, request: ProteinRequest, tenant: str) -> ProteinAnswer:
        """Compute everything that was asked; what is wrong with a sequence is in its own result.

        Raises:
            InvalidRequestError: the model has no such layer, or not what is asked for; it is too much for a request.
            OverloadedError: too much waits already.
            ServiceUnavailableError: no device answers.
            RequestUnfinishedError: it was not done in time.
        """
        info = self.any_device()
        works, refused = self._plan(request, info)
        self._check_size(works.values(), request.options, info)
        cost = sum(work.tokens for work in works.values())
        self._check_cost(cost, tenant)
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                return await self._answer(info, works, refused, tenant)
        except TimeoutError:
            raise RequestUnfinishedError(
                f"The request was not done in {self._settings.request_timeout_s:g} s; send fewer or shorter sequences."
            ) from None

    async def answer_part(self, request: ProteinRequest, tenant: str) -> ProteinAnswer:
        """As `answer`, of a part of a file: it has been accepted, so it waits for as long as it takes.

        Raises:
            InvalidRequestError, ServiceUnavailableError: as `answer` does.
        """
        info = self.any_device()
        works, refused = self._plan(request, info)
        return await self._answer(info, works, refused, tenant)

    async def _answer(
        self, info: DeviceInfo, works: dict[int, SequenceWork], refused: dict[int, SequenceResult], tenant: str
    ) -> ProteinAnswer:
        queries = [query for work in works.values() for query in work.plan.queries]
        answers, device_s = await self._compute(queries, tenant)
        results = dict(refused)
        for index, work in works.items():
            count = len(work.plan.queries)
            results[index], answers = work.finish(answers[:count]), answers[count:]
        RECORDER.count(names.PROTEIN_SEQUENCES, "answered", by=len(works))
        RECORDER.count(names.PROTEIN_SEQUENCES, "refused", by=len(refused))
        ordered = tuple(results[index] for index in sorted(results))
        return ProteinAnswer(AnswerHead(self._settings.served_name, info, device_s), ordered)

    def head(self, device_s: float) -> AnswerHead:
        """Of an answer that took so many seconds of devices. Raises as `any_device` does."""
        return AnswerHead(self._settings.served_name, self.any_device(), device_s)

    def any_device(self) -> DeviceInfo:
        """One of those that are there, which all have the same model. Raises ServiceUnavailableError: there is none."""
        known = self._devices.known
        if not known:
            raise model_loading_error()
        return known[0].info

    def _plan(
        self, request: ProteinRequest, info: DeviceInfo
    ) -> tuple[dict[int, SequenceWork], dict[int, SequenceResult]]:
        """What can be computed, and what is refused; by the index of the sequence."""
        check_options(request.options, info)
        works, refused = _plan(request)
        for work in works.values():
            _check_scores(work, info)
        return works, refused

    def _check_size(self, works: Iterable[SequenceWork], options: Options, info: DeviceInfo) -> None:
        numbers = sum(work.numbers(options, info.hidden_size) for work in works)
        if numbers > self._settings.max_answer_numbers:
            raise InvalidRequestError(
                f"The answer would have {numbers} numbers, at most {self._settings.max_answer_numbers} go into one; "
                "ask for fewer layers, for a pooling other than per_residue, or for fewer sequences at a time.",
                code="answer_too_large",
            )

    def _check_cost(self, cost: int, tenant: str) -> None:
        most = self._settings.max_request_tokens
        if cost > most:
            raise InvalidRequestError(
                f"The request takes {cost} tokens in all passes of the model, at most {most} go into one; send fewer "
                "sequences, or fewer scores that mask residue by residue (scoring wild_type_marginals takes one pass).",
                code="too_much_work",
            )
        try:
            self._line.check(tenant, cost)
        except LineFullError:
            raise OverloadedError(
                "Too many sequences wait for the protein model; send the request again in a few seconds.", RETRY_AFTER_S
            ) from None

    async def _compute(self, queries: Sequence[Query], tenant: str) -> tuple[list[Answer], float]:
        """The answers in the order of the queries, and seconds of devices."""
        counts = [len(query.tokens) for query in queries]
        groups = group_by_tokens(counts, self._group_tokens(sum(counts)))
        try:
            async with asyncio.TaskGroup() as tasks:
                asked = [
                    tasks.create_task(
                        self._ask(tuple(queries[i] for i in group), sum(counts[i] for i in group), tenant)
                    )
                    for group in groups
                ]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        answered = [task.result() for task in asked]
        return in_order(groups, [one.answers for one in answered]), sum(one.device_s for one in answered)

    def _group_tokens(self, total: int) -> int:
        """As large as a pass, and so small that all devices have work."""
        known = self._devices.known
        most = min((device.info.pass_tokens for device in known), default=CPU_PASS_TOKENS)
        return min(most, max(SMALLEST_GROUP, math.ceil(total / max(1, len(known)))))

    async def _ask(self, group: tuple[Query, ...], cost: int, tenant: str) -> AnsweredGroup:
        self._line.set_room(self._passes_ahead * sum(device.info.pass_tokens for device in self._devices.known))
        async with self._line.turn(tenant, cost):
            RECORDER.set(names.CALLS_WAITING, self._line.waiting, APPLICATION)
            try:
                answered: AnsweredGroup = await self._devices.call(cost, group)
            except PermanentError as error:
                raise InvalidRequestError(error.message, code=error.code) from error
        RECORDER.set(names.CALLS_WAITING, self._line.waiting, APPLICATION)
        return answered


def _plan(request: ProteinRequest) -> tuple[dict[int, SequenceWork], dict[int, SequenceResult]]:
    """What can be computed, and what is refused; by the index of the sequence."""
    works: dict[int, SequenceWork] = {}
    refused: dict[int, SequenceResult] = {}
    for index, asked in enumerate(request.sequences):
        try:
            works[index] = plan_work(asked, request.options)
        except SequenceError as error:
            refused[index] = SequenceResult(asked.id, error=error)
    return works, refused


def check_options(options: Options, info: DeviceInfo) -> None:
    """Raises InvalidRequestError: the model has no such layer, or not what is asked for."""
    for layer in options.layers:
        if not -info.num_layers - 1 <= layer <= info.num_layers:
            raise InvalidRequestError(
                f"Invalid 'layers': the model has no layer {layer}; it has 0 (the embedding) to {info.num_layers}, or "
                f"{-info.num_layers - 1} to -1 from the end.",
                "layers",
            )
    if options.contacts and not info.predicts_contacts:
        raise InvalidRequestError("This model has no contact head.", "contacts", "model_without_contacts")


def _check_scores(work: SequenceWork, info: DeviceInfo) -> None:
    if not info.predicts_tokens and any(query.logits_at for query in work.plan.queries):
        raise InvalidRequestError(
            "This model has no language-model head: it makes embeddings, and no logits or scores.",
            code="model_without_lm_head",
        )
