"""The one tree of settings: read from YAML and the environment, checked before anything starts.

A profile is a YAML file of this tree (`configs/`), or of a part of it: `extends` names a profile beside it, over which
it is laid. `MOCHI_SERVE_CONFIG` names another profile than the one in `serve_config.yaml`, whose `settings` lie over
the profile; `MOCHI_SERVE__SECTION__KEY=value` overrides one key of both, which is how secrets come in.
"""

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from deployments.dtypes import DtypeName
from deployments.embedder.settings import ProteinSettings
from deployments.messages import Stage
from deployments.settings import (
    DecoderSettings,
    LogSettings,
    ModelSettings,
    Resources,
    SamplingSettings,
    Settings,
    StageSettings,
    StorageSettings,
    TracingSettings,
    WorkerSettings,
)
from serve_app.errors import ConfigError

PROFILE_VARIABLE = "MOCHI_SERVE_CONFIG"
OVERRIDE_PREFIX = "MOCHI_SERVE__"
EXTENDS = "extends"
DEFAULT_PROFILE = "configs/shapes.yaml"
HOUR_S = 3_600
DAY_S = 24 * HOUR_S
WEBHOOK_KEY_BYTES = 32
WEIGHTED_PARTS = {Stage.ENCODING: "text_encoder", Stage.SAMPLING: "transformer", Stage.DECODING: "vae"}
"""The part of the model with weights that each stage runs, in the order of the stages."""

AccessMode = Literal["auto", "keys", "open-to-anyone"]


class DatabaseSettings(Settings):
    """Where jobs are kept. Without `url`: SQLite in the data folder."""

    url: SecretStr | None = Field(None, description="postgresql+psycopg://user:password@host/database")

    @model_validator(mode="after")
    def _known_dialect(self) -> Self:
        if self.url is None:
            return self
        try:
            driver = make_url(self.url.get_secret_value()).drivername
        except (ArgumentError, ValueError):  # ValueError: the port is no number, and it quotes the URL
            raise ValueError(
                "url is not a database URL; write postgresql+psycopg://user:password@host:port/name, "
                "with special characters of the password percent-encoded"
            ) from None
        if driver not in ("sqlite", "postgresql+psycopg"):
            raise ValueError(f"url has the driver {driver!r}; allowed are sqlite and postgresql+psycopg")
        return self


class JobSettings(Settings):
    """How jobs are leased and retried."""

    lease_s: float = Field(30, gt=1, description="a lease without a report for this long has lapsed")
    max_attempts: int = Field(5, ge=1)
    retry_pause_s: float = Field(0.5, gt=0, description="pause before attempt 2; doubles with each attempt")
    max_retry_pause_s: float = Field(60, gt=0)
    max_queued: int = Field(10_000, ge=1, description="waiting jobs in all; beyond it new ones are refused with 429")
    max_queued_per_tenant: int = Field(2_000, ge=1, description="waiting jobs of one tenant")
    idempotency_h: float = Field(24, gt=0, description="how long an Idempotency-Key is remembered, hours")


class TargetWaits(Settings):
    """How long a job of each tier may wait in all its queues together, seconds; replicas are started to keep to it."""

    interactive: float = Field(60, gt=0)
    standard: float = Field(600, gt=0)
    batch: float = Field(3600, gt=0)

    def of(self, tier: str) -> float:
        """That of a tier, which is a field's name."""
        seconds: float = getattr(self, tier)
        return seconds


class SchedulingSettings(Settings):
    """In which order waiting jobs go to the replicas, and how many replicas there are."""

    weights: dict[str, Annotated[float, Field(gt=0, le=1000)]] = Field(
        {}, description="shares of the tenants in GPU-seconds; a tenant that is not named has weight 1"
    )
    promote_after_s: float = Field(600, gt=0, description="a job that has waited this long goes with the tier above")
    preemption: bool = Field(True, description="a job of a lower tier is parked when an interactive one finds no slot")
    max_parks: int = Field(3, ge=0, description="a job that was parked this often is not preempted again")

    target_wait_s: TargetWaits = TargetWaits()
    replica_start_s: float = Field(120, gt=0, description="from asking for a replica until it is there; then measured")
    headroom_s: float = Field(
        900,
        ge=0,
        description="what it may cost that a job whose target wait is shorter than a start begins in time, in seconds "
        "of an idle replica; 0 keeps none ready",
    )
    activation_gpu_s: float = Field(
        0,
        ge=0,
        description="while a stage has no replica, less work than this (GPU-seconds) waits while it may",
    )

    draft_when_wait_over_s: float | None = Field(
        None,
        gt=0,
        description="a request for the quality auto becomes a draft where it would wait for longer; null: none does",
    )

    def weight(self, tenant: str) -> float:
        return self.weights.get(tenant, 1.0)


