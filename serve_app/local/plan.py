"""What is to be run on this machine, checked and prepared; `local.server` then runs it.

    plan = read_plan(...)             the configuration, checked
    with prepare(plan) as tidy:       disk, lock, ports, environment
        run(plan, ..., tidy)          start, announce, wait, stop

Ray is imported late: it reads its environment when it is imported.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from deployments.settings import LogSettings
from deployments.storage.scratch import scratch_folder
from serve_app.access.exposure import check_exposure
from serve_app.config import AppArgs, AppSettings
from serve_app.database.sqlite_file import check_undamaged, database_file
from serve_app.errors import ConfigError, StartupError
from serve_app.local.preflight import (
    LOOPBACK,
    check_disk,
    check_open_files,
    check_ports,
    data_folder_lock,
    max_open_files,
)
from serve_app.local.private_files import LOG_FILES, close_to_others, owner_only, temp_base
from serve_app.local.ray_environment import (
    SCRATCH_PREFIX,
    ensure_token,
    haproxy_available,
    haproxy_ports,
    haproxy_variables,
    ray_variables,
    write_haproxy_wrapper,
)
from serve_app.local.store.seaweed_command import ports as seaweed_ports

PROTEINS = "serve_app.app:proteins"
_ALL_ADDRESSES = ("0.0.0.0", "::", "")


@dataclass(frozen=True)
class LaunchPlan:
    """What is to be run."""

    serve: dict[str, Any]  # content of serve_config.yaml, and the host if that left it out
    settings: AppSettings  # the profile; of several applications, that of the first by name of the file
    dashboard_port: int  # of Ray's dashboard, on loopback

    @property
    def host(self) -> str:
        return str(self.serve["http_options"]["host"])

    @property
    def port(self) -> int:
        return int(self.serve["http_options"].get("port", 8000))

    @property
    def bound_host(self) -> str:
        """The address that the app's port is taken on."""
        return "0.0.0.0" if self.host in _ALL_ADDRESSES else self.host

    @property
    def address(self) -> str:
        """URL of the app for a browser on this machine."""
        return f"http://{LOOPBACK if self.host in _ALL_ADDRESSES else self.host}:{self.port}"

    @property
    def dashboard(self) -> str:
        return f"http://{LOOPBACK}:{self.dashboard_port}"

    @property
    def data_dir(self) -> Path:
        return self.settings.data_dir.resolve()

    @property
    def token_file(self) -> Path:
        return self.data_dir / "ray-token"

    @property
    def log_file(self) -> Path:
        """The newest lines of all processes."""
        return self.data_dir / LOG_FILES[0]

    @property
    def ray_logs(self) -> Path:
        """Where Ray's logs are kept of a server that ended by a fault."""
        return self.data_dir / "ray-logs"


def read_plan(config: Path, dashboard_port: int) -> LaunchPlan:
    """Read serve_config.yaml and the profile that its applications name.

    Raises:
        ConfigError: one of them is missing or wrong, and the message names the key; or other machines could reach an
            app that asks for no keys.
    """
    # Late: commands that start no server need not load the clients of stores.
    from serve_app.local.model_source import check_model_source, check_protein_source

    serve = _read_serve_config(config)
    profiles = _profiles(config, serve)
    plan = LaunchPlan(_with_proteins(serve, profiles[0]), profiles[0], dashboard_port)
    for settings in profiles:
        check_model_source(settings.model, settings.dtypes)
        if settings.proteins is not None:
            check_protein_source(settings.proteins)
        check_exposure(plan.host, settings.access.mode)
    return plan


def read_files(config: Path, dashboard_port: int) -> LaunchPlan:
    """As `read_plan`, with neither the model nor who can reach the app looked at. Raises ConfigError."""
    serve = _read_serve_config(config)
    settings = _profiles(config, serve)[0]
    return LaunchPlan(_with_proteins(serve, settings), settings, dashboard_port)


def read_settings(config: Path) -> AppSettings:
    """The profile that the applications of a Serve config name, for commands that work beside a server or without one.

    Raises:
        ConfigError: one of the files is missing or wrong; names the key.
    """
    return _profiles(config, _read_serve_config(config))[0]


def _with_proteins(serve: dict[str, Any], settings: AppSettings) -> dict[str, Any]:
    """The Serve config with the application of the proteins, if the profile has them and it does not list it itself."""
    applications = serve["applications"]
    if settings.proteins is None or any(app.get("import_path") == PROTEINS for app in applications):
        return serve
    like = {key: applications[0][key] for key in ("args", "logging_config") if key in applications[0]}
    added = {"name": "proteins", "route_prefix": "/esm2", "import_path": PROTEINS, **like}
    return serve | {"applications": [*applications, added]}


def _profiles(config: Path, serve: dict[str, Any]) -> list[AppSettings]:
    """The profiles of all applications, by name; at least one. Raises ConfigError also if their data folders differ."""
    try:
        args = [AppArgs.model_validate(app.get("args") or {}) for app in serve["applications"]]
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["args", *(str(part) for part in first["loc"])])
        raise ConfigError(f"{config}: {key} of an application: {first['msg']}") from None
    profiles = [one.load() for one in _distinct(args)]
    if len({profile.data_dir for profile in profiles}) > 1:
        raise ConfigError(f"{config}: the profiles of its applications name different data folders")
    return profiles


