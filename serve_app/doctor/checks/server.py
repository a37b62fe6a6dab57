"""A server that is to run: reached, well, of this version, in time; its applications, where it runs here."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import psutil

from serve_app.client.http import LOOPBACK, checked_url
from serve_app.doctor.checks.clock import date_finding
from serve_app.doctor.finding import Finding, State, fault, ok, skipped, warning
from serve_app.doctor.surroundings import Surroundings
from serve_app.version import VERSION

ANSWER_S = 5.0
LATER = ("server_version", "server_clock", "stages", "api_key")
SEE_TABLE = "see docs/operations.md, When something is wrong"


def check_server(s: Surroundings) -> Iterator[Finding]:
    """By its routes that need no key; with a key, whether that is taken."""
    if s.url is None:
        told = f"none works on {s.plan.data_dir} on this machine; name another one with --url"
        yield from (skipped(name, told if name == "server" else "see server") for name in ("server", *LATER))
        return
    url = checked_url(s.url)
    with httpx.Client(base_url=url, timeout=ANSWER_S, trust_env=url.host not in LOOPBACK) as client:
        before = s.unix_time()
        try:
            answer = client.get("/health")
            report = _report(answer)
        except (httpx.HTTPError, ValueError) as error:
            yield _no_answer(s, str(url), error)
            yield from (skipped(name, "see server") for name in LATER)
            return
        after = s.unix_time()
        yield _stopped(s) or _state(str(url), answer, report)
        yield _version(report)
        yield date_finding("server_clock", "the server", answer.headers.get("date"), before, after)
        yield _stages(report)
        yield _key(s, client)


def check_applications(s: Surroundings) -> Iterator[Finding]:
    """What Serve says of them, by Ray's dashboard, which only this machine reaches."""
    if s.server is None:
        yield skipped("applications", "no server runs on this machine")
        return
    try:
        token = s.plan.token_file.read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        route = f"{s.plan.dashboard}/api/serve/applications/"
        answer = httpx.get(route, headers=headers, timeout=ANSWER_S, trust_env=False)
        applications: dict[str, Any] = answer.raise_for_status().json()["applications"]
    except (OSError, httpx.HTTPError, ValueError, KeyError) as error:
        told = f"Ray's dashboard at {s.plan.dashboard} tells nothing: {error or type(error).__name__}"
        yield warning("applications", told, "name its port with --dashboard-port; see the server's log")
        return
    yield applications_finding(
        {name: (found["status"], found.get("message", ""), _deployments(found)) for name, found in applications.items()}
    )


def applications_finding(applications: dict[str, tuple[str, str, dict[str, tuple[str, str]]]]) -> Finding:
    """By status, message, and of each deployment status and message."""
    if not applications:
        return fault("applications", "Serve has none", "deploy serve_config.yaml: mochi-serve serve, serve deploy")
    wrong = [
        f"{name} is {status}: {message or '; '.join(_unwell(deployments)) or 'no reason is given'}"
        for name, (status, message, deployments) in applications.items()
        if status != "RUNNING"
    ]
    if not wrong:
        return ok("applications", f"{', '.join(sorted(applications))} are running")
    told = " ".join("; ".join(wrong).split())[:500]
    if all(status in ("RUNNING", "DEPLOYING") for status, _, _ in applications.values()):
        return warning("applications", told, "wait: large models take minutes to load; the log shows how far they are")
    return fault("applications", told, "the log of the deployment that is named says why; mend it and deploy again")


def _deployments(application: dict[str, Any]) -> dict[str, tuple[str, str]]:
    found = application.get("deployments") or {}
    return {name: (one["status"], one.get("message", "")) for name, one in found.items()}


def _unwell(deployments: dict[str, tuple[str, str]]) -> list[str]:
    return [f"{name} {status} {message}" for name, (status, message) in deployments.items() if status != "HEALTHY"]


