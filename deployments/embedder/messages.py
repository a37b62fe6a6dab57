"""What crosses processes between the HTTP side of protein embeddings and the devices."""

from dataclasses import dataclass

from deployments.proteins.queries import Answer


@dataclass(frozen=True, slots=True)
class AnsweredGroup:
    """What a device answers to a group of queries."""

    answers: tuple[Answer, ...]  # in the order of the queries
    device_s: float  # seconds of the device; groups of one pass share its time by their tokens


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device, and the model on it."""

    replica: str  # the id by which Serve's routers know it
    device: str  # ``cpu (2 threads)`` or ``cuda:0 NVIDIA H100 80GB HBM3``
    cuda: bool
    revision: str | None  # of the model: the hub's commit, or a name for what is in the bucket
    num_layers: int
    hidden_size: int
    predicts_tokens: bool  # it answers logits, and so scores
    predicts_contacts: bool
    pass_tokens: int  # of a pass, at most
    problem: str | None = None  # why it should get nothing to do now, for people
