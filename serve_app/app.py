"""The applications. This is the only place that binds deployments and starts the named actors."""

import functools
import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import ray
from pydantic import SecretStr
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from deployments.embedder.devices import planned_devices
from deployments.embedder.settings import EmbedderSettings
from deployments.logs.lines import begin_log
from deployments.logs.masking import secrets_of
from deployments.messages import Stage
from deployments.settings import LogSettings, StageSettings
from deployments.watchdog.heartbeat import watch_this_process
from deployments.weights_exchange.directory import ACTOR as WEIGHTS_ACTOR
from deployments.weights_exchange.directory import WeightsDirectory
from serve_app.access.exposure import check_exposure, current_http_host, is_loopback
from serve_app.access.secret_box import webhook_key
from serve_app.calls.router import ROUTER
from serve_app.config import AppArgs, AppSettings, ClassifierSettings
from serve_app.errors import ConfigError, StartupError
from serve_app.jobs import Health
from serve_app.local.store.seaweed import ACTOR_NAME as STORAGE_ACTOR
from serve_app.local.store.seaweed import LocalStorage
from serve_app.prompts.blocklist import load_blocklist
from serve_app.registry.actor import JobRegistry
from serve_app.registry.replicas import StageRouter
from serve_app.scheduling.scaling.autoscaling import CapacityPolicy

REGISTRY = "JobRegistry"
# How soon a replica that was killed is replaced.
HEALTH_CHECK_PERIOD_S = 3
REGISTRY_STARTS = 5
# Of proteins, on their way to one device: the HTTP side sends no more than two passes' worth.
MOST_GROUPS = 256
HEAD_NODE = {"node:__internal_head__": 0.001}


def api(args: AppArgs) -> Application:
    """The HTTP side: validates, answers with a job id, serves the results."""
    from serve_app.ingress.app import Ingress

    settings = with_absolute_paths(args.load())
    host = current_http_host()
    check_exposure(host, settings.access.mode)
    if settings.safety.blocklist is not None:
        load_blocklist(settings.safety.blocklist)  # a bad one fails here, before anything is started
    settings = with_storage(settings)
    ensure_registry(settings)
    deployment: Any = Ingress
    # Most of what goes on at a time are streams of events, which cost little while nothing happens.
    ingress = _http_side(
        deployment, settings, settings.ingress.min_replicas, settings.ingress.max_replicas, most_ongoing=10_000
    )
    application: Application = ingress.bind(
        settings=settings,
        registry=REGISTRY,
        loopback_only=host is not None and is_loopback(host),
        classifier=_classifier(settings.safety.classifier, settings.logging),
    )
    return application


def _classifier(settings: ClassifierSettings | None, logging: LogSettings) -> Application | None:
    if settings is None:
        return None
    from deployments.prompts.prompt_classifier import PromptClassifier

    deployment: Any = PromptClassifier
    options = deployment.options(
        ray_actor_options={"num_gpus": settings.num_gpus, "num_cpus": settings.num_cpus},
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        autoscaling_config=AutoscalingConfig(min_replicas=1, max_replicas=settings.max_replicas),
        **_log_options(logging),
    )
    application: Application = options.bind(
        source=settings.source, revision=settings.revision, refuse=settings.refuse, logging=logging
    )
    return application


def mochi(args: AppArgs) -> Application:
    """The models, one deployment a stage. Serve deploys what is bound to the root, here the encoder."""
    # Imported here: they bring torch, which the HTTP side starts without.
    from deployments.decoder.video_decoder import VideoDecoder
    from deployments.prompts.prompt_encoder import PromptEncoder
    from deployments.sampler.mochi_sampler import MochiSampler

    settings = with_storage(with_absolute_paths(args.load()))
    ensure_registry(settings)
    if settings.model.weights_from_peers:
        named_actor(WeightsDirectory, WEIGHTS_ACTOR, settings.namespace, {}).remote()
    sampler = _stage_options(MochiSampler, Stage.SAMPLING, settings, settings.sampler)
    decoder = _stage_options(VideoDecoder, Stage.DECODING, settings, settings.decoder)
    encoder = _stage_options(PromptEncoder, Stage.ENCODING, settings, settings.encoder)
    application: Application = encoder.bind(
        settings=settings.worker(Stage.ENCODING, REGISTRY),
        downstream=[
            sampler.bind(settings=settings.worker(Stage.SAMPLING, REGISTRY)),
            decoder.bind(settings=settings.worker(Stage.DECODING, REGISTRY)),
        ],
    )
    return application


