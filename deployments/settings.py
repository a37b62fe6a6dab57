"""Settings of the model workers. Read from YAML by `serve_app.config`; frozen, unknown keys refused."""

from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    field_validator,
    model_validator,
)

from deployments import s3_endpoint
from deployments.clip import is_length, is_side
from deployments.dtypes import DtypeName, WeightsName
from deployments.step_rules import (
    LINEAR_PART,
    QUALITIES,
    THRESHOLD_NOISE,
    AttentionName,
    Quality,
    StepRules,
    is_rising,
)

FrameDrop = Literal["end", "each_upsample"]
"""Where the decoder drops the frames that the first latent frame has too many."""
EncoderName = Literal["x264", "nvenc", "auto"]
LoraName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Resources = dict[
    Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]*$")], Annotated[float, Field(gt=0, le=1000)]
]
"""Custom resources of Ray by name, which a cluster's nodes offer; none on one machine."""
MAX_LORA_SCALE = 2.0
"""By how much a request may have the weights of a LoRA count; 1 is as they were trained."""


class Settings(BaseModel):
    """Base of every settings section."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StorageSettings(Settings):
    """Where objects live. Without `endpoint` the app runs SeaweedFS itself, see `local`."""

    endpoint: str | None = Field(None, description="host:port of an S3 API, without a scheme")
    access_key: SecretStr | None = None
    secret_key: SecretStr | None = None
    secure: bool = Field(True, description="https to the endpoint")
    region: str = Field("us-east-1", description="an endpoint at AWS that names one has it already")
    bucket: str = Field("mochi-serve", min_length=3, max_length=63, pattern=r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$")
    local_port: int = Field(8333, ge=1024, le=65000, description="first of eight consecutive ports of the local store")
    public_endpoint: str | None = Field(
        None, description="host:port where clients reach the same store; a download may then be a signed link to it"
    )
    redirect: Literal["auto", "never", "always"] = Field(
        "auto",
        description="whether a download is redirected to the public endpoint: if the client asks for a link, never, or "
        "unless it asks for none",
    )
    public_secure: bool = Field(True, description="https to the public endpoint")
    signed_link_s: int = Field(3600, ge=10, le=604_800, description="how long a signed link is good")

    @model_validator(mode="before")
    @classmethod
    def _region_of_endpoint(cls, given: Any) -> Any:
        """AWS: unless the settings name the region, it is the one that the endpoint does."""
        if isinstance(given, dict) and isinstance(endpoint := given.get("endpoint"), str):
            region = s3_endpoint.aws_region(s3_endpoint.normalised(endpoint))
            return {"region": region, **given} if region else given
        return given

    @field_validator("endpoint", "public_endpoint")
    @classmethod
    def _normalised(cls, endpoint: str | None) -> str | None:
        return None if endpoint is None else s3_endpoint.normalised(endpoint)

    @model_validator(mode="after")
    def _endpoints(self) -> Self:
        for name, secure in (("endpoint", "secure"), ("public_endpoint", "public_secure")):
            endpoint = getattr(self, name)
            if endpoint is None:
                continue
            if problem := s3_endpoint.problem(endpoint):
                scheme = f"; set {secure}: true for https or false for http" if "scheme" in problem else ""
                raise ValueError(f"{name} {problem}{scheme}")
            if (region := s3_endpoint.aws_region(endpoint)) not in (None, self.region):
                raise ValueError(f"{name} is in the region {region}, and region is {self.region!r}; make them the same")
        return self

    @model_validator(mode="after")
    def _endpoint_with_keys(self) -> Self:
        if self.endpoint is None:
            return self
        if self.access_key is None or self.secret_key is None:
            raise ValueError("endpoint needs access_key and secret_key beside it")
        return self


class Dimension(Settings):
    """A default and its bounds, both inclusive."""

    default: int = Field(ge=1)
    minimum: int = Field(ge=1)
    maximum: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.minimum <= self.default <= self.maximum:
            raise ValueError("must hold minimum <= default <= maximum")
        return self


class QualitySettings(Settings):
    """How the videos of one quality are made; what is left out is as in the model's own settings.

    Sigma goes from 0 (noise) to 1 (video).
    """

    num_inference_steps: int | None = Field(None, ge=2, description="of a request that names none")
    guidance_scale: float | None = Field(None, ge=1.0, description="of a request that names none")
    threshold_noise: float | None = Field(None, gt=0, lt=1, description="sigma where the schedule turns quadratic")
    linear_part: float | None = Field(None, gt=0, lt=1, description="of the steps, that are before it")
    guidance_from: float = Field(0.0, ge=0, le=1, description="sigma; steps outside run without the negative prompt")
    guidance_until: float = Field(1.0, ge=0, le=1, description="sigma, inclusive")
    reuse_from: float = Field(0.0, ge=0, le=1, description="sigma; steps outside are computed in full")
    reuse_until: float = Field(1.0, ge=0, le=1, description="sigma, inclusive")
    reuse_run: int = Field(
        0, ge=0, le=16, description="steps in a row that run the first block alone and reuse the others' last work"
    )
    attention: AttentionName = Field("full", description="fp8: in 8 bits; faster on Hopper GPUs alone")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("guidance", "reuse"):
            if getattr(self, f"{name}_from") > getattr(self, f"{name}_until"):
                raise ValueError(f"{name}_from must be at most {name}_until")
        return self


class LoraSettings(Settings):
    """Weights that requests may name: they change what the model makes, as they were trained to."""

    source: str = Field(min_length=1, description="folder, hub id, or s3://bucket/prefix in the same store")
    revision: str | None = Field(None, description="hub revision (branch, tag or commit)")
    weight_name: str | None = Field(
        None,
        pattern=r"^[^/\\]+\.safetensors$",
        description="the file in it; default: pytorch_lora_weights.safetensors (diffusers), adapter_model.safetensors "
        "(peft), or the only .safetensors that there is",
    )
    description: str = Field("", max_length=500, description="for people, told by GET /v1/models")


class ModelSettings(Settings):
    """Which model is served and what it can make."""

    name: str = Field("mochi-1", min_length=1, description="the name clients ask for")
    aliases: list[str] = Field(
        ["sora-2", "sora-2-pro"],
        description="other names that clients have built in and that mean this model; answers tell `name`",
    )
    source: str = Field(min_length=1, description="hub id, folder, or s3://bucket/prefix in the same store")
    revision: str | None = Field(None, description="hub revision (branch, tag or commit)")
    dtype: DtypeName = Field(description="of all stages that name none of their own")
    weights: WeightsName | None = Field(
        None,
        description="what the transformer's large weights are kept in: int8, half of the memory of bfloat16, on any "
        "device; fp8, in the layers that see the video tokens, which multiply in it and faster, on GPUs from Ada and "
        "Hopper on; default: the sampler's dtype",
    )
    hash_at_start: bool = Field(
        False, description="hash all weights with known checksums at each start, not only those that seem changed"
    )
    cache_max_gb: float | None = Field(
        None,
        gt=0,
        description="that all models from the object store may take in MOCHI_SERVE_MODEL_CACHE: to make room for "
        "another one, those used longest ago and by nobody now are removed; default: none is",
    )
    weights_from_peers: bool = Field(
        False,
        description="whether replicas take weights that lie in the object store from each other, too, so that it is "
        "read about once however many machines start; each then serves what it has at a port of its machine's address",
    )
    max_sequence_length: int = Field(256, ge=1, le=512, description="tokens of the text encoder")
    max_prompt_chars: int = Field(2000, ge=1)
    zero_empty_prompt: bool | None = Field(
        None,
        description="whether an empty prompt is no token at all, as Mochi 1 was trained and its authors encode it, and "
        "not the end token alone; default: what the model's model_index.json says (`force_zeros_for_empty_prompt`), "
        "false where it says nothing",
    )
    frame_drop: FrameDrop = Field(
        "end",
        description="where the decoder drops the five frames that the first latent frame has too many: after each "
        "upsampling in time, as Mochi 1 was trained and its authors decode, or all at the end, as diffusers does",
    )
    width: Dimension
    height: Dimension
    num_frames: Dimension
    fps: Dimension
    num_inference_steps: Dimension
    enhanced_steps: int | None = Field(
        None,
        ge=2,
        description="denoising steps of an enhanced video; default: twice those of the video it is made from",
    )
    guidance_scale: float = Field(4.5, ge=1.0)
    max_guidance_scale: float = Field(20.0, ge=1.0)
    threshold_noise: float = Field(
        THRESHOLD_NOISE, gt=0, lt=1, description="sigma where the schedule of steps turns from linear to quadratic"
    )
    linear_part: float = Field(
        LINEAR_PART, gt=0, lt=1, description="of the steps, that are before it: 0.75 is 6 of 8 (distilled weights)"
    )
    quality: Quality = Field("exact", description="of a request that names none")
    qualities: dict[Literal["fast", "draft"], QualitySettings] = Field(
        {}, description="what is offered beside exact, which computes each step as the model's authors do"
    )
    loras: dict[LoraName, LoraSettings] = Field(
        {}, description="weights that a request may name, by the names that clients use"
    )
    max_pixels: int = Field(ge=256, description="bound of width x height x num_frames")
    max_picture_pixels: int | None = Field(
        None, ge=256, description="bound of width x height, by which a decoder's memory goes; default: none"
    )
    fit_sizes: bool = Field(
        True, description="whether a size that clients have built in becomes the nearest that the model makes"
    )
    fit_seconds: bool = Field(False, description="whether a length beyond the longest becomes the longest")

    @model_validator(mode="after")
    def _grid(self) -> Self:
        for name in ("width", "height"):
            d: Dimension = getattr(self, name)
            if any(not is_side(v) for v in (d.default, d.minimum, d.maximum)):
                raise ValueError(f"{name}: default, minimum and maximum are multiples of 16")
        n = self.num_frames
        if any(not is_length(v) for v in (n.default, n.minimum, n.maximum)):
            raise ValueError("num_frames: default, minimum and maximum are 6k + 1 (7, 13, 19, 25, ...)")
        if self.num_inference_steps.minimum < 2:
            raise ValueError("num_inference_steps: minimum is 2, the schedule needs two parts")
        if (self.enhanced_steps or 0) > self.num_inference_steps.maximum:
            raise ValueError("enhanced_steps must be at most num_inference_steps.maximum")
        return self

    @model_validator(mode="after")
    def _defaults_fit(self) -> Self:
        picture = self.width.default * self.height.default
        if (pixels := picture * self.num_frames.default) > self.max_pixels:
            raise ValueError(f"max_pixels is below the default clip's {pixels}; raise it or lower the defaults")
        if not self.fits_picture(picture):
            raise ValueError(
                f"max_picture_pixels is below the default size's {picture}; raise it or lower the defaults"
            )
        if self.guidance_scale > self.max_guidance_scale:
            raise ValueError("guidance_scale must be at most max_guidance_scale")
        return self

    @model_validator(mode="after")
    def _qualities_fit(self) -> Self:
        if self.quality not in self.offered:
            raise ValueError(f"quality is {self.quality}; offered are {', '.join(self.offered)}: add it to qualities")
        bounds = self.num_inference_steps
        for quality in self.offered:
            if not bounds.minimum <= self.steps_of(quality) <= bounds.maximum:
                raise ValueError(
                    f"qualities.{quality}: num_inference_steps must be from {bounds.minimum} to {bounds.maximum}"
                )
            if self.guidance_of(quality) > self.max_guidance_scale:
                raise ValueError(f"qualities.{quality}: guidance_scale must be at most max_guidance_scale")
            rules = self.rules_of(quality)
            for steps in range(bounds.minimum, bounds.maximum + 1):
                if not is_rising(steps, rules.threshold_noise, rules.linear_part):
                    raise ValueError(
                        f"qualities.{quality}: with {steps} steps the schedule goes beyond sigma 1 and back; lower "
                        "threshold_noise or raise linear_part"
                    )
        return self

    def fits_picture(self, pixels: int) -> bool:
        """Whether a picture of so many pixels is within `max_picture_pixels`."""
        return self.max_picture_pixels is None or pixels <= self.max_picture_pixels

    def fits_clip(self, picture_pixels: int, num_frames: int) -> bool:
        """Whether so many frames of such a picture are within both bounds of pixels."""
        return self.fits_picture(picture_pixels) and picture_pixels * num_frames <= self.max_pixels

    @property
    def offered(self) -> tuple[Quality, ...]:
        """The qualities that may be asked for, best first."""
        return tuple(quality for quality in QUALITIES if quality == "exact" or quality in self.qualities)

    @property
    def attends_in_fp8(self) -> bool:
        """Whether a quality has attention in 8 bits."""
        return any(quality.attention == "fp8" for quality in self.qualities.values())

    def steps_of(self, quality: Quality) -> int:
        """Denoising steps of a video of this quality, unless its request names others."""
        return self._of(quality).num_inference_steps or self.num_inference_steps.default

    def guidance_of(self, quality: Quality) -> float:
        """Guidance scale of a video of this quality, unless its request names another."""
        return self._of(quality).guidance_scale or self.guidance_scale

    def rules_of(self, quality: Quality) -> StepRules:
        """How the steps of a video of this quality are computed."""
        own = self._of(quality)
        return StepRules(
            threshold_noise=own.threshold_noise or self.threshold_noise,
            linear_part=own.linear_part or self.linear_part,
            guidance_from=own.guidance_from,
            guidance_until=own.guidance_until,
            reuse_from=own.reuse_from,
            reuse_until=own.reuse_until,
            reuse_run=own.reuse_run,
            attention=own.attention,
        )

    def _of(self, quality: Quality) -> QualitySettings:
        return QualitySettings() if quality == "exact" else self.qualities[quality]


class StageSettings(Settings):
    """Replicas of one stage: resources of each, how many, and how long a leaving one may finish its work."""

    dtype: DtypeName | None = Field(None, description="that this stage computes in; default: model.dtype")
    num_gpus: float = Field(ge=0)
    num_cpus: float = Field(0, ge=0)
    memory_gb: float | None = Field(None, gt=0, description="scheduling request, not a limit")
    resources: Resources = Field({}, description="of Ray, that each replica takes: it runs on a node that offers them")
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(1, ge=1)
    slots: int = Field(1, ge=1, description="jobs one replica works on at once")
    downscale_delay_s: float | None = Field(
        None,
        ge=0,
        description="a replica stays so long without need; default: by how soon earlier ones were needed again, and as "
        "long as a start takes at most",
    )
    graceful_shutdown_timeout_s: float = Field(600, ge=0)
    torch_threads: int | None = Field(None, ge=1, description="CPU threads; default: all cores")
    memory_fraction: float | None = Field(
        None,
        gt=0,
        le=1,
        description="of its GPU's memory, that a replica may take at most, so that stages of one GPU leave each other "
        "theirs; default: all that is free when it starts",
    )
    cpu_fallback: bool = Field(False, description="run on the CPU if the GPU that was assigned does not work")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas must be at least min_replicas")
        if self.memory_fraction is not None and not self.num_gpus:
            raise ValueError("memory_fraction is of a GPU's memory, and num_gpus is 0; leave it out")
        return self


class DecoderSettings(StageSettings):
    """Replicas of the decoder, and what compresses the videos."""

    encoder: EncoderName = Field(
        "x264",
        description="who compresses a video: x264, on the CPU; nvenc, the encoder engine of the GPU (H100, H200 and "
        "A100 have none: a replica that cannot use it does not start); auto: nvenc where it has encoded a frame, else "
        "x264. Their files differ, so auto is for replicas with equal GPUs",
    )


class SamplingSettings(Settings):
    """How the sampler batches, keeps and shows half-made videos."""

    max_batch_tokens: int = Field(
        50_000, ge=1, description="tokens (latent frames x height/16 x width/16, twice with guidance) of one pass"
    )
    rows_at_once: int | None = Field(
        None,
        ge=1,
        description="rows of a step that go through the transformer together, at most: with 1 the two of a guided "
        "sample go one after the other and take the memory of one; default: all",
    )
    checkpoint_s: float = Field(15, gt=0, description="sampling time between two checkpoints of a job")
    preview_every: int = Field(5, ge=0, description="denoising steps between two previews; 0 turns them off")
    min_step_s: float = Field(0, ge=0, description="a step takes at least this long: to rehearse with a small model")
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="whether the sampler compiles the transformer's blocks when it starts; auto: on CUDA, not on a CPU",
    )


class LogSettings(Settings):
    """How lines of the log are written."""

    format: Literal["text", "json"] = Field(
        "text", description="json: an object a line, with job, tenant, lease, stage, trace_id and span_id as fields"
    )


class TracingSettings(Settings):
    """Where the way of each job is told as an OpenTelemetry trace."""

    exporter: Literal["none", "otlp"] = Field("none", description="otlp: OTLP over HTTP, as protobuf")
    endpoint: str | None = Field(
        None, description="URL of the collector, http://host:4318; without a path, /v1/traces is added"
    )
    headers: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]+$")], SecretStr] = Field(
        {}, description="of each call of the collector, as for its key; best given in the environment"
    )
    sample_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="part of the jobs that are traced, but for those whose client sent a traceparent",
    )
    service: str = Field("mochi-serve", pattern=r"^[A-Za-z0-9._-]{1,64}$", description="begins each service.name")

    @model_validator(mode="after")
    def _has_endpoint(self) -> Self:
        if self.exporter == "otlp" and self.endpoint is None:
            raise ValueError("exporter is otlp, and endpoint is missing; write http://host:4318")
        if self.endpoint is not None:
            url = urlsplit(self.endpoint)
            if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query or url.fragment:
                raise ValueError("endpoint is no http:// or https:// URL of a host without a key in it")
        return self

    @property
    def traces_url(self) -> str:
        """The whole URL that spans are sent to."""
        assert self.endpoint is not None
        plain = self.endpoint.rstrip("/")
        return plain if urlsplit(plain).path else f"{plain}/v1/traces"


class WorkerSettings(Settings):
    """All a model worker needs to know, and no more: a replica is started anew when any of it changes."""

    registry: str  # the name of its actor
    namespace: str  # Ray's, that the registry is in
    storage: StorageSettings
    model: ModelSettings  # its dtype is the one of this stage
    dtypes: dict[str, DtypeName]  # of the parts whose work is in what this stage makes, by their names
    sampling: SamplingSettings
    slots: int  # as in StageSettings
    torch_threads: int | None  # as in StageSettings
    encoder: EncoderName = "x264"  # as in DecoderSettings
    memory_fraction: float | None = None  # as in StageSettings
    cpu_fallback: bool = False  # as in StageSettings
    tracing: TracingSettings = TracingSettings()
    logging: LogSettings = LogSettings()
