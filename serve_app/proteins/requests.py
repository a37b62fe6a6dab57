"""What a request for proteins may say, and what it comes to: the sequences, and what is wanted of each."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from deployments.proteins.alphabet import MAX_RESIDUES
from deployments.proteins.queries import POOLINGS, Pooling
from deployments.proteins.scores import Method
from deployments.proteins.windows import OVERLAP
from serve_app.errors import InvalidRequestError, conflict
from serve_app.jobs import TIERS, Tier
from serve_app.proteins.fasta import read_fasta
from serve_app.requests.fields import check_fields

MAX_BATCH = 64
MAX_LAYERS = 64
MAX_MUTATIONS = 20_000
MAX_TEXT = 100_000
MAX_ID = 500
FileFormat = Literal["safetensors", "npz"]
FILE_FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)
SCORING: tuple[Method, ...] = ("masked_marginals", "wild_type_marginals")

_INTEGER = re.compile("-?[0-9]{1,4}")
_MUTATIONS_SENTENCE = (
    f"a list of up to {MAX_MUTATIONS} texts such as 'A24G', several mutations joined with ':' or '/'; positions count "
    "from 1"
)


def _as_list(value: Any) -> Any:
    """One word stands for a list of it, and a text with commas for its parts, as in a URL."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _numbers(value: Any) -> Any:
    value = _as_list(value)
    if isinstance(value, list):
        return [int(one) if isinstance(one, str) and _INTEGER.fullmatch(one) else one for one in value]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else value


class Options(BaseModel):
    """What is wanted of a sequence. The description of a field ends the sentence "It must be ..." in errors."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    model: str | None = Field(None, description="the name of the model that is served")
    layers: Annotated[list[int], BeforeValidator(_numbers)] = Field(
        [-1],
        min_length=1,
        max_length=MAX_LAYERS,
        description="a list of hidden states: 0 is the embedding, the last or -1 the model's output",
    )
    pooling: Annotated[list[Pooling], BeforeValidator(_as_list)] = Field(
        ["mean"],
        min_length=1,
        max_length=len(POOLINGS),
        description=f"one or a list of {', '.join(POOLINGS)}: how a layer becomes an embedding",
    )
    embeddings: bool | None = Field(
        None, description="true or false; default: true, unless scores or contacts alone are asked for"
    )
    contacts: bool = Field(False, description="true or false: the matrix of contact probabilities")
    logits: bool | None = Field(
        None, description="true or false: of the residues that are <mask>; default: where there are such"
    )
    pseudo_perplexity: bool = Field(False, description="true or false; it takes a pass for each residue")
    mutations: Annotated[list[str], BeforeValidator(_as_list)] | None = Field(
        None, min_length=1, max_length=MAX_MUTATIONS, description=_MUTATIONS_SENTENCE
    )
    substitutions: bool = Field(False, description="true or false: the score of each substitution, residues x 20")
    scoring: Method = Field("masked_marginals", description=f"{' or '.join(SCORING)}, of mutations and substitutions")
    windows: bool = Field(
        False, description=f"true or false: more than {MAX_RESIDUES} residues are read in windows that overlap"
    )
    overlap: int = Field(
        OVERLAP, ge=0, lt=MAX_RESIDUES, description=f"an integer from 0 to {MAX_RESIDUES - 1}, residues of two windows"
    )
    remove_gaps: bool = Field(False, description="true or false: '-' and '.' of an alignment are removed")

    @property
    def wants_embeddings(self) -> bool:
        if self.embeddings is not None:
            return self.embeddings
        asked = self.contacts or self.logits or self.pseudo_perplexity or self.mutations or self.substitutions
        return not asked or bool(self.model_fields_set & {"layers", "pooling"})


class PredictRequest(Options):
    """One sequence."""

    sequence: str = Field(min_length=1, max_length=MAX_TEXT, description="a protein sequence as text")
    id: str | None = Field(None, max_length=MAX_ID, description="a text that comes back with the answer")


class SequenceItem(BaseModel):
    """A sequence of a batch, with its name."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    sequence: str = Field(max_length=MAX_TEXT)
    id: str | None = Field(None, max_length=MAX_ID)
    mutations: list[str] | None = Field(None, min_length=1, max_length=MAX_MUTATIONS)


