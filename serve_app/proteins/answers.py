"""Results as clients get them: JSON, NumPy's npz, or safetensors."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from safetensors.numpy import save

from deployments.embedder.messages import DeviceInfo
from deployments.proteins.alphabet import AMINO_ACIDS, VOCABULARY
from deployments.proteins.queries import Floats
from serve_app.errors import InvalidRequestError, NotAcceptableError, quote
from serve_app.openapi.views import to_error_body
from serve_app.proteins.work import SequenceResult

JSON = "application/json"
NPZ = "application/x-npz"
SAFETENSORS = "application/x-safetensors"
FORMATS = (JSON, NPZ, SAFETENSORS)
MEDIA_TYPES = {"npz": NPZ, "safetensors": SAFETENSORS}
MOST_LIKELY = 5

Put = Callable[[str, Floats], Any]
"""Takes an array and its name; gives what stands for it in the answer."""


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What an answer says beside the results."""

    model: str
    info: DeviceInfo  # of a device; all have the same model
    device_s: float  # seconds of devices that the answer took

    def view(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "revision": self.info.revision,
            "num_layers": self.info.num_layers,
            "hidden_size": self.info.hidden_size,
            "device_seconds": round(self.device_s, 6),
        }


def wanted_format(accept: str) -> str:
    """One of FORMATS, by the header Accept.

    Raises:
        NotAcceptableError: it allows none of them.
    """
    ranges = [one.split(";") for one in (accept or "*/*").split(",")]
    by_quality = sorted(ranges, key=lambda parts: -_quality(parts[1:]))
    for kind, *parameters in by_quality:
        kind = kind.strip().lower()
        found = [name for name in FORMATS if kind in (name, "application/*", "*/*")]
        if found and _quality(parameters) > 0:
            return found[0]
    raise NotAcceptableError(f"The Accept is {quote(accept)}; answers are {', '.join(FORMATS)}.")


def _quality(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def one_answer(head: AnswerHead, result: SequenceResult, kind: str) -> bytes:
    """The answer about one sequence. kind: one of FORMATS."""
    return _written(kind, lambda put: head.view() | _view(head, 0, result, put))


def batch_answer(head: AnswerHead, results: Sequence[SequenceResult], kind: str, first: int = 0) -> bytes:
    """The answer about several, in their order. first: the index of the first one."""
    return _written(
        kind,
        lambda put: head.view() | {"results": [_view(head, i, result, put) for i, result in enumerate(results, first)]},
    )


def _written(kind: str, view: Callable[[Put], dict[str, Any]]) -> bytes:
    if kind == JSON:
        return orjson.dumps(view(lambda name, array: np.ascontiguousarray(array)), option=orjson.OPT_SERIALIZE_NUMPY)
    arrays: dict[str, NDArray[Any]] = {}

    def put(name: str, array: Floats) -> dict[str, str]:
        arrays[name] = np.ascontiguousarray(array)
        return {"array": name}

    told = json.dumps(view(put))
    if kind == SAFETENSORS:
        return save(arrays, metadata={"answer": told})
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, answer=np.array(told), **arrays)
    return file.getvalue()


def _view(head: AnswerHead, index: int, result: SequenceResult, put: Put) -> dict[str, Any]:
    if result.error is not None:
        error = InvalidRequestError(result.error.message, "sequence", result.error.code)
        return {"index": index, "id": result.id, "error": to_error_body(error).model_dump()}
    answer = result.answer
    embeddings = {} if answer is None else answer.embeddings
    contacts = None if answer is None else answer.contacts
    logits = None if answer is None else answer.logits
    return {
        "index": index,
        "id": result.id,
        "length": result.length,
        "notes": list(result.notes),
        "embeddings": [
            {
                "layer": layer % (head.info.num_layers + 1),
                "pooling": pooling,
                "values": put(f"{index}.embeddings.{layer % (head.info.num_layers + 1)}.{pooling}", values),
            }
            for (layer, pooling), values in embeddings.items()
        ],
        "contacts": None if contacts is None else put(f"{index}.contacts", contacts),
        "masked": None if logits is None else _masked(index, result.masked, logits, put),
        "pseudo_perplexity": result.pseudo_perplexity,
        "mutations": [{"mutation": name, "score": score} for name, score in result.mutations] or None,
        "substitutions": None
        if result.substitutions is None
        else {"amino_acids": AMINO_ACIDS, "scores": put(f"{index}.substitutions", result.substitutions)},
    }


def _masked(index: int, positions: Sequence[int], logits: Floats, put: Put) -> dict[str, Any]:
    return {
        "positions": [position + 1 for position in positions],
        "vocabulary": list(VOCABULARY),
        "logits": put(f"{index}.logits", logits),
        "most_likely": [_most_likely(row) for row in logits],
    }


def _most_likely(logits: Floats) -> list[dict[str, Any]]:
    """The likeliest tokens at a position, the first one first."""
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = shifted / shifted.sum()
    return [
        {"residue": VOCABULARY[token], "probability": round(float(probabilities[token]), 6)}
        for token in np.argsort(-probabilities, kind="stable")[:MOST_LIKELY]
    ]
