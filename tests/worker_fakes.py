"""In-memory implementations of what a model worker is connected to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from deployments.connections import Connections
from deployments.errors import PermanentError, RegistryUnavailableError
from deployments.messages import Directive, Event, Progress, ReplicaInfo, Stage, StageTask, VideoSpec
from deployments.model_store import ModelBucket
from deployments.settings import WorkerSettings
from serve_app.config import load_settings

ROOT = Path(__file__).parent.parent
SHAPES = ROOT / "models" / "shapes"


class MemoryLink:
    """A registry that notes what it hears. unreachable: this many report calls fail first."""

    def __init__(self, unreachable: int = 0, stop_at: Callable[[Event], bool] = lambda event: False) -> None:
        self.events: list[Event] = []
        self.leases: list[tuple[str, str]] = []
        self.announced: list[ReplicaInfo] = []
        self.unreachable = unreachable
        self._stop_at = stop_at

    async def call(self, method: str, *args: Any) -> Any:
        if method == "announce":
            self.announced.append(args[0])
            return None
        assert method == "report"
        if self.unreachable:
            self.unreachable -= 1
            raise RegistryUnavailableError("the registry restarts")
        job_id, lease, event = args
        self.leases.append((job_id, lease))
        self.events.append(event)
        return Directive.STOP if self._stop_at(event) else Directive.CONTINUE

    @property
    def ends(self) -> list[Event]:
        """Events without progress."""
        return [event for event in self.events if not isinstance(event, Progress)]


class MemoryStore:
    """An object store in a dict, with the order of writes."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.types: dict[str, str] = {}
        self.written: list[str] = []

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        self.objects[key] = data
        self.types[key] = content_type
        self.written.append(key)

    async def put_file(self, key: str, path: Path, content_type: str) -> None:
        await self.put(key, path.read_bytes(), content_type)

    async def get(self, key: str) -> bytes:
        if key not in self.objects:
            raise PermanentError("object_missing", f"no object {key}")
        return self.objects[key]

    def download_prefix(self, prefix: str, folder: Path) -> None:
        found = {key: data for key, data in self.objects.items() if key.startswith(f"{prefix}/")}
        if not found:
            raise PermanentError("object_missing", f"nothing under {prefix}")
        for key, data in found.items():
            path = folder / key.removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def connections(link: MemoryLink, store: MemoryStore) -> Connections:
    def open_bucket(name: str) -> ModelBucket:
        return store

    return Connections("replica-1", link, store, open_bucket)


def worker_settings(stage: Stage, source: Path = SHAPES) -> WorkerSettings:
    settings = load_settings(str(ROOT / "configs" / "shapes.yaml"), environ={})
    sections = {
        Stage.ENCODING: settings.encoder,
        Stage.SAMPLING: settings.sampler,
        Stage.DECODING: settings.decoder,
    }
    whole = settings.worker(sections[stage], "registry")
    return whole.model_copy(update={"model": whole.model.model_copy(update={"source": str(source)})})


def spec(prompt: str = "a red circle moving right", **changes: Any) -> VideoSpec:
    values: dict[str, Any] = {
        "negative_prompt": "",
        "width": 64,
        "height": 64,
        "num_frames": 13,
        "fps": 24,
        "num_inference_steps": 6,
        "guidance_scale": 3.0,
        "seed": 1,
    }
    return VideoSpec(prompt=prompt, **(values | changes))


def undecorated(deployment: Any) -> Any:
    """The class behind `@serve.deployment`."""
    return deployment.func_or_class


def task(stage: Stage, video: VideoSpec | None = None) -> StageTask:
    return StageTask("video_1", "lease_1", stage, 1, video or spec())