class BatchRequest(Options):
    """Several sequences."""

    sequences: list[str | SequenceItem] | None = Field(
        None,
        min_length=1,
        description=f"a list of 1 to {MAX_BATCH} texts, or objects with sequence, id and mutations; not with fasta",
    )
    fasta: str | None = Field(
        None, min_length=1, description=f"FASTA with 1 to {MAX_BATCH} sequences; not with sequences"
    )


class FileRequest(Options):
    """What is wanted of each sequence of a file, and of the job that answers it."""

    format: FileFormat = Field("safetensors", description=f"{' or '.join(FILE_FORMATS)}, of the answers")
    priority: Annotated[Tier, Field(strict=False)] | None = Field(
        None,
        description=f"{', '.join(TIERS[:-1])} or {TIERS[-1]}; default: {Tier.BATCH}",
    )
    webhook_url: str | None = Field(
        None,
        max_length=2000,
        description="an http or https URL with a public address; it is sent a signed event when the job is completed, "
        "failed or cancelled",
    )

    def asked(self) -> dict[str, Any]:
        """What is wanted of each sequence, as JSON."""
        return self.model_dump(
            exclude_unset=True, exclude={"model", "format", "priority", "webhook_url"}, exclude_none=True
        )


@dataclass(frozen=True, slots=True)
class AskedSequence:
    """A sequence as it was sent."""

    text: str
    id: str | None = None
    mutations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProteinRequest:
    """A request whose fields are right; the sequences are not looked at yet."""

    sequences: tuple[AskedSequence, ...]
    options: Options


class ProteinRequestChecker:
    """Checks the bodies of requests to one model. model: its name."""

    def __init__(self, model: str) -> None:
        self._model = model

    def predict(self, fields: Mapping[str, object]) -> ProteinRequest:
        """One sequence. Raises InvalidRequestError: names the field, what was given and what is allowed."""
        request = check_fields(PredictRequest, fields)
        self._check_model(request)
        return ProteinRequest((AskedSequence(request.sequence, request.id, tuple(request.mutations or ())),), request)

    def batch(self, fields: Mapping[str, object]) -> ProteinRequest:
        """Several. Raises InvalidRequestError likewise."""
        request = check_fields(BatchRequest, fields)
        self._check_model(request)
        if request.sequences is not None and request.fasta is not None:
            raise conflict("sequences", "fasta")
        if request.fasta is not None:
            return ProteinRequest(_of_fasta(request.fasta, request), request)
        if request.sequences is None:
            raise InvalidRequestError(
                "Missing required parameter: 'sequences' (a list) or 'fasta' (a text).",
                "sequences",
                "missing_required_parameter",
            )
        _check_count(len(request.sequences), "sequences")
        everywhere = tuple(request.mutations or ())
        asked = [
            AskedSequence(one, None, everywhere)
            if isinstance(one, str)
            else AskedSequence(one.sequence, one.id, everywhere if one.mutations is None else tuple(one.mutations))
            for one in request.sequences
        ]
        return ProteinRequest(tuple(asked), request)

    def file(self, fields: Mapping[str, object]) -> FileRequest:
        """What a file is sent with. Raises InvalidRequestError likewise."""
        request = check_fields(FileRequest, fields)
        self._check_model(request)
        if request.mutations is not None:
            raise InvalidRequestError(
                "Invalid 'mutations': those of one sequence mean nothing to another; send them with their sequence to "
                "/predict or /predict/batch, or ask for substitutions, which are all of them.",
                "mutations",
            )
        return request

    def _check_model(self, options: Options) -> None:
        if options.model not in (None, self._model):
            raise InvalidRequestError(
                f"The model {options.model!r} is not served here; use {self._model!r} or leave it out.",
                "model",
                "model_not_found",
            )


def _of_fasta(text: str, options: Options) -> tuple[AskedSequence, ...]:
    entries = read_fasta(text)
    _check_count(len(entries), "fasta")
    return tuple(AskedSequence(one.sequence, one.id or None, tuple(options.mutations or ())) for one in entries)


def _check_count(count: int, param: str) -> None:
    if count > MAX_BATCH:
        raise InvalidRequestError(
            f"'{param}' holds {count} sequences; at most {MAX_BATCH} go into one request: send them in parts.",
            param,
            "batch_too_large",
        )
