"""Python, packages, memory, processors, open files, shared memory, and what writes mp4 files."""

import os
import resource
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from platform import python_version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import serve_app
from deployments.replica.host_memory import available_bytes, total_bytes
from serve_app.doctor.checks.model_bytes import weights_on_cpu
from serve_app.doctor.children.run import ChildError
from serve_app.doctor.finding import Finding, fault, ok, skipped, split_fault, warning
from serve_app.doctor.surroundings import Surroundings
from serve_app.errors import StartupError
from serve_app.local.preflight import OBJECT_STORE_BYTES, check_open_files, max_open_files
from serve_app.local.ray_environment import MAX_CONNECTIONS, front_connections
from serve_app.version import PACKAGE

ANOTHER_PYTHON = "make the environment anew with such a one: rm -rf .venv && make serve PYTHON=python3.12"
INSTALL = "pip install -c constraints.txt -e . in the environment of mochi-serve"
# Ray, Serve and the libraries of eight processes, beside the weights.
OTHER_MEMORY = 3_000_000_000
CODEC_S = 90.0
_SHOWN = 4


def check_python(s: Surroundings) -> Iterator[Finding]:
    """The interpreter that runs this, which is the server's."""
    try:
        wanted = metadata(PACKAGE)["Requires-Python"] or ""
    except PackageNotFoundError:
        yield fault("python", f"the package {PACKAGE} is not installed for {sys.executable}", INSTALL)
        return
    found = python_version()
    if SpecifierSet(wanted).contains(found, prereleases=True):
        yield ok("python", f"{found} ({sys.executable})")
    else:
        yield fault("python", f"{found} ({sys.executable}); {PACKAGE} runs on {wanted}", ANOTHER_PYTHON)


def check_packages(s: Surroundings) -> Iterator[Finding]:
    """What the package needs, and whether the versions are those that it was tested with."""
    needed = [Requirement(line) for line in requires(PACKAGE) or []]
    needed = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    found = {one.name: _version(one.name) for one in needed}
    wrong = [
        f"{one} ({found[one.name] or 'missing'})"
        for one in needed
        if (installed := found[one.name]) is None or not one.specifier.contains(installed, prereleases=True)
    ]
    if wrong:
        yield fault("packages", f"needed and not here: {_listed(wrong)}", INSTALL)
    else:
        yield ok("packages", f"{len(needed)} packages are as needed")
    yield from _pins(Path(serve_app.__file__).parents[1] / "constraints.txt", found)


def _pins(constraints: Path, found: dict[str, str | None]) -> Iterator[Finding]:
    if not constraints.is_file():
        yield skipped("pins", f"there is no {constraints}: the package was installed without its sources")
        return
    lines = (line.partition("#")[0].strip() for line in constraints.read_text().splitlines())
    pins = dict(line.split("==", 1) for line in lines if "==" in line)
    # A build of torch for another device is the same version: 2.11.0+cpu.
    others = [
        f"{name} {installed} ({pins[name]})"
        for name, installed in found.items()
        if installed and name in pins and Version(installed).public != Version(pins[name]).public
    ]
    if others:
        yield warning("pins", f"other versions than constraints.txt names: {_listed(others)}", INSTALL)
    else:
        yield ok("pins", "versions are those of constraints.txt")


def check_memory(s: Surroundings) -> Iterator[Finding]:
    """The machine's memory, or the container's, against the weights of the stages that run on the CPU."""
    total, free = total_bytes(s.root), available_bytes(s.root)
    figures = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB are free"
    if s.ray_address:
        yield skipped("memory", f"{figures} here; replicas run on the cluster")
        return
    weights = weights_on_cpu(s)
    if weights is None:
        yield ok("memory", f"{figures}; how large the model is will be known once it is here")
        return
    needed = sum(weights.values()) + OTHER_MEMORY
    parts = ", ".join(f"{part} {nbytes / 1e9:.1f}" for part, nbytes in weights.items()) or "none"
    told = f"{figures}; about {needed / 1e9:.1f} are needed (weights on the CPU: {parts})"
    if needed > total:
        advice = "give the machine or the container more memory, give those stages a GPU, or take a smaller model"
        yield fault("memory", told, advice)
    elif needed > free and s.server is None:
        yield warning("memory", told, "end other programs, or expect the kernel to end one of ours")
    else:
        yield ok("memory", told)