class RetentionSettings(Settings):
    """How long jobs and their files are kept. Days may be fractions."""

    completed_days: float | None = Field(30, gt=0, description="null keeps completed jobs and videos for ever")
    failed_days: float | None = Field(7, gt=0, description="of failed and cancelled jobs; null keeps them for ever")
    orphan_days: float = Field(1, gt=0, description="files that belong to no job are deleted when they are this old")
    sweep_every_s: float = Field(60, gt=0, description="how often to look for what has expired")
    orphans_every_s: float = Field(3600, gt=0, description="how often to look for files that belong to no job")


class AccessSettings(Settings):
    """Who may use the API."""

    mode: AccessMode = Field(
        "auto",
        description="auto: no keys, and only on loopback; keys: every request needs one; open-to-anyone: no keys, and "
        "whoever reaches the port may use it and see everything",
    )
    cors_origins: tuple[str, ...] = Field((), description="web origins whose pages may call the API from a browser")


class WebhookSettings(Settings):
    """How the end of a job is sent to the URL that its client named."""

    key: SecretStr | None = Field(
        None,
        description="32 bytes in base64 that the secrets which sign webhooks are encrypted with; with SQLite a file in "
        "the data folder, made at the first start, is enough",
    )

    allow_private: bool = Field(
        False, description="also to addresses that are not public: loopback, private, link-local"
    )
    timeout_s: float = Field(10, gt=0, description="for one delivery")
    first_pause_s: float = Field(5, gt=0, description="pause before the second try; doubles with each")
    give_up_h: float = Field(24, gt=0, description="hours after which a delivery is given up")

    @model_validator(mode="after")
    def _is_key(self) -> Self:
        if self.key is not None:
            decode_webhook_key(self.key.get_secret_value())
        return self


def decode_webhook_key(text: str) -> bytes:
    """The bytes of `webhooks.key`. Raises ValueError, which does not quote it."""
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except ValueError:
        key = b""
    if len(key) != WEBHOOK_KEY_BYTES:
        raise ValueError(f"key is {WEBHOOK_KEY_BYTES} bytes in base64: openssl rand -base64 {WEBHOOK_KEY_BYTES}")
    return key


class ClassifierSettings(Settings):
    """A text classification model that reads prompts before they are accepted."""

    source: str = Field(min_length=1, description="hub id or folder of a transformers sequence classification model")
    revision: str | None = Field(None, description="hub revision (branch, tag or commit)")
    refuse: tuple[str, ...] = Field(min_length=1, description="labels of the model that lead to a refusal")
    threshold: float = Field(0.5, gt=0, lt=1, description="probability of such a label from which on")
    num_gpus: float = Field(0, ge=0)
    num_cpus: float = Field(0, ge=0)
    max_replicas: int = Field(1, ge=1)


class SafetySettings(Settings):
    """Which prompts are refused, before anything is spent on them."""

    blocklist: Path | None = Field(None, description="file with a word, a phrase or a /regular expression/ a line")
    classifier: ClassifierSettings | None = None


class IngressSettings(Settings):
    """HTTP replicas."""

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    resources: Resources = Field({}, description="of Ray, that each replica takes: it runs on a node that offers them")
    max_body_bytes: int = Field(1_000_000, ge=1_000)
    head_timeout_s: float = Field(
        10, ge=0.1, le=3600, description="a connection must have brought a request's head by then; needs HAProxy"
    )
    connections_per_address: int = Field(
        512, ge=1, description="of one client address (IPv6: /64) at once, other machines' alone; needs HAProxy"
    )
    trusted_proxies: list[IPvAnyNetwork] = Field(
        [], description="addresses or networks of proxies, whose connections are not bounded so"
    )
    body_timeout_s: float = Field(30, gt=0, description="a request's body must have arrived by then")
    sync_timeout_s: float = Field(
        600, ge=1, le=3600, description="how long POST /v1/videos/sync waits for the video, which goes on after that"
    )

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas must be at least min_replicas")
        return self


class RegistrySettings(Settings):
    """The actor that every job goes through."""

    resources: Resources = Field({}, description="of Ray, that it takes: it runs on a node that offers them")


class MetricsSettings(Settings):
    """The page /metrics."""

    tenants: int = Field(50, ge=1, le=1000, description="so many tenants are told apart; the later ones are `other`")
    readers: tuple[str, ...] = Field(
        ("operator",), description="where keys are needed: the tenants whose keys may read it; it tells of all tenants"
    )
    open: bool = Field(False, description="where keys are needed: it needs none; close its path at the front then")