def _report(answer: httpx.Response) -> dict[str, Any]:
    """Raises ValueError: it is none of ours."""
    report = answer.json()
    if not isinstance(report, dict) or "devices" not in report and "error" not in report:
        raise ValueError("its answer to /health is none of a mochi-serve")
    return report


def _no_answer(s: Surroundings, url: str, error: Exception) -> Finding:
    if (stopped := _stopped(s)) is not None:
        return stopped
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        runs = f"; process {s.server.pid} works on the data folder" if s.server is not None else ""
        advice = "start it with `mochi-serve serve`, wait until it is ready, or name another address with --url"
        return fault("server", f"nobody listens at {url}{runs}", advice)
    if isinstance(error, httpx.TimeoutException):
        advice = "it hangs, or is stopped: see its process (state T in `ps`: kill -CONT) and its log; then restart it"
        return fault("server", f"{url} takes the connection and gives no answer within {ANSWER_S:g} s", advice)
    told = f"{url}: {error or type(error).__name__}"
    return fault("server", told, "see what stands at that address, and whether a proxy before it passes requests on")


def _stopped(s: Surroundings) -> Finding | None:
    """A process of the server that was stopped by a signal; Serve goes on for a while without its parent."""
    with suppress(psutil.Error):
        if s.server is not None and s.server.status() == psutil.STATUS_STOPPED:
            told = f"its process {s.server.pid} is stopped (SIGSTOP)"
            return fault("server", told, f"let it go on: kill -CONT {s.server.pid}")
    return None


def _state(url: str, answer: httpx.Response, report: dict[str, Any]) -> Finding:
    if answer.status_code != httpx.codes.OK:
        message = (report.get("error") or {}).get("message") or f"it answers {answer.status_code}"
        return fault("server", f"{url} accepts no videos: {message}", SEE_TABLE)
    return ok("server", f"{url} accepts videos")


def _version(report: dict[str, Any]) -> Finding:
    theirs = report.get("version")
    if theirs is None:
        return skipped("server_version", "it tells none")
    if theirs != VERSION:
        told = f"the server is {theirs}, this is {VERSION}"
        return warning("server_version", told, "install the same version on both, and restart the older one")
    return ok("server_version", VERSION)


def _stages(report: dict[str, Any]) -> Finding:
    devices: dict[str, list[dict[str, Any]]] = report.get("devices") or {}
    sick = [
        f"{stage} {one['replica']}: {one['problem']}"
        for stage, all_ in devices.items()
        for one in all_
        if one["problem"]
    ]
    if not devices:
        return skipped("stages", "it tells nothing of its replicas")
    if waiting := report.get("waiting_for"):
        starting = report.get("starting") or {}
        state = State.WARNING if starting or not sick else State.FAULT
        advice = "large models take minutes to load; with min_replicas 0 a stage starts with its first job"
        return Finding("stages", state, waiting, SEE_TABLE if state is State.FAULT else advice)
    if sick:
        return warning("stages", "; ".join(sick), "the message says what to do with that GPU")
    counts = ", ".join(f"{stage} {len(all_)}" for stage, all_ in devices.items())
    return ok("stages", f"replicas: {counts}")


def _key(s: Surroundings, client: httpx.Client) -> Finding:
    headers = {"Authorization": f"Bearer {s.api_key}"} if s.api_key else {}
    try:
        status = client.get("/v1/models", headers=headers).status_code
    except httpx.HTTPError as error:
        return skipped("api_key", f"it was not asked: {error or type(error).__name__}")
    if status == httpx.codes.UNAUTHORIZED and s.api_key:
        return fault("api_key", "the key is refused", "make another one: mochi-serve keys create --tenant NAME")
    if status == httpx.codes.UNAUTHORIZED:
        return skipped("api_key", "the server asks for one and none was given (MOCHI_SERVE_API_KEY)")
    return ok("api_key", "the key is taken" if s.api_key else "the server asks for none")
