"""Settings of protein embeddings. Read from YAML by `serve_app.config`."""

from typing import Self

from pydantic import Field, model_validator

from deployments.dtypes import DtypeName
from deployments.settings import LogSettings, Resources, Settings, StorageSettings

SETTING = "proteins.source"
ARCHITECTURES = ("EsmForMaskedLM", "EsmModel")
"""The classes of a model that are served."""
CPU_PASS_TOKENS = 1_024
GPU_PASS_TOKENS = 16_384


class ProteinSettings(Settings):
    """An ESM2 model that is served beside the videos, as an application of its own."""

    name: str | None = Field(
        None, min_length=1, description="the model's name in answers; default: the last part of `source`"
    )
    source: str = Field(min_length=1, description="hub id, folder, or s3://bucket/prefix in the same store")
    revision: str | None = Field(None, description="hub revision (branch, tag or commit)")
    dtype: DtypeName = Field(
        "float32", description="bfloat16 takes half the memory and is faster; answers differ in the third digit"
    )
    num_gpus: float | None = Field(
        None, ge=0, description="of each replica; default: 1 where the cluster has a GPU, 0 where it has none"
    )
    num_cpus: float = Field(0, ge=0, description="of each replica")
    resources: Resources = Field({}, description="of Ray, that each replica takes: it runs on a node that offers them")
    replicas: int | None = Field(
        None,
        ge=1,
        description="devices; default: as many as the cluster's GPUs hold, or one without a GPU",
    )
    torch_threads: int | None = Field(
        None, ge=1, description="CPU threads of a replica; default: the machine's cores, shared out among the replicas"
    )
    memory_fraction: float | None = Field(None, gt=0, le=1, description="as of a stage: of its GPU's memory, at most")
    pass_tokens: int | None = Field(
        None,
        ge=64,
        description="tokens (residues, and two more a sequence) of one pass of the model; a longer sequence is a pass "
        f"of its own; default: {CPU_PASS_TOKENS} on a CPU, where more gain nothing, and {GPU_PASS_TOKENS} on a GPU",
    )
    max_request_tokens: int = Field(
        500_000,
        ge=2_048,
        description="tokens of all passes that one request may cost; a masked score costs one a residue",
    )
    max_answer_numbers: int = Field(
        40_000_000,
        ge=1_000_000,
        description="numbers of one answer, 4 bytes each as arrays and some 10 as JSON; the 650M model has 1,280 of a "
        "residue and layer",
    )
    max_waiting_tokens: int = Field(
        2_000_000,
        ge=2_048,
        description="tokens of requests that may wait in an HTTP replica, half of them one tenant's; then 429",
    )
    group_timeout_s: float = Field(
        120, gt=0, description="a pass that takes longer counts as hanging: it is tried on another device"
    )
    request_timeout_s: float = Field(600, ge=1, le=3600, description="a request is answered by then, or with 504")
    min_http_replicas: int = Field(1, ge=1)
    max_http_replicas: int = Field(1, ge=1)
    max_body_bytes: int = Field(2_000_000, ge=10_000)

    max_file_bytes: int = Field(1_000_000_000, ge=10_000, description="of a FASTA file that is sent as a job, unpacked")
    max_file_sequences: int = Field(1_000_000, ge=1, description="of such a file")
    part_sequences: int = Field(
        1_000, ge=1, le=10_000, description="of a part of such a file, at most: its answers are an object in the store"
    )
    part_tokens: int = Field(
        200_000,
        ge=2_048,
        description="tokens of all passes of such a part, at most: what a killed worker loses, and the grain of turns",
    )
    files_at_once: int = Field(4, ge=1, description="files that are worked on at a time, in turns")

    @property
    def served_name(self) -> str:
        """What clients call the model."""
        return self.name or self.source.rstrip("/").rpartition("/")[2]

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.max_http_replicas < self.min_http_replicas:
            raise ValueError("max_http_replicas must be at least min_http_replicas")
        if self.memory_fraction is not None and self.num_gpus == 0:
            raise ValueError("memory_fraction is of a GPU's memory, and num_gpus is 0; leave it out")
        return self


class EmbedderSettings(Settings):
    """All that a replica needs to know, and no more: it is started anew when any of it changes."""

    registry: str  # the name of its actor
    namespace: str  # Ray's, that the registry is in
    storage: StorageSettings
    proteins: ProteinSettings
    torch_threads: int | None  # None: all cores
    pass_tokens: int  # as in ProteinSettings
    logging: LogSettings = LogSettings()