def check_processors(s: Surroundings) -> Iterator[Finding]:
    """Processors that this process may use, against the threads that stages ask for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    stages = {"encoder": s.settings.encoder, "sampler": s.settings.sampler, "decoder": s.settings.decoder}
    over = [f"{name}.torch_threads {one.torch_threads}" for name, one in stages.items() if _over(one, cores)]
    if over and not s.ray_address:
        told = f"{cores} processors; the profile has {', '.join(over)}"
        yield warning("processors", told, f"set it to {cores} or leave it out: more threads only wait for each other")
    else:
        yield ok("processors", f"{cores} processors")


def check_limit_of_files(s: Surroundings) -> Iterator[Finding]:
    """How many files a process may have open."""
    limit = max_open_files()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = "any number of" if hard == resource.RLIM_INFINITY else str(hard)
    try:
        check_open_files(limit)
    except StartupError as error:
        yield split_fault("open_files", str(error))
        return
    if (connections := front_connections(limit)) < MAX_CONNECTIONS:
        told = f"a process may have {shown} files open: enough for {connections} connections of {MAX_CONNECTIONS}"
        yield warning("open_files", told, "raise the hard limit to 10340 (`ulimit -Hn`, LimitNOFILE, --ulimit nofile)")
    else:
        yield ok("open_files", f"a process may have {shown} files open (now {soft})")


def check_shared_memory(s: Surroundings) -> Iterator[Finding]:
    """/dev/shm, where Ray keeps its objects."""
    folder = s.root / "dev/shm"
    if not folder.is_dir():
        yield skipped("shared_memory", f"there is no {folder}")
        return
    usage = shutil.disk_usage(folder)
    told = f"{usage.free / 1e6:.0f} of {usage.total / 1e6:.0f} MB of {folder} are free, Ray takes "
    told += f"{OBJECT_STORE_BYTES / 1e6:.0f}"
    if usage.free < OBJECT_STORE_BYTES and s.server is None and not s.ray_address:
        advice = "enlarge it (--shm-size=1g of a container, an emptyDir of medium Memory in a pod); Ray takes disk else"
        yield warning("shared_memory", told, advice)
    else:
        yield ok("shared_memory", told)


def check_video_encoder(s: Surroundings) -> Iterator[Finding]:
    """ffmpeg writes one frame with the codec of the profile; it is asked in a process of its own."""
    if s.ray_address:
        yield skipped("video_encoder", "videos are encoded on the cluster")
        return
    size = (s.settings.model.width.minimum, s.settings.model.height.minimum)
    wanted = s.settings.decoder.encoder
    codec = "nvenc" if wanted == "nvenc" else "x264"
    try:
        found = s.ask("codec", codec, *map(str, size), limit_s=CODEC_S)
    except ChildError as error:
        yield fault("video_encoder", f"ffmpeg could not be tried: {error}", INSTALL)
        return
    if found["problem"] is None:
        yield ok("video_encoder", f"{codec} has encoded a frame of {size[0]}x{size[1]}")
    elif codec == "nvenc":
        told = f"nvenc encodes no frame of {size[0]}x{size[1]}: {found['problem']}"
        yield fault("video_encoder", told, "set decoder.encoder to x264 or auto; H100, H200 and A100 have no nvenc")
    else:
        told = f"x264 encodes no frame: {found['problem']}"
        yield fault("video_encoder", told, "pip install --force-reinstall imageio-ffmpeg; see IMAGEIO_FFMPEG_EXE")


def _over(stage: object, cores: int) -> bool:
    return (getattr(stage, "torch_threads", None) or 0) > cores


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