class AppSettings(Settings):
    """The whole tree."""

    data_dir: Path = Field(Path("data"), description="the one folder everything local is kept in")
    namespace: str = Field("mochi-serve", min_length=1, description="Ray namespace of the named actors")
    min_free_disk_mb: int = Field(500, ge=0, description="refuse to start below this")
    database: DatabaseSettings = DatabaseSettings()
    storage: StorageSettings = StorageSettings()
    ingress: IngressSettings = IngressSettings()
    registry: RegistrySettings = RegistrySettings()
    jobs: JobSettings = JobSettings()
    scheduling: SchedulingSettings = SchedulingSettings()
    retention: RetentionSettings = RetentionSettings()
    access: AccessSettings = AccessSettings()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()
    logging: LogSettings = LogSettings()
    webhooks: WebhookSettings = WebhookSettings()
    safety: SafetySettings = SafetySettings()
    proteins: ProteinSettings | None = None
    model: ModelSettings
    sampling: SamplingSettings = SamplingSettings()
    encoder: StageSettings
    sampler: StageSettings
    decoder: DecoderSettings

    @model_validator(mode="after")
    def _has_drafts(self) -> Self:
        if self.scheduling.draft_when_wait_over_s is not None and "draft" not in self.model.offered:
            raise ValueError(
                "scheduling.draft_when_wait_over_s is set, and the model offers no draft; add draft to model.qualities"
            )
        return self

    @model_validator(mode="after")
    def _fp8_products(self) -> Self:
        if self.model.weights != "fp8":
            return self
        if not self.sampler.num_gpus:
            raise ValueError("model.weights is fp8, which needs a GPU, and sampler.num_gpus is 0; set int8")
        if self.dtypes["transformer"] != "bfloat16":
            raise ValueError("model.weights is fp8, whose products are bfloat16; set sampler.dtype to bfloat16")
        return self

    @property
    def database_url(self) -> str:
        if self.database.url is not None:
            return self.database.url.get_secret_value()
        return f"sqlite:///{self.data_dir.resolve() / 'jobs.db'}"

    def stage(self, stage: Stage) -> StageSettings:
        """The section of a stage."""
        return {Stage.ENCODING: self.encoder, Stage.SAMPLING: self.sampler, Stage.DECODING: self.decoder}[stage]

    @property
    def dtypes(self) -> dict[str, DtypeName]:
        """What each part of the model that has weights computes in, in the order of the stages."""
        return {part: self.stage(stage).dtype or self.model.dtype for stage, part in WEIGHTED_PARTS.items()}

    def worker(self, stage: Stage, registry: str) -> WorkerSettings:
        """The part of the tree that one model worker sees."""
        section, part = self.stage(stage), WEIGHTED_PARTS[stage]
        before = list(WEIGHTED_PARTS).index(stage)
        dtypes = dict(list(self.dtypes.items())[: before + 1])
        return WorkerSettings(
            registry=registry,
            namespace=self.namespace,
            storage=self.storage,
            model=self.model.model_copy(update={"dtype": dtypes[part]}),
            dtypes=dtypes,
            sampling=self.sampling,
            slots=section.slots,
            torch_threads=section.torch_threads,
            encoder=section.encoder if isinstance(section, DecoderSettings) else "x264",
            memory_fraction=section.memory_fraction,
            cpu_fallback=section.cpu_fallback,
            tracing=self.tracing,
            logging=self.logging,
        )


class AppArgs(BaseModel):
    """`args` of an application in serve_config.yaml. Serve deploys what a change of them changes, in place."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: str | None = Field(DEFAULT_PROFILE, description="path of the profile; null: `settings` are a whole one")
    settings: dict[str, Any] = Field({}, description="the tree of a profile, laid over that of `config`, key by key")

    def load(self, environ: Mapping[str, str] = os.environ) -> AppSettings:
        """As `load_settings`, with `settings` between the profile and the environment."""
        if self.config is None:
            return _check({}, "args.settings", self.settings, environ)
        return load_settings(self.config, environ, self.settings)


def load_settings(
    profile: str | None = None, environ: Mapping[str, str] = os.environ, settings: Mapping[str, Any] | None = None
) -> AppSettings:
    """Read the profile, lay settings and then the environment over it and check the whole.

    Args:
        profile: path of a YAML file; `MOCHI_SERVE_CONFIG` goes before it.
        environ: the environment, with `MOCHI_SERVE_CONFIG` and the overrides.
        settings: of an application's args; a tree, of which each key takes the place of the profile's.

    Raises:
        ConfigError: no such file, no YAML, or a key that is unknown or out of bounds; names the key.
    """
    path = Path(environ.get(PROFILE_VARIABLE) or profile or DEFAULT_PROFILE)
    source = f"{path} + args.settings" if settings else str(path)
    return _check(_read_profile(path), source, settings or {}, environ)


def _read_profile(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tree of a profile, laid over that of the one beside it that its key `extends` names.

    Args:
        extending: the profiles that were read on the way to this one.
    """
    tree = _read_yaml(path)
    below = tree.pop(EXTENDS, None)
    if below is None:
        return tree
    if not isinstance(below, str) or path.resolve() in extending:
        raise ConfigError(
            f"{path}: {EXTENDS} must be the name of a profile beside it that does not extend it itself (got {below!r})"
        )
    return _merged(_read_profile(path.parent / below, (*extending, path.resolve())), tree)