def proteins(args: AppArgs) -> Application:
    """ESM2, below /esm2: an HTTP side of its own, and a replica of the model for each device.

    Raises:
        ConfigError: the settings have no section `proteins`.
    """
    from deployments.embedder.protein_embedder import ProteinEmbedder
    from serve_app.proteins.app import ProteinIngress
    from serve_app.proteins.files.worker import ProteinFiles

    settings = with_storage(with_absolute_paths(args.load()))
    section = settings.proteins
    if section is None:
        raise ConfigError("the application proteins is deployed, and the settings have no section proteins; add one")
    host = current_http_host()
    check_exposure(host, settings.access.mode)
    ensure_registry(settings)
    devices = planned_devices(section, ray.cluster_resources().get("GPU", 0.0))
    embedder: Any = ProteinEmbedder
    model: Application = embedder.options(
        num_replicas=devices.count,
        ray_actor_options={
            "num_gpus": devices.num_gpus,
            "num_cpus": section.num_cpus,
            "resources": section.resources,
        },
        max_ongoing_requests=MOST_GROUPS,
        graceful_shutdown_timeout_s=section.group_timeout_s,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
        **_log_options(settings.logging),
    ).bind(
        settings=EmbedderSettings(
            registry=REGISTRY,
            namespace=settings.namespace,
            storage=settings.storage,
            proteins=section,
            torch_threads=devices.torch_threads,
            pass_tokens=devices.pass_tokens,
            logging=settings.logging,
        )
    )
    worker: Any = ProteinFiles
    files: Application = worker.options(
        ray_actor_options={"num_cpus": 0, "resources": settings.registry.resources},
        max_ongoing_requests=section.files_at_once,
        graceful_shutdown_timeout_s=section.group_timeout_s,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        **_log_options(settings.logging),
    ).bind(settings=settings, proteins=section, registry=REGISTRY, embedder=model)
    ingress: Any = ProteinIngress
    http_side = _http_side(ingress, settings, section.min_http_replicas, section.max_http_replicas, most_ongoing=4_000)
    application: Application = http_side.bind(
        settings=settings,
        proteins=section,
        registry=REGISTRY,
        loopback_only=host is not None and is_loopback(host),
        logical_devices=devices.count,
        embedder=model,
        files=files,
    )
    return application


def _http_side(deployment: Any, settings: AppSettings, minimum: int, maximum: int, most_ongoing: int) -> Any:
    """The deployment of an HTTP side with its resources, scaled by its requests.

    Args:
        minimum, maximum: of replicas.
        most_ongoing: requests that one replica has at once; scaled at a twentieth of it.
    """
    return deployment.options(
        ray_actor_options={"num_cpus": 0, "resources": settings.ingress.resources},
        max_ongoing_requests=most_ongoing,
        graceful_shutdown_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        autoscaling_config=AutoscalingConfig(
            min_replicas=minimum, max_replicas=maximum, target_ongoing_requests=most_ongoing / 20
        ),
        **_log_options(settings.logging),
    )


def _stage_options(deployment: Any, stage: Stage, settings: AppSettings, stage_settings: StageSettings) -> Any:
    """The deployment of a stage with its resources, and scaled by the work that the registry knows of."""
    policy_kwargs = {
        "registry": REGISTRY,
        "namespace": settings.namespace,
        "stage": stage,
        "slots": stage_settings.slots,
        "minimum": stage_settings.min_replicas,
        "maximum": stage_settings.max_replicas,
        "downscale_delay_s": stage_settings.downscale_delay_s,
        "log_format": settings.logging.format,
    }
    resources: dict[str, Any] = {
        "num_gpus": stage_settings.num_gpus,
        "num_cpus": stage_settings.num_cpus,
        "resources": stage_settings.resources,
    }
    if stage_settings.memory_gb is not None:
        resources["memory"] = int(stage_settings.memory_gb * 2**30)
    return deployment.options(
        ray_actor_options=resources,
        max_ongoing_requests=stage_settings.slots,
        graceful_shutdown_timeout_s=stage_settings.graceful_shutdown_timeout_s,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        autoscaling_config=AutoscalingConfig(
            min_replicas=stage_settings.min_replicas,
            max_replicas=stage_settings.max_replicas,
            upscale_delay_s=0,
            downscale_delay_s=0,  # the policy waits itself
            policy=AutoscalingPolicy(
                policy_function=f"{CapacityPolicy.__module__}:{CapacityPolicy.__name__}",
                policy_kwargs=policy_kwargs,
            ),
        ),
        **_log_options(settings.logging),
    )


def _log_options(settings: LogSettings) -> dict[str, Any]:
    """What makes Serve's own file of a replica JSON; without, the `logging_config` of the Serve config holds."""
    if settings.format == "text":
        return {}
    return {"logging_config": LoggingConfig(encoding="JSON", log_level="INFO", enable_access_log=False)}