def _distinct(args: list[AppArgs]) -> list[AppArgs]:
    """By name of the profile."""
    return sorted((one for i, one in enumerate(args) if one not in args[:i]), key=lambda one: str(one.config))


def _read_serve_config(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"cannot read {str(path)!r} ({error.strerror}); name the Serve config with --config"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict) or not tree.get("applications"):
        raise ConfigError(f"{path} must be a mapping with the key applications")
    if not all(isinstance(app, dict) for app in tree["applications"]):
        raise ConfigError(f"{path}: each of applications must be a mapping with the key import_path")
    options = tree.get("http_options") or {}
    if not isinstance(options, dict):
        raise ConfigError(f"{path}: http_options must be a mapping, e.g. {{host: {LOOPBACK}, port: 8000}}")
    # Without a host, Serve itself would listen on all addresses.
    return {**tree, "http_options": {"host": LOOPBACK, **options}}


def check_serve_schema(plan: LaunchPlan) -> Any:
    """The config as Ray Serve's own schema. Raises ConfigError naming the key."""
    from ray.serve.schema import ServeDeploySchema

    try:
        return ServeDeploySchema.model_validate(_with_encoding(plan.serve, plan.settings.logging))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(f"the Serve config is wrong at {key}: {first['msg']}") from None


def _with_encoding(serve: dict[str, Any], logging: LogSettings) -> dict[str, Any]:
    """The Serve config with Serve's own files written as ours are, where it does not say how."""
    if logging.format == "text":
        return serve
    applications = [_in_json(app) if app.get("logging_config") else app for app in serve["applications"]]
    return _in_json(serve) | {"applications": applications}


def _in_json(tree: dict[str, Any]) -> dict[str, Any]:
    return tree | {"logging_config": {"encoding": "JSON", **(tree.get("logging_config") or {})}}


@contextlib.contextmanager
def prepare(
    plan: LaunchPlan, tell: Callable[[str], None], environ: MutableMapping[str, str] = os.environ
) -> Iterator[Callable[[], None]]:
    """Check disk, lock, database and ports, and set umask and environment.

    Yields a function that removes the scratch folder and the lock, for a process that is ended before it comes to the
    end, where they are removed too.

    Args:
        plan: what is to be run.
        tell: called with a line for people about what was not as it should be and is now.
        environ: where the variables for Ray and Serve go.

    Raises:
        StartupError: the app cannot start here.
    """
    from serve_app.local.model_source import check_model_place, check_protein_place

    check_open_files(max_open_files())
    check_model_place(plan.settings.model, plan.settings.dtypes, plan.settings.storage)
    if plan.settings.proteins is not None:
        check_protein_place(plan.settings.proteins, plan.settings.storage)
    with contextlib.ExitStack() as stack:
        stack.enter_context(owner_only())
        check_disk(plan.data_dir, plan.settings.min_free_disk_mb)
        lock = stack.enter_context(data_folder_lock(plan.data_dir))
        if opened := close_to_others(plan.data_dir):
            names = ", ".join(path.name for path in opened)
            tell(f"In {plan.data_dir}, other users of this machine could reach {names}; now only you can.")
        if (database := database_file(plan.settings.database_url)) is not None:
            check_undamaged(database)
        scratch = stack.enter_context(_scratch_folder())

        def tidy() -> None:
            shutil.rmtree(scratch, ignore_errors=True)
            lock.unlink(missing_ok=True)

        check_ports(app_port(plan), plan.bound_host)
        check_ports(needed_ports(plan, environ))
        ensure_token(plan.token_file)
        variables = ray_variables(plan.token_file)
        if haproxy_available():
            wrapper = write_haproxy_wrapper(scratch, environ, plan.settings.ingress)
            variables |= haproxy_variables(scratch, wrapper, max_open_files())
        for name, value in variables.items():
            environ.setdefault(name, value)
        # Ray opens its folder of logs and sockets to all users of the machine: it lies in one that is closed.
        environ["RAY_TMPDIR"] = str(scratch)
        # So does what replicas leave behind when they are killed. Python makes sockets among temporary files, too.
        environ["TMPDIR"] = str(scratch)
        yield tidy


@contextlib.contextmanager
def _scratch_folder() -> Iterator[Path]:
    """Raises StartupError when it cannot be made."""
    base = temp_base()
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(scratch_folder(SCRATCH_PREFIX, base))
        except OSError as error:
            raise StartupError(
                f"cannot make a folder for temporary files in {base} ({error.strerror}); make room in it, or name "
                "another one with TMPDIR, of at most 10 characters"
            ) from error
        yield folder


def app_port(plan: LaunchPlan) -> dict[int, str]:
    """The app's own, as `needed_ports` tells the others."""
    return {plan.port: "the app; change http_options.port in the Serve config"}


def needed_ports(plan: LaunchPlan, environ: MutableMapping[str, str]) -> dict[int, str]:
    """The ports on loopback that must be free, each with what it is for and how to change it."""
    needed = {plan.dashboard_port: "Ray's dashboard; change it with --dashboard-port"}
    if haproxy_available():
        for variable, port in haproxy_ports(environ).items():
            needed[port] = f"the HTTP front; change it with the environment variable {variable}"
    if plan.settings.storage.endpoint is None:
        for name, port in seaweed_ports(plan.settings.storage.local_port).items():
            needed[port] = f"the local object store ({name}); change storage.local_port, first of eight ports"
    return needed