def _check(tree: dict[str, Any], source: str, settings: Mapping[str, Any], environ: Mapping[str, str]) -> AppSettings:
    tree = _merged(tree, settings)
    overrides = sorted(name for name in environ if name.startswith(OVERRIDE_PREFIX))
    for name in overrides:
        _override(tree, name, environ[name])
    try:
        return AppSettings.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{' + '.join([source, *overrides])}: {explain(error)}") from None


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Sections and mappings are laid over each other key by key, at every depth; all else is replaced."""
    out = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping):
            earlier = out.get(key)
            out[key] = _merged(earlier if isinstance(earlier, Mapping) else {}, value)
        else:
            out[key] = value
    return out


def explain(error: ValidationError) -> str:
    """One line that names each bad key and what is allowed there. It never holds a secret."""
    return "; ".join(_explain_key(details) for details in error.errors())


def _explain_key(details: ErrorDetails) -> str:
    loc = details["loc"]
    key = ".".join(str(part) for part in loc) or "the file"
    if details["type"] == "extra_forbidden":
        return f"{key}: unknown key; allowed are {', '.join(_annotation(loc[:-1]).model_fields)}"
    if details["type"] == "missing":
        return f"{key}: is missing"
    message = details["msg"].removeprefix("Value error, ")
    value = details["input"]
    # Only a scalar that stands neither for a secret nor for a section, which may hold one.
    if isinstance(value, str | int | float | bool) and not _holds_secret(_annotation(loc)):
        message += f" (got {value!r})"
    return f"{key}: {message}"


def _holds_secret(annotation: Any) -> bool:
    if _is_section(annotation):
        return any(_holds_secret(f.annotation) for f in annotation.model_fields.values())
    return annotation is SecretStr or any(_holds_secret(part) for part in get_args(annotation))


def _annotation(loc: Sequence[int | str]) -> Any:
    """The type of a key of AppSettings, without `| None`; None where it has no such key."""
    annotation: Any = AppSettings
    for part in loc:
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
            continue
        known = _is_section(annotation) and str(part) in annotation.model_fields
        annotation = _required(annotation.model_fields[str(part)].annotation) if known else None
    return annotation


def _required(annotation: Any) -> Any:
    """X of `X | None`; any other type as it is."""
    others = [part for part in get_args(annotation) if part is not type(None)]
    is_optional = get_origin(annotation) is UnionType and len(others) == 1
    return others[0] if is_optional else annotation


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Settings)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the profile {str(path)!r} ({error.strerror}); name one with {PROFILE_VARIABLE}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML{_yaml_error_place(error)}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must be a mapping of keys, see {DEFAULT_PROFILE}")
    return tree


def _yaml_error_place(error: Exception) -> str:
    """Where the YAML is wrong, without the text of the line, which may hold a secret."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return ": it holds bytes that are no text"
    mark = error.problem_mark
    return f": line {mark.line + 1}, column {mark.column + 1}; check the quotes and the indentation there"


def _override(tree: dict[str, Any], name: str, value: str) -> None:
    """Put the value of an environment variable into the tree that was read from the profile."""
    loc = name.removeprefix(OVERRIDE_PREFIX).lower().split("__")
    for section in loc[:-1]:
        if tree.get(section) is None:
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            raise ConfigError(f"{name}: {section!r} is not a section")
    tree[loc[-1]] = _parse(_annotation(loc), name, value)


def _parse(annotation: Any, name: str, value: str) -> Any:
    """Empty is null, a section or a mapping is YAML, a list is YAML in brackets or has commas between; all else stays
    text: a secret must not become a number or a list.
    """
    if not value:
        return None
    kind = get_origin(annotation)
    if kind in (list, tuple) and not value.lstrip().startswith("["):
        return [part.strip() for part in value.split(",") if part.strip()]
    if kind not in (list, tuple, dict) and not _is_section(annotation):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML{_yaml_error_place(error)}") from None