def with_absolute_paths(settings: AppSettings) -> AppSettings:
    """The settings with whole paths: a replica may run in another folder than the server, where relative ones start."""
    model, safety, classifier = settings.model, settings.safety, settings.safety.classifier
    loras = {name: lora.model_copy(update={"source": _absolute(lora.source)}) for name, lora in model.loras.items()}
    model = model.model_copy(update={"source": _absolute(model.source), "loras": loras})
    proteins = settings.proteins
    if proteins is not None:
        proteins = proteins.model_copy(update={"source": _absolute(proteins.source)})
    if safety.blocklist is not None:
        safety = safety.model_copy(update={"blocklist": safety.blocklist.resolve()})
    if classifier is not None:
        absolute = classifier.model_copy(update={"source": _absolute(classifier.source)})
        safety = safety.model_copy(update={"classifier": absolute})
    return settings.model_copy(update={"model": model, "safety": safety, "proteins": proteins})


def _absolute(source: str) -> str:
    """The whole path of a folder; a hub id or a prefix of an object store stays as it is."""
    return str(Path(source).resolve()) if Path(source).is_dir() else source


def with_storage(settings: AppSettings) -> AppSettings:
    """The settings with an object store to use: the one they name, or the app's own, started here."""
    if settings.storage.endpoint is not None:
        return settings
    actor_class = named_actor(LocalStorage, STORAGE_ACTOR, settings.namespace, HEAD_NODE)
    data_dir = settings.data_dir.resolve()
    storage = actor_class.remote(
        settings=settings.storage,
        data_dir=data_dir,
        watch=watch_this_process,
        begin_log=functools.partial(begin_log, settings.logging, "store"),
    )
    return settings.model_copy(update={"storage": ray.get(storage.ready.remote())})


def ensure_registry(settings: AppSettings) -> None:
    """Start the registry unless it runs with these settings. SQLite lives on the head node, and so then does it.

    One with other settings is ended: its jobs are in SQL, its workers keep their leases, and whoever calls it meanwhile
    tries again.

    Raises:
        StartupError: the database does not work; the next deploy starts the registry anew, with its settings then.
    """
    wanted, replaces = _registry_digest(settings), False
    for _ in range(REGISTRY_STARTS):
        registry = _start_registry(settings, wanted, replaces)
        try:
            if ray.get(registry.settings_digest.remote()) != wanted:
                ray.kill(registry)
                replaces = True
                continue
            health: Health = ray.get(registry.health.remote())
        except ray.exceptions.RayActorError:
            continue  # the other application, which is built at the same time, has ended it for the reason that is here
        if health.database == "ok":
            return
        ray.kill(registry)
        raise StartupError(": ".join(filter(None, [health.database, health.database_detail])))
    raise StartupError(
        "the job registry ended each time that it was started: either the applications' args differ, and each wants a "
        "registry of its own settings (give both the same), or its log in Ray's folder says why"
    )


def _registry_digest(settings: AppSettings) -> str:
    """Differs where a registry would be another one with these settings."""
    own = (
        "data_dir",
        "database",
        "storage",
        "registry",
        "jobs",
        "scheduling",
        "retention",
        "webhooks",
        "access",
        "metrics",
        "tracing",
        "logging",
    )
    parts = settings.model_dump(include=set(own))
    plain = json.dumps(parts, sort_keys=True, default=_plain)
    return hashlib.sha256(plain.encode()).hexdigest()


def _plain(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _start_registry(settings: AppSettings, digest: str, replaces: bool) -> Any:
    """The actor, which is made unless it is there.

    Args:
        digest: of the settings.
        replaces: whether one with other settings was ended just now, which ingress replicas may still follow.
    """
    node = HEAD_NODE if settings.database_url.startswith("sqlite") else {}
    actor_class = named_actor(JobRegistry, REGISTRY, settings.namespace, settings.registry.resources | node)
    return actor_class.remote(
        database_url=settings.database_url,
        jobs=settings.jobs,
        scheduling=settings.scheduling,
        owner=ray.get_runtime_context().get_session_name(),
        send=StageRouter(),
        retention=settings.retention,
        storage=settings.storage,
        webhooks=settings.webhooks,
        webhook_key=webhook_key(settings),
        access=settings.access,
        metrics=settings.metrics,
        tracing=settings.tracing,
        settings_digest=digest,
        was_restarted=_always if replaces else _was_restarted,
        watch=watch_this_process,
        begin_log=functools.partial(begin_log, settings.logging, "registry", list(secrets_of(settings))),
    )


def _always() -> bool:
    return True


def _was_restarted() -> bool:
    """Called in the actor: whether Ray has started it again after it was killed."""
    with warnings.catch_warnings():  # Ray warns of a call that it makes itself
        warnings.simplefilter("ignore", DeprecationWarning)
        restarted: bool = ray.get_runtime_context().was_current_actor_reconstructed
    return restarted


def named_actor(actor: type, name: str, namespace: str, resources: dict[str, float]) -> Any:
    """The class of an actor that is started once in the cluster and again whenever it was killed."""
    return ray.remote(actor).options(
        name=name,
        namespace=namespace,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=1000,
        num_cpus=0,
        resources=resources,
    )
