"""The shapes of the answers, for the document of the API; `answers.py` writes them."""

from typing import Literal

from pydantic import BaseModel, Field

from deployments.proteins.queries import Pooling
from serve_app.calls.breaker import BreakerState
from serve_app.openapi.schemas import ErrorBody

Row = list[float]
Array = dict[str, str]
"""In npz and safetensors: the name of the array, as `array`."""


class Embedding(BaseModel):
    """Of one layer by one pooling."""

    layer: int = Field(description="counted from 0, the embedding")
    pooling: Pooling
    values: Row | list[Row] | Array = Field(description="hidden size; per_residue: residues x hidden size")


class LikelyResidue(BaseModel):
    """A token at a masked position."""

    residue: str
    probability: float


class MaskedResidues(BaseModel):
    """What the model takes the masked residues for."""

    positions: list[int] = Field(description="from 1")
    vocabulary: list[str] = Field(description="of the logits")
    logits: list[Row] | Array = Field(description="positions x vocabulary, not normalised")
    most_likely: list[list[LikelyResidue]] = Field(description="of each position, the likeliest first")


class MutationScore(BaseModel):
    """Above 0 is likelier than the wild type."""

    mutation: str
    score: float = Field(description="natural logarithm of the ratio of the probabilities, summed over its mutations")


class Substitutions(BaseModel):
    """The scores of all single substitutions."""

    amino_acids: str = Field(description="the columns")
    scores: list[Row] | Array = Field(description="residues x 20; 0 where it is the same")


class SequenceError(BaseModel):
    """A sequence of a batch that was refused."""

    index: int
    id: str | None
    error: ErrorBody


class ModelHead(BaseModel):
    """The model that answered."""

    model: str
    revision: str | None = Field(description="the hub's commit, or a name for what is in the bucket")
    num_layers: int
    hidden_size: int
    device_seconds: float = Field(description="seconds of devices; passes that several requests share count in parts")


class SequenceAnswer(BaseModel):
    """What was asked of a sequence; null or empty is what was not."""

    index: int = Field(description="in the request, from 0")
    id: str | None
    length: int = Field(description="residues")
    notes: list[str] = Field(description="what of the sequence was read as something else")
    embeddings: list[Embedding]
    contacts: list[Row] | Array | None = Field(description="residues x residues: probability of a contact")
    masked: MaskedResidues | None
    pseudo_perplexity: float | None = Field(description="1 is no surprise at all")
    mutations: list[MutationScore] | None
    substitutions: Substitutions | None


class PredictAnswer(ModelHead, SequenceAnswer):
    """The answer about one sequence."""


class BatchAnswer(ModelHead):
    """The answers about several, in their order."""

    results: list[SequenceAnswer | SequenceError]


class Device(BaseModel):
    """A replica of the model."""

    replica: str
    device: str
    breaker: BreakerState = Field(description="open: it failed and gets nothing until it is tried again")
    failures: int = Field(description="in a row")
    answered: int = Field(description="groups of sequences that it answered to this HTTP replica")
    tries_again_in_s: float
    problem: str | None = Field(description="why it should get nothing now, as it says itself")


class ProteinHealth(BaseModel):
    """Whether proteins are answered, and by what."""

    status: Literal["loading", "healthy", "degraded", "unhealthy"] = Field(
        description="degraded: some devices fail; unhealthy: all of them"
    )
    model: str
    revision: str | None
    physical_cuda_available: bool = Field(description="whether a device is a GPU")
    logical_devices: int = Field(description="replicas that are wanted")
    devices: list[Device] = Field(description="those that answer")


class WarmUp(BaseModel):
    """A short sequence was computed on every device."""

    devices: int
    seconds: float = Field(description="of the slowest")
